"""Criteria that look at data: what a unit is worth to the products that read it.

Such a criterion is one function of a `Consumer`, and gives one cost per unit: what the output of that product loses
with it. Costs of all consumers of a unit are summed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from ..axes.labels import Labels
from .registry import Criterion, Rows, criteria

RIDGE = 1e-2
FEW_ROWS = 0.1
LEAST_RIDGE = 1e-6


@dataclass(frozen=True)
class Consumer:
    """A product y = W x that reads the units of one group, with moments of x over the samples.

    `weight` is (outputs, features), `unit` (features,) the unit that a feature belongs to, -1 where it is of another
    group; `size` counts the units. `mean`, `square`, `variance` and `zeros` are (features,), `gram` is E[x x^T].
    Moments that the criterion did not ask for are None. float64. `n_rows` counts the vectors x they are made from.
    """

    weight: Rows
    unit: Labels
    size: int
    mean: Rows | None = None
    square: Rows | None = None
    variance: Rows | None = None
    zeros: Rows | None = None
    gram: Rows | None = None
    n_rows: int = 0

    def per_unit(self, values: Rows) -> Rows:
        """Sum numbers per feature over the features of every unit: (size,)."""
        inside = self.unit >= 0
        return np.asarray(np.bincount(self.unit[inside], weights=values[inside], minlength=self.size), np.float64)

    def centered(self) -> Rows:
        """Give E[x x^T] - E[x] E[x]^T: what a bias can make up for costs nothing."""
        assert self.gram is not None
        assert self.mean is not None
        return self.gram - np.outer(self.mean, self.mean)

    @property
    def ridge(self) -> float:
        """By what part to raise the diagonal of a covariance: more where there are few rows for the features.

        Fewer rows than features leave directions in which nothing was seen, and where everything seems to cost nothing.
        Each feature is raised by its own variance, so that one that never moves stays free to remove.
        """
        return max(RIDGE, FEW_ROWS * len(self.unit) / max(1, self.n_rows))


ScoreConsumer = Callable[[Consumer], Rows]


@dataclass(frozen=True)
class DataCriterion(Criterion):
    """A criterion that needs data: `cost` of a consumer, out of the moments in `needs`.

    `relative` costs are parts of the energy of the consumer's output, so that they compare between groups.
    """

    cost: ScoreConsumer | None = None
    relative: bool = False


def data_criterion(
    name: str, *needs: str, relative: bool = False, replace: bool = False
) -> Callable[[ScoreConsumer], ScoreConsumer]:
    """Register a function of a `Consumer` as the criterion `name`.

    `needs` names some of "mean", "square", "variance", "zeros" and "gram"; see `DataCriterion` for `relative`.
    """

    def file(cost: ScoreConsumer) -> ScoreConsumer:
        criteria.register(name, replace=replace)(
            DataCriterion(name, _no_rows, normalized=relative, needs=tuple(needs), cost=cost, relative=relative)
        )
        return cost

    return file


def _no_rows(_: Rows) -> Rows:
    raise TypeError("this criterion scores units by data, not by weights alone")


@data_criterion("activation", "square")
def activation(consumer: Consumer) -> Rows:
    """Energy of the unit: the sum of E[x^2] over its features."""
    assert consumer.square is not None
    return consumer.per_unit(consumer.square)


@data_criterion("variance", "variance")
def variance(consumer: Consumer) -> Rows:
    """Variance of the unit: what is left of its energy when a bias replaces its mean."""
    assert consumer.variance is not None
    return consumer.per_unit(consumer.variance)


@data_criterion("apoz", "zeros")
def apoz(consumer: Consumer) -> Rows:
    """One minus the average fraction of zeros.

    Source: Hu et al., Network Trimming, arXiv 1607.03250, eq. 1.
    """
    assert consumer.zeros is not None
    counts = np.maximum(consumer.per_unit(np.ones(len(consumer.unit))), 1.0)
    return 1.0 - consumer.per_unit(consumer.zeros) / counts


@data_criterion("wanda", "square")
def wanda(consumer: Consumer) -> Rows:
    """Sum of |W| sqrt(E[x^2]) over the columns of the unit.

    Source: Sun et al., A Simple and Effective Pruning Approach for Large Language Models, ICLR 2024, eq. 1; summed
    over a structure.
    """
    assert consumer.square is not None
    return consumer.per_unit(np.abs(consumer.weight).sum(axis=0) * np.sqrt(consumer.square))


@data_criterion("obs", "mean", "gram", relative=True)
def obs(consumer: Consumer) -> Rows:
    """What removing a unit costs the output when all other columns make up for it: 1/2 tr(W_P [(H^-1)_PP]^-1 W_P^T).

    H is the covariance of the features, its diagonal raised a little. Source: Hassibi and Stork, Second order
    derivatives for network pruning: Optimal Brain Surgeon, NeurIPS 1992, for a block of weights.
    """
    return Surgeon(consumer).costs()


SaliencyOf = Callable[[Rows, Rows], Rows]


@dataclass(frozen=True)
class GradientCriterion(Criterion):
    """A criterion that needs gradients: `saliency` of a weight's elements, summed over a unit.

    It gets the weight and, in its shape, the mean over the samples of what `needs` names: "absolute" or "squared"
    gradients of the loss. Sums are losses, and compare between groups as they are.
    """

    saliency: SaliencyOf | None = None


def gradient_criterion(name: str, need: str, *, replace: bool = False) -> Callable[[SaliencyOf], SaliencyOf]:
    """Register a function of a weight and its mean "absolute" or "squared" gradients as the criterion `name`."""

    def file(saliency: SaliencyOf) -> SaliencyOf:
        criteria.register(name, replace=replace)(
            GradientCriterion(name, _no_rows, normalized=True, needs=(need,), saliency=saliency)
        )
        return saliency

    return file


@gradient_criterion("taylor", "absolute")
def taylor(weight: Rows, gradient: Rows) -> Rows:
    """|w| E|g|: what the loss changes by to first order when the weight goes.

    Source: Molchanov et al., Importance Estimation for Neural Network Pruning, CVPR 2019, eq. 8, without the square.
    """
    return np.asarray(np.abs(weight) * gradient)


@gradient_criterion("fisher", "squared")
def fisher(weight: Rows, gradient: Rows) -> Rows:
    """1/2 w^2 E[g^2]: what the loss rises by to second order, with the Fisher information as the Hessian's diagonal.

    Source: LeCun et al., Optimal Brain Damage, NeurIPS 1989, eq. 5; Theis et al., Faster gaze prediction with dense
    networks and Fisher pruning, arXiv 1801.05787, eq. 6.
    """
    return np.asarray(0.5 * np.square(weight) * gradient)


class Surgeon:
    """Block Optimal Brain Surgeon over one product: removes units one batch after another and keeps H^-1 up to date.

    After `remove`, `weight` has zeros in the columns that are gone and makes up for them in the others.
    """

    def __init__(self, consumer: Consumer) -> None:
        unit, size, covariance = consumer.unit, consumer.size, consumer.centered()
        n = len(unit)
        self.weight = consumer.weight.copy()
        self.size = size
        order = np.argsort(unit, kind="stable")
        starts = np.searchsorted(unit[order], np.arange(size + 1))
        self.columns = [order[starts[u] : starts[u + 1]] for u in range(size)]
        level = float(np.trace(covariance)) / max(1, n)
        raised = consumer.ridge * np.diagonal(covariance) + LEAST_RIDGE * level + np.finfo(np.float32).tiny
        self.inverse = np.linalg.inv(covariance + np.diag(raised))
        self.alive = np.array([len(c) > 0 for c in self.columns])

    def costs(self) -> Rows:
        """Give the cost of every unit that is still there, 0 for others: (size,)."""
        cost = np.zeros(self.size)
        by_width: dict[int, list[int]] = {}
        for u in np.flatnonzero(self.alive):
            by_width.setdefault(len(self.columns[u]), []).append(int(u))
        for units in by_width.values():
            at = np.array([self.columns[u] for u in units])
            blocks = self.inverse[at[:, :, None], at[:, None, :]]
            parts = self.weight[:, at].transpose(1, 0, 2)
            solved = np.linalg.solve(blocks, parts.swapaxes(1, 2))
            cost[units] = 0.5 * np.einsum("uop,upo->u", parts, solved)
        return np.maximum(cost, 0.0)

    def remove(self, units: Labels) -> None:
        """Take units away; the columns that stay take over what they can."""
        gone = [self.columns[u] for u in units if self.alive[u]]
        if not gone:
            return
        at = np.concatenate(gone)
        rows = self.inverse[at]
        factor = np.linalg.solve(rows[:, at], rows)
        self.weight -= self.weight[:, at] @ factor
        self.weight[:, at] = 0.0
        self.inverse -= rows.T @ factor
        self.inverse[at] = 0.0
        self.inverse[:, at] = 0.0
        self.alive[units] = False
