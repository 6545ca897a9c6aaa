"""The runs: original, pruned model and masked twin one after the other, each on the same feeds."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import numpy as np
import onnxruntime as ort

from ..axes.costs import change
from ..data import Data, input_specs
from ..errors import ModelError
from ..graph.model import Model
from ..graph.session import open_session, output_names, run
from .checks import Check
from .compare import Comparison, is_float, leaves
from .figures import agreement_figures
from .latency import measure_latency
from .metric import Metric
from .outputs import Outputs

TWIN_FEEDS = 16


@dataclass
class Trial:
    """What the runs of one verification share and gather: first `run_original`, then `run_pruned`, then `run_twin`.

    Each opens a session and is done with it at its end. `figure` is the user's metric.
    """

    before: Model
    after: Model
    threads: int | None = None
    figure: Metric | None = None
    checks: list[Check] = field(default_factory=list)
    feeds: Data = field(init=False)
    names: list[str] = field(init=False)
    expected: Outputs = field(default_factory=Outputs)
    found: Outputs = field(default_factory=Outputs)
    agreement: Comparison | None = None
    twin: Comparison | None = None
    moved: Comparison | None = None
    twin_is_undefined: bool = False
    metrics: list[float] = field(default_factory=list)

    def run_original(self, choose: Callable[[ort.InferenceSession], tuple[Data, Sequence[Any] | None]]) -> None:
        """Run the original on the feeds that `choose` gives, with what it gave on the first where that is known.

        Raises `ModelError` when it does not load or run.
        """
        session = self._open(self.before)
        self.names = output_names(session)
        self.feeds, first = choose(session)
        for feed in self.feeds:
            outputs = first if first is not None else run(session, feed, self.before.label)
            self.expected.add(feed, outputs)
            first = None
        self._measure(session)

    def run_pruned(self) -> bool:
        """Run the pruned model, add the checks "runs" and "finite", and say whether it does run."""
        try:
            session = self._open(self.after)
            _refuse_other_outputs(output_names(session), self.names)
            agreement, finite = Comparison.of(self.names), dict[str, None]()
            for feed, expected in self.expected.beside(self.feeds, self.feeds.label):
                found = run(session, feed, self.after.label)
                agreement.add(expected, found)
                finite.update(dict.fromkeys(_not_finite(self.names, expected, found)))
                if len(self.found) < TWIN_FEEDS:
                    self.found.add(feed, found)
        except ModelError as error:
            self.checks.append(Check("runs", False, str(error)))
            return False
        self.agreement = agreement
        self.checks.append(Check("runs", True, f"{len(self.expected)} feeds of {self.feeds.label}"))
        detail = f"NaN or infinity where the original has none, in {', '.join(map(repr, finite))}" if finite else ""
        self.checks.append(Check("finite", not finite, detail))
        self._measure(session)
        return True

    def run_twin(self, twin: Model) -> None:
        """Compare the pruned model with the masked twin, and the twin with the original, on the first feeds."""
        session = self._open(twin)
        against, moved = Comparison.of(self.names), Comparison.of(self.names)
        kept = self.found.beside(self.feeds.start(), self.feeds.label)
        self.twin_is_undefined = False
        for (feed, found), expected in islice(zip(kept, self.expected.alone(), strict=False), TWIN_FEEDS):
            masked = run(session, feed, "the masked twin")
            against.add(masked, found)
            moved.add(expected, masked)
            self.twin_is_undefined |= any(_not_finite(self.names, found, masked))
        self.twin, self.moved = against, moved

    def _open(self, model: Model) -> ort.InferenceSession:
        # Threads that spin between the few runs of a proof cost more than they save; a metric may take many runs.
        return open_session(model, threads=self.threads, spinning=self.figure is not None)

    def _measure(self, session: ort.InferenceSession) -> None:
        if self.figure is not None:
            self.metrics.append(self.figure(session))

    def agreement_figures(self) -> dict[str, Any] | None:
        """Give the agreement with the original, None when the pruned model does not run."""
        if self.agreement is None:
            return None
        return agreement_figures(self.agreement, input_specs(self.before), len(self.expected))

    def latency(self) -> dict[str, Any] | None:
        """Time both models on the first feed."""
        if self.agreement is None:
            return None
        feed = next(iter(self.feeds.start()))
        return measure_latency(self.before, self.after, feed, threads=self.threads).to_json()

    def metric(self) -> dict[str, Any] | None:
        """Give the user's metric of both models, None when there is none or the pruned model does not run."""
        return change(*self.metrics) if len(self.metrics) == 2 else None


def _refuse_other_outputs(names: Sequence[str], expected: Sequence[str]) -> None:
    if len(names) != len(expected):
        raise ModelError(f"gives {len(names)} outputs, the original {len(expected)}")


def _not_finite(names: Sequence[str], expected: Sequence[Any], found: Sequence[Any]) -> Iterator[str]:
    """Give the outputs with a NaN or an infinity where the original has a finite number."""
    for name, before, after in zip(names, expected, found, strict=True):
        pairs = zip(leaves(before), leaves(after), strict=False)
        for x, y in pairs:
            if not (is_float(x) and is_float(y)):
                continue
            sound, bad = np.isfinite(x), ~np.isfinite(y)
            if (bad & sound).any() if x.shape == y.shape else (bad.any() and sound.all()):
                yield name
                break
