"""Criteria with data, on numbers worked out by hand and against direct solutions."""

from __future__ import annotations

import numpy as np
import pytest

import onnxprune
from onnxprune.criteria import Consumer, DataCriterion, criteria
from onnxprune.criteria.data import Surgeon
from onnxprune.errors import OptionError
from tests.recover.test_products import draw
from tests.recover.test_recover import cnn, feeds, mlp

WEIGHT = np.array([[1.0, 2.0, 0.0, 3.0, 1.0], [0.0, -1.0, 4.0, 1.0, 1.0]])
UNIT = np.array([0, 1, 1, 2, -1])


def cost(name: str, consumer: Consumer) -> list[float]:
    chosen = criteria[name]
    assert isinstance(chosen, DataCriterion)
    assert chosen.cost is not None
    return [float(c) for c in chosen.cost(consumer)]


def test_costs_worked_out_by_hand() -> None:
    square = np.array([4.0, 1.0, 9.0, 16.0, 25.0])
    consumer = Consumer(WEIGHT, UNIT, 3, square=square, variance=square / 2, zeros=np.array([0.5, 0.0, 1.0, 0.25, 0.9]))
    assert cost("activation", consumer) == [4, 10, 16]
    assert cost("variance", consumer) == [2, 5, 8]
    assert cost("apoz", consumer) == [0.5, 0.5, 0.75]
    # |W| column sums 1, 3, 4, 4 times 2, 1, 3, 4
    assert cost("wanda", consumer) == [2, 15, 16]


def test_without_correlation_obs_is_the_energy_that_goes() -> None:
    covariance = np.diag([4.0, 1.0, 9.0, 16.0, 25.0])
    consumer = Consumer(WEIGHT, UNIT, 3, mean=np.zeros(5), gram=covariance, n_rows=10**6)
    expected = [0.5 * 4, 0.5 * (5 * 1 + 16 * 9), 0.5 * 10 * 16]
    np.testing.assert_allclose(np.array(cost("obs", consumer)) / 1.01, expected, rtol=1e-4)


def correlated() -> Consumer:
    x = draw(500, 7).astype(np.float64)
    x[:, 5] = x[:, 0] + 0.01 * x[:, 5]
    weight = draw(4, 7, seed=2).astype(np.float64)
    return Consumer(weight, np.array([0, 1, 2, 2, 3, 4, -1]), 5, mean=x.mean(0), gram=x.T @ x / 500, n_rows=500)


def test_of_two_that_say_the_same_one_is_free() -> None:
    consumer = correlated()
    surgeon = Surgeon(consumer)
    first = surgeon.costs()
    alone = 0.5 * np.square(consumer.weight).sum(axis=0) * np.diagonal(consumer.centered())
    assert first[0] < 0.1 * alone[0]
    surgeon.remove(np.array([0]))
    second = surgeon.costs()
    assert second[0] == 0
    assert second[4] > 0.5 * alone[5] > 5 * first[4]


def test_what_a_surgeon_leaves_solves_least_squares() -> None:
    consumer = correlated()
    surgeon = Surgeon(consumer)
    for units in ([2], [0, 3]):
        surgeon.remove(np.array(units))
    kept = np.array([1, 5, 6])
    h = consumer.centered()
    h = h + np.diag(consumer.ridge * np.diagonal(h) + 1e-6 * np.trace(h) / 7)
    wish = consumer.weight @ h[:, kept] @ np.linalg.inv(h[np.ix_(kept, kept)])
    np.testing.assert_allclose(surgeon.weight[:, kept], wish, rtol=1e-8, atol=1e-10)
    assert not surgeon.weight[:, [0, 2, 3, 4]].any()


@pytest.mark.parametrize("name", ["activation", "apoz", "obs", "variance", "wanda"])
@pytest.mark.parametrize("how", [{"ratio": 0.5}, {"target": {"macs": 0.5}}])
def test_every_criterion_ranks_a_network(name: str, how: dict[str, object]) -> None:
    model = cnn()
    plan = onnxprune.plan(model, criterion=name, data=feeds((2, 3, 8, 7), 6), **how)
    assert not plan.empty
    used = [g.score for g in plan.groups if g.removed]
    assert {u["criterion"] for u in used} == {name}
    again = onnxprune.plan(model, criterion=name, data=feeds((2, 3, 8, 7), 6), **how)
    assert again.dumps() == plan.dumps()


def _of(plan: onnxprune.Plan, group: str) -> set[int]:
    return next(set(g.removed) for g in plan.groups if g.id == group)


def test_dead_units_go_first() -> None:
    model = mlp()
    arrays = {n: model.array(n).copy() for n in ("w1", "b1", "w2", "b2", "w3", "b3")}
    # Large weights, but the unit never fires.
    arrays["w2"][5] *= 50
    arrays["b1"][5] = -100
    from tests.recover.test_products import model_of
    from tests.recover.test_recover import MLP

    model = model_of(MLP, **arrays)
    for name in ("activation", "obs", "wanda", "variance", "apoz"):
        plan = onnxprune.plan(model, ratio=0.1, criterion=name, data=feeds((32, 6)))
        assert _of(plan, "w1") == {5}, name
    assert 5 not in _of(onnxprune.plan(model, ratio=0.1), "w1")


def test_criteria_that_look_at_data_say_so() -> None:
    with pytest.raises(OptionError, match="needs data"):
        onnxprune.unit_scores(WEIGHT, "wanda")
    with pytest.raises(OptionError, match="--data"):
        onnxprune.plan(mlp(), ratio=0.5, criterion="activation")


def test_a_criterion_of_ones_own() -> None:
    @onnxprune.data_criterion("loudest_first", "square", replace=True)
    def loudest_first(consumer: Consumer) -> np.ndarray:
        assert consumer.square is not None
        return -consumer.per_unit(consumer.square)

    samples = feeds((32, 6))
    plans = {n: onnxprune.plan(mlp(), ratio=0.5, criterion=n, data=samples) for n in ("loudest_first", "activation")}
    removed = {n: _of(p, "w1") for n, p in plans.items()}
    assert not removed["loudest_first"] & removed["activation"]
