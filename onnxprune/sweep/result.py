"""What a sweep gives, as values and as a document."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from ..axes.costs import Cost
from ..errors import NotMetError
from .bench import Figures

FIGURES = ("relative_error", "cosine", "top1", "mismatch", "metric")


@dataclass(frozen=True)
class SensitivityCell:
    """One group pruned alone at one ratio: how many units went, what is left, and how much it hurt."""

    ratio: float
    removed: int
    figures: Figures
    cost: Cost

    def to_json(self) -> dict[str, Any]:
        """Give the cell as `sensitivity --json` has it."""
        return {"ratio": self.ratio, "removed": self.removed, **asdict(self.figures), **asdict(self.cost)}


@dataclass(frozen=True)
class SensitivityGroup:
    """One group at every ratio; `locked` says why it has no cells."""

    id: str
    kind: str
    size: int
    exact: bool
    locked: str | None
    cells: tuple[SensitivityCell, ...]

    def to_json(self) -> dict[str, Any]:
        """Give the group as `sensitivity --json` has it."""
        row = {"id": self.id, "kind": self.kind, "size": self.size, "exact": self.exact, "locked": self.locked}
        return {**row, "cells": [cell.to_json() for cell in self.cells]}


@dataclass(frozen=True)
class Sensitivity:
    """How much each group hurts at several ratios.

    `original` holds the figures of the model as it is, `run` what may differ between runs that give the same result:
    jobs, backend, seconds, how many cells were measured and how many came out of a journal.
    """

    source_sha256: str
    criterion: str
    ratios: tuple[float, ...]
    data: str | None
    n_feeds: int
    metric: str | None
    original: Figures
    cost: Cost
    groups: tuple[SensitivityGroup, ...]
    run: Mapping[str, Any] = field(default_factory=dict, compare=False)

    @property
    def figure(self) -> str:
        """Name the figure that says most: the user's metric, the relative error, or the mismatch of integers."""
        if self.metric is not None:
            return "metric"
        return "relative_error" if self.original.relative_error is not None else "mismatch"

    @property
    def failures(self) -> tuple[tuple[str, SensitivityCell], ...]:
        """The cells that could not be measured, with their groups."""
        return tuple((g.id, c) for g in self.groups for c in g.cells if c.figures.error is not None)

    def raise_if_failed(self) -> Sensitivity:
        """Give the result back when every cell was measured, else raise `NotMetError` with the first that was not."""
        if not self.failures:
            return self
        group, cell = self.failures[0]
        n = sum(len(g.cells) for g in self.groups)
        raise NotMetError(
            f"{len(self.failures)} of {n} cells could not be measured; the first is group {group!r} at {cell.ratio:g}: "
            f"{cell.figures.error}"
        )

    def to_json(self) -> dict[str, Any]:
        """Give the document of `sensitivity --json`; `run` alone may differ between equal runs."""
        return {
            "source_sha256": self.source_sha256,
            "criterion": self.criterion,
            "ratios": list(self.ratios),
            "data": self.data,
            "n_feeds": self.n_feeds,
            "metric": self.metric,
            "figure": self.figure,
            "original": {**asdict(self.original), **asdict(self.cost)},
            "groups": [group.to_json() for group in self.groups],
            "run": dict(self.run),
        }
