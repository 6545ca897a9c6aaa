"""Cells: the single measurements of a sweep, each a group with the units it loses."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

from ..errors import OptionError
from ..select.choose import Ranking, local_count
from ..select.target import Candidate

RATIOS = (0.1, 0.3, 0.5)


@dataclass(frozen=True)
class Cell:
    """One measurement: the model with `removed`, sorted unit indices, taken out of one group and nothing else."""

    group: str
    removed: tuple[int, ...]

    @cached_property
    def key(self) -> str:
        """Name the cell in a journal: the group's id, the number of units and a digest of which."""
        digest = hashlib.sha256(",".join(map(str, self.removed)).encode()).hexdigest()[:16]
        return f"{self.group}/{len(self.removed)}/{digest}"


ORIGINAL = Cell("", ())


def check_ratios(ratios: Iterable[float]) -> tuple[float, ...]:
    """Sort ratios and drop repeated ones; raises `OptionError` for none, or one outside (0, 1)."""
    found = tuple(sorted(set(ratios)))
    if not found:
        raise OptionError("give at least one ratio, such as 0.1,0.3,0.5")
    for ratio in found:
        if not 0 < ratio < 1:
            raise OptionError(f"ratio {ratio:g} is out of range; it is the fraction to remove, above 0 and below 1")
    return found


def cells_of(ranking: Ranking, ratios: Sequence[float]) -> dict[tuple[str, float], Cell]:
    """Give the cell of every prunable group at every ratio; ratios that remove the same units share one.

    A ratio that removes no whole unit, or only units that alignment keeps, is the original.
    """
    return {(c.group.id, ratio): _cell(c, local_count(c, ratio)) for c in ranking.candidates for ratio in ratios}


def _cell(candidate: Candidate, count: int) -> Cell:
    return Cell(candidate.group.id, tuple(sorted(candidate.order[:count].tolist()))) if count else ORIGINAL
