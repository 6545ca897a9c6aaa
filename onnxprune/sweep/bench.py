"""The bench: measures cells of one sweep, with the model, its analysis and the reference outputs held once."""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ..axes.analysis import Analysis, analyze_model
from ..axes.cuts import make_plan
from ..axes.probe import probing
from ..data import Feed, input_specs
from ..errors import OnnxPruneError
from ..graph.model import Model
from ..graph.session import open_session, output_names, run
from ..planfile import Plan, PlanGroup
from ..rewrite.apply import apply_plan
from ..verification.compare import Comparison, leaves
from ..verification.figures import agreement_figures
from ..verification.metric import Metric, load_metric
from .cells import Cell
from .setup import Setup

# Reference outputs are kept up to this size, and computed again for every cell beyond it.
KEPT_BYTES = 256 << 20
# Digits of a comparison that are the same however many threads sum it up.
DIGITS = 9


@dataclass(frozen=True)
class Figures:
    """What one cell gave. Figures without a meaning for the model or the run are None.

    `relative_error`, `cosine` and `top1` compare with the original on the samples, the worst output counting;
    `mismatch` is the fraction of integers that differ; `metric` is the user's. `error` says why there are none.
    """

    relative_error: float | None = None
    cosine: float | None = None
    top1: float | None = None
    mismatch: float | None = None
    metric: float | None = None
    error: str | None = None


class Bench:
    """Measures cells; one per process. `analysis` is one made before, of the very model of `setup`."""

    def __init__(self, setup: Setup, metric: Any = None, analysis: Analysis | None = None) -> None:
        self._setup = setup
        if analysis is None:
            with probing(wanted=True):
                analysis = analyze_model(setup.model(), dict(setup.input_shapes) or None)
        self._analysis = analysis
        self._metric: Metric | None = load_metric(metric) if metric is not None else None
        self._session = self._open(analysis.model) if setup.feeds else None
        self._kept: list[Sequence[Any]] = []
        self._kept_bytes = 0
        self._lock = threading.Lock()

    def __call__(self, cell: Cell) -> Figures:
        """Measure one cell; what is wrong with the pruned model is in `Figures.error`."""
        try:
            return self.measure(cell)
        except OnnxPruneError as error:
            return Figures(error=str(error))

    def measure(self, cell: Cell) -> Figures:
        """Measure one cell; raises what is wrong with the model, the samples or the metric."""
        pruned = apply_plan(self._analysis, self._plan(cell))
        session = self._open(pruned)
        found = Figures()
        if self._session is not None:
            comparison = Comparison.of(output_names(self._session))
            for feed, expected in self._references():
                comparison.add(expected, run(session, feed, "the pruned model"))
            found = self._agreement(comparison)
        if self._metric is not None and found.error is None:
            found = replace(found, metric=self._metric(session))
        return found

    def _plan(self, cell: Cell) -> Plan:
        rows = [
            PlanGroup(g.id, g.kind, g.size, cell.removed if g.id == cell.group else (), g.exact, blocks=g.blocks)
            for g in self._analysis.groups
        ]
        if cell.group:
            self._analysis.group(cell.group)
        return make_plan(self._analysis, rows)

    def _open(self, model: Model) -> Any:
        return open_session(model, threads=self._setup.threads, spinning=False)

    def _references(self) -> Iterator[tuple[Feed, Sequence[Any]]]:
        """Give every feed with the original's outputs."""
        for k, feed in enumerate(self._setup.feeds):
            with self._lock:
                if k < len(self._kept):
                    outputs = self._kept[k]
                else:
                    outputs = run(self._session, feed, self._analysis.model.label)
                    size = sum(a.nbytes for value in outputs for a in leaves(value))
                    if k == len(self._kept) and self._kept_bytes + size <= KEPT_BYTES:
                        self._kept.append(outputs)
                        self._kept_bytes += size
            yield feed, outputs

    def _agreement(self, comparison: Comparison) -> Figures:
        rows = agreement_figures(comparison, input_specs(self._analysis.model), len(self._setup.feeds))
        problem = next((o.problem for o in comparison.outputs if o.problem), None)
        if problem is not None:
            return Figures(error=f"the outputs cannot be compared: {problem}")
        discrete = [o.mismatch for o in comparison.outputs if o.n_discrete]
        return Figures(
            relative_error=_rounded(rows["relative_error"]),
            cosine=_rounded(rows["cosine"]),
            top1=_rounded(rows["top1"]),
            mismatch=float(np.max(discrete)) if discrete else None,
        )


def _rounded(value: float | None) -> float | None:
    return float(f"{value:.{DIGITS}g}") if value is not None and math.isfinite(value) else None
