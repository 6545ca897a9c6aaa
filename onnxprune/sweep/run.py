"""A sweep: every prunable group at every ratio, one at a time, really rewritten and run."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnxruntime as ort

from .._version import __version__
from ..axes.costs import Cost
from ..data import Data
from ..errors import OptionError
from ..select.choose import Ranking
from .bench import Bench, Figures
from .cells import ORIGINAL, Cell, cells_of, check_ratios
from .journal import Journal
from .result import Sensitivity, SensitivityCell, SensitivityGroup
from .setup import Setup, make_setup, own_rules
from .workers import Outcome, Workers, outcomes

Progress = Callable[[int, int], None]
Table = Mapping[tuple[str, float], Cell]


@dataclass(frozen=True)
class Settings:
    """How a sweep is run: none of these but `ratios` and, for a metric that rounds, `threads` changes the result.

    `resume` names a journal; `progress(done, total)` is called after every cell.
    """

    ratios: Sequence[float]
    workers: Workers
    threads: int = 1
    resume: str | os.PathLike[str] | None = None
    progress: Progress | None = None

    def check(self) -> None:
        """Raise `OptionError` for a value out of range or a package that is missing."""
        check_ratios(self.ratios)
        self.workers.check()
        if self.threads < 1:
            raise OptionError(f"threads must be at least 1, not {self.threads}")


def measure_sensitivity(
    ranking: Ranking, settings: Settings, *, criterion: str, data: Data | None = None, metric: Any = None
) -> Sensitivity:
    """Prune each group of `ranking` alone at each ratio, and measure on `data`, by `metric`, or both.

    A group loses its least important units in the order of the ranking. Ratios that remove the same units are measured
    once.

    Raises `OptionError` for settings that do not fit, `ModelError`, `DataError` or `OptionError` when the original
    itself cannot be measured, `NotMetError` when workers die again and again.
    """
    started = time.perf_counter()
    settings.check()
    if data is None and metric is None:
        raise OptionError("say what to measure on: samples (--data SOURCE) or a metric (--metric FILE.py:FUNCTION)")
    analysis, ratios = ranking.analysis, check_ratios(settings.ratios)
    table = cells_of(ranking, ratios)
    setup = make_setup(analysis.model, data, settings.threads, analysis.collection.shapes.input_shapes)
    bench = Bench(setup, metric, analysis)
    found = {ORIGINAL: bench.measure(ORIGINAL)}
    cells = [cell for cell in dict.fromkeys(table.values()) if cell != ORIGINAL]
    n_known = 0
    with Journal(settings.resume, _identity(analysis.model.sha256, setup, metric)) as journal:
        for cell in cells:
            known = journal.get(cell)
            if known is not None:
                found[cell] = known
                n_known += 1
        missing = [cell for cell in cells if cell not in found]
        for outcome in _outcomes(bench, setup, metric, missing, settings.workers):
            found[outcome.cell] = outcome.figures
            journal.add(outcome.cell, outcome.figures)
            if settings.progress is not None:
                settings.progress(len(found) - 1, len(cells))
    return Sensitivity(
        source_sha256=analysis.model.sha256,
        criterion=criterion,
        ratios=ratios,
        data=data.label if data is not None else None,
        n_feeds=len(setup.feeds),
        metric=_name(metric),
        original=found[ORIGINAL],
        cost=analysis.cost,
        groups=tuple(_groups(ranking, ratios, table, found)),
        run={
            "seconds": round(time.perf_counter() - started, 3),
            "jobs": settings.workers.jobs,
            "backend": settings.workers.backend,
            "measured": len(missing),
            "resumed": n_known,
        },
    )


def _outcomes(bench: Bench, setup: Setup, metric: Any, cells: Sequence[Cell], workers: Workers) -> Iterator[Outcome]:
    if workers.in_process or not cells:
        return (Outcome(cell, bench(cell)) for cell in cells)
    return outcomes(setup, metric, own_rules(), cells, workers)


def _groups(
    ranking: Ranking, ratios: Sequence[float], table: Table, found: Mapping[Cell, Figures]
) -> Iterator[SensitivityGroup]:
    analysis = ranking.analysis
    for group in analysis.groups:
        cells = []
        for ratio in ratios if ranking.reasons[group.id] is None else ():
            cell = table[group.id, ratio]
            cost: Cost = analysis.costs(analysis.alive({group.id: cell.removed}))
            cells.append(SensitivityCell(ratio, len(cell.removed), found[cell], cost))
        locked = ranking.reasons[group.id]
        yield SensitivityGroup(group.id, group.kind, group.size, group.exact, locked, tuple(cells))


def _identity(source_sha256: str, setup: Setup, metric: Any) -> dict[str, Any]:
    """Say what a journal's cells depend on; which units a cell removes is in its own key."""
    return {
        "onnxprune": __version__,
        "onnxruntime": ort.__version__,
        "model": source_sha256,
        "data": setup.data_digest if setup.feeds else None,
        "metric": _name(metric),
        "metric file": _file_digest(metric),
        "threads": setup.threads,
        "input shapes": {name: list(shape) for name, shape in sorted(setup.input_shapes.items())},
    }


def _name(metric: Any) -> str | None:
    return metric if metric is None or isinstance(metric, str) else str(getattr(metric, "__qualname__", "metric"))


def _file_digest(metric: Any) -> str | None:
    path = Path(metric.rpartition(":")[0]) if isinstance(metric, str) else None
    if path is None or not path.is_file():
        return None
    return hashlib.sha256(path.read_bytes()).hexdigest()
