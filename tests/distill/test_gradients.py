"""Criteria by gradients, on numbers worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest

import onnxprune
from onnxprune.axes.analysis import analyze_model
from onnxprune.axes.groups import Member
from onnxprune.criteria.data import GradientCriterion, fisher, taylor
from onnxprune.criteria.registry import criteria
from onnxprune.data import load_data
from onnxprune.errors import OptionError
from onnxprune.recover.gradients import per_unit, score_by_gradients
from tests.recover.test_products import draw, model_of
from tests.recover.test_recover import feeds, mlp

WEIGHT = np.array([[1.0, -2.0, 0.0], [3.0, 0.5, -1.0]])
GRADIENT = np.array([[0.5, 1.0, 9.0], [0.0, 4.0, 2.0]])


def chosen(name: str) -> GradientCriterion:
    found = criteria[name]
    assert isinstance(found, GradientCriterion)
    return found


def test_saliencies_worked_out_by_hand() -> None:
    assert taylor(WEIGHT, GRADIENT).tolist() == [[0.5, 2, 0], [0, 2, 2]]
    assert fisher(WEIGHT, GRADIENT).tolist() == [[0.25, 2, 0], [0, 0.5, 1]]


def test_units_sum_over_their_slices() -> None:
    member = Member("w", 1, "input", np.array([1, 0, 1]), 0)
    assert per_unit(np.array([[1.0, 2.0, 4.0], [8.0, 16.0, 32.0]]), member, 3).tolist() == [18, 45, 0]
    other = Member("w", 0, "output", np.array([-1, 0]), 0)
    assert per_unit(WEIGHT, other, 1).tolist() == [2.5]


@pytest.mark.parametrize("name", ["taylor", "fisher"])
def test_gradients_towards_drawn_targets_worked_out_by_hand(name: str) -> None:
    """For y = (x w1) w2 and noise e on y the gradients are outer products, which numpy can form."""
    torch = pytest.importorskip("torch")
    w1, w2 = draw(3, 4), draw(4, 2)
    model = model_of("g (float[n, 3] x) => (float[n, 2] y) { h = MatMul (x, w1)  y = MatMul (h, w2) }", w1=w1, w2=w2)
    analysis = analyze_model(model)
    (group,) = analysis.groups
    samples = feeds((1, 3), 5)
    found = score_by_gradients(analysis, [group], chosen(name), load_data(samples, model), seed=7, threads=1)
    scores, used = found[group.id]

    generator = torch.Generator().manual_seed(7)
    ys = np.stack([f["x"] @ w1 @ w2 for f in samples])
    spread = np.sqrt(((ys - ys.mean(axis=0)) ** 2).mean())
    power = 1 if name == "taylor" else 2
    sums = [np.zeros((3, 4)), np.zeros((4, 2))]
    for feed in samples:
        e = torch.randn((1, 2), generator=generator).numpy() / 2 / spread
        sums[0] += np.abs(feed["x"].T @ (e @ w2.T)) ** power
        sums[1] += np.abs((feed["x"] @ w1).T @ e) ** power
    parts = [(np.abs(w) if power == 1 else w**2 / 2) * s / 5 for w, s in zip((w1, w2), sums, strict=True)]
    expected = (parts[0].sum(axis=0) + parts[1].sum(axis=1)) / 2
    np.testing.assert_allclose(scores, expected, rtol=1e-4)
    assert used["criterion"] == name
    assert np.ptp(expected) > 0.1 * expected.mean()


@pytest.mark.parametrize("name", ["taylor", "fisher"])
def test_dead_units_go_first(name: str) -> None:
    pytest.importorskip("torch")
    model = mlp()
    names = ("w1", "b1", "w2", "b2", "w3", "b3")
    arrays = {n: model.array(n).copy() for n in names}
    arrays["w2"][[2, 5]] = 0
    arrays["w1"][:, [2, 5]] = 0
    text = """g (float[n, 6] x) => (float[n, 5] y)
    { a = Gemm (x, w1, b1)  h = Relu (a)  c = Gemm (h, w2, b2)  k = Relu (c)  y = Gemm (k, w3, b3) }"""
    plan = onnxprune.plan(
        model_of(text, **arrays), ratio=0.25, criterion=name, data=feeds((1, 6), 8), include=["b1"], threads=1
    )
    (removed,) = (g.removed for g in plan.groups if g.size == 12)
    # Unit 10 is below zero on all samples, and as dead to gradients.
    assert removed == (2, 5, 10)


@pytest.mark.parametrize("name", ["taylor", "fisher"])
def test_without_data_they_say_so(name: str) -> None:
    with pytest.raises(OptionError, match="needs data"):
        onnxprune.plan(mlp(), ratio=0.4, criterion=name)
    with pytest.raises(OptionError, match="needs data"):
        onnxprune.unit_scores(WEIGHT, name)


def test_the_same_seed_draws_the_same_targets() -> None:
    pytest.importorskip("torch")
    plans = [onnxprune.plan(mlp(), target={"macs": 0.5}, criterion="fisher", data=feeds((1, 6), 8), threads=1, seed=3)
             for _ in range(2)]  # fmt: skip
    assert plans[0].dumps() == plans[1].dumps()
