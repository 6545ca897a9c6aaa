"""What compaction gives: the smaller model, the plan that cuts it, and for every group what went and what stayed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ..axes.analysis import Analysis
from ..axes.groups import Group
from ..graph.model import Model
from ..planfile import Plan
from ..verification import Verdict
from .decide import HOWS, Decision


@dataclass(frozen=True)
class GroupOutcome:
    """What happened to one group.

    `removed` maps how units went ("zero", "constant" folded into a bias, "ignored" by every reader, "duplicate" merged)
    to their indices. `kept` has the units that look dead and stay, with the reason. `observed` are those that would go
    if the data were all there is.
    """

    id: str
    kind: str
    size: int
    removed: Mapping[str, tuple[int, ...]]
    kept: tuple[tuple[int, str], ...]
    observed: tuple[int, ...] = ()

    @property
    def n_removed(self) -> int:
        """Number of units that went."""
        return sum(map(len, self.removed.values()))

    def to_json(self) -> dict[str, Any]:
        """Give the outcome as `compact --json` spells it."""
        return {
            "id": self.id,
            "kind": self.kind,
            "size": self.size,
            "removed": {how: list(units) for how, units in self.removed.items()},
            "kept": [{"unit": unit, "reason": reason} for unit, reason in self.kept],
            "observed": list(self.observed),
        }


@dataclass(frozen=True)
class CompactResult:
    """The smaller model (the source itself where nothing is dead), its plan, the outcomes and the verdict.

    `report` is None where nothing was removed or no verification was asked for.
    """

    model: Model
    plan: Plan
    analysis: Analysis
    groups: tuple[GroupOutcome, ...]
    report: Verdict | None = field(default=None)

    @property
    def n_removed(self) -> int:
        """Number of units that went."""
        return sum(group.n_removed for group in self.groups)


def outcomes(analysis: Analysis, decision: Decision, observed: Decision | None = None) -> tuple[GroupOutcome, ...]:
    """Sum up a decision, group by group; `observed` is the one that takes the data for all there is."""
    found = []
    for g, group in enumerate(analysis.groups):
        removed = decision.removed[g]
        more = sorted(set(observed.removed[g]) - set(removed)) if observed is not None else []
        kept = tuple(sorted((u, why) for u, why in decision.kept[g].items() if u not in removed))
        found.append(_outcome(group, removed, kept, tuple(more)))
    return tuple(found)


def _outcome(
    group: Group, removed: Mapping[int, str], kept: tuple[tuple[int, str], ...], observed: tuple[int, ...]
) -> GroupOutcome:
    by_how = {how: tuple(sorted(u for u, h in removed.items() if h == how)) for how in HOWS}
    return GroupOutcome(group.id, group.kind, group.size, {h: u for h, u in by_how.items() if u}, kept, observed)
