"""Models of any size between the original and the least: planned, made and measured once each."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from ..axes.costs import Cost
from ..graph.model import Model
from ..planfile import Plan
from ..select.choose import Ranking, settle
from ..select.target import least_cost
from ..trade import Point

Build = Callable[[Plan], Model]
Say = Callable[[str], None]
ROUNDING = 1e-9


def say_nothing(_: str) -> None:
    """Take a line about progress and drop it."""


@dataclass(frozen=True)
class Sizes:
    """The plans that one ranking leads to, by the fraction of `by` ("params", "macs" or "bytes") that may remain.

    `others` are targets that every plan meets as well. `build` makes the model of a plan; `say` is told what is under
    way.
    """

    ranking: Ranking
    by: str
    build: Build
    others: Mapping[str, float] = field(default_factory=dict)
    scope: str | None = None
    say: Say = say_nothing

    @property
    def most(self) -> float:
        """The largest fraction of `by`."""
        return self.others.get(self.by, 1.0)

    @property
    def least(self) -> float:
        """The least fraction of `by` that can be had."""
        analysis = self.ranking.analysis
        return self._fraction(least_cost(analysis, self.ranking.candidates))

    def plan(self, fraction: float) -> Plan:
        """Decide what goes so that at most `fraction` of `by` stays, or the least where that is more.

        Raises `TargetError` where `others` are out of reach.
        """
        allowed = max(min(fraction, self.most), self.least * (1 + ROUNDING))
        return settle(self.ranking, {**self.others, self.by: allowed}, scope=self.scope)

    def reached(self, plan: Plan) -> float:
        """Give the fraction of `by` that a plan leaves."""
        analysis = self.ranking.analysis
        return self._fraction(analysis.costs(analysis.alive({g.id: g.removed for g in plan.groups})))

    def _fraction(self, cost: Cost) -> float:
        return float(getattr(cost, self.by) / max(1, getattr(self.ranking.analysis.cost, self.by)))


@dataclass(frozen=True)
class Trial:
    """A plan with the figures that were measured of its model, and the point it is on the curve.

    `allowed` is the largest fraction that led to this plan; what it reaches, in `point`, may be well below.
    """

    plan: Plan
    point: Point
    figures: Any
    allowed: float


@dataclass
class Trials:
    """The trials of a search. `measure` gives figures of a model, `judge` their value and whether it is good enough.

    Equal plans are measured once.
    """

    sizes: Sizes
    measure: Callable[[Model], Any]
    judge: Callable[[Any], tuple[float, bool]]
    all: list[Trial] = field(default_factory=list)

    def at(self, fraction: float) -> Trial:
        """Make and measure the model of a fraction."""
        plan = self.sizes.plan(fraction)
        for k, known in enumerate(self.all):
            if known.plan.groups == plan.groups:
                self.all[k] = replace(known, allowed=max(known.allowed, fraction))
                return self.all[k]
        self.all.append(self._trial(plan, self.measure(self.sizes.build(plan)), fraction))
        return self.all[-1]

    def again(self, trial: Trial, measure: Callable[[Model], Any]) -> Trial:
        """Measure a trial's model in another way, whose figures take the place of the first."""
        better = self._trial(trial.plan, measure(self.sizes.build(trial.plan)), trial.allowed)
        self.all[self.all.index(trial)] = better
        return better

    def _trial(self, plan: Plan, figures: Any, allowed: float) -> Trial:
        value, holds = self.judge(figures)
        return Trial(plan, Point(self.sizes.reached(plan), value, holds), figures, allowed)

    @property
    def points(self) -> tuple[Point, ...]:
        """What was measured, by rising size."""
        return tuple(sorted((trial.point for trial in self.all), key=lambda p: (p.fraction, p.value)))
