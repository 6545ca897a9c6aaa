"""Criteria on numbers worked out by hand, and on the masks of the original sparsifiers where those are at hand."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

import numpy as np
import pytest

import onnxprune
from onnxprune.axes.analysis import analyze_model
from onnxprune.criteria import criteria, criterion, group_scores, unit_scores
from onnxprune.criteria.units import gather_rows
from onnxprune.errors import ModelError, OptionError, UnknownNameError
from tests.test_engine import model_of, node
from tests.test_select import chain, set_weight

ZOO = os.environ.get("ONNXPRUNE_ZOO")
GOLDEN = Path(ZOO).parent / "golden" if ZOO else None


# --- arrays ---

W = np.array([[3.0, -4.0], [0.0, 1.0], [0.0, 0.0], [-6.0, 8.0]], dtype=np.float32)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("l1", [7, 1, 0, 14]),
        ("l2", [5, 1, 0, 10]),
        # energies 25, 1, 0, 100; each over the sum of those at least as large
        ("lamp", [25 / 125, 1 / 126, 0 / 126, 1]),
        # distances between (3,-4), (0,1), (0,0), (-6,8)
        ("fpgm", [34**0.5 + 5 + 15, 34**0.5 + 1 + 85**0.5, 5 + 1 + 10, 15 + 85**0.5 + 10]),
        ("bn_scale", [7, 1, 0, 14]),
    ],
)
def test_scores_worked_out_by_hand(name: str, expected: list[float]) -> None:
    np.testing.assert_allclose(unit_scores(W, name), expected, rtol=1e-12)


def test_other_axes_and_ranks() -> None:
    np.testing.assert_allclose(unit_scores(W, "l1", axis=1), [9, 13], rtol=1e-12)
    cube = np.arange(24, dtype=np.float64).reshape(2, 3, 4)
    np.testing.assert_allclose(unit_scores(cube, "l1", axis=1), [60, 92, 124], rtol=1e-12)
    np.testing.assert_allclose(unit_scores(cube, "l1", axis=-1), unit_scores(cube, "l1", axis=2), rtol=0)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_storage_types_score_alike(dtype: type) -> None:
    for name in ("l1", "l2", "lamp"):
        scores = unit_scores(W.astype(dtype), name)
        assert scores.dtype == np.float64
        np.testing.assert_allclose(scores, unit_scores(W.astype(np.float64), name), rtol=1e-12)


def test_half_precision_does_not_overflow() -> None:
    big = np.full((2, 300), 300.0, dtype=np.float16)
    np.testing.assert_allclose(unit_scores(big, "l2"), [300 * 300**0.5] * 2, rtol=1e-12)


def test_fpgm_stays_exact_under_a_large_common_mean() -> None:
    small = np.random.default_rng(3).standard_normal((12, 7))
    shifted = (small + 2.0**20).astype(np.float64)
    direct = np.array([[np.linalg.norm(a - b) for b in shifted] for a in shifted]).sum(axis=1)
    np.testing.assert_allclose(unit_scores(shifted, "fpgm"), direct, rtol=1e-12)
    np.testing.assert_allclose(unit_scores(shifted, "fpgm"), unit_scores(small, "fpgm"), rtol=1e-8)


def test_fpgm_in_blocks_is_fpgm() -> None:
    rows = np.random.default_rng(4).standard_normal((70, 2000))
    direct = [np.sqrt(((rows - r) ** 2).sum(axis=1)).sum() for r in rows]
    np.testing.assert_allclose(unit_scores(rows, "fpgm"), direct, rtol=1e-12)


def test_the_same_rows_score_the_same() -> None:
    rows = np.ones((5, 4), dtype=np.float32)
    for name in ("l1", "l2", "fpgm"):
        assert len(set(unit_scores(rows, name).tolist())) == 1, name


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_weights_that_are_not_finite_are_refused(value: float) -> None:
    bad = W.copy()
    bad[0, 0] = value
    with pytest.raises(OptionError, match="not finite"):
        unit_scores(bad)
    model = chain(6)
    array = np.ones((6, 5))
    array[1, 1] = value
    set_weight(model, "w0", array)
    with pytest.raises(ModelError, match="'w0'"):
        onnxprune.plan(model, ratio=0.5)


def test_arguments_are_checked() -> None:
    with pytest.raises(UnknownNameError, match="Did you mean 'fpgm'"):
        unit_scores(W, "fpg")
    with pytest.raises(OptionError, match="axis 2"):
        unit_scores(W, axis=2)


# --- groups ---


def test_a_groups_score_is_the_mean_of_its_weights_scores_at_mean_one() -> None:
    model = chain(4)
    analysis = analyze_model(model)
    (group,) = analysis.groups
    scores, used = group_scores(analysis, group, "l2")
    one, two = (unit_scores(model.array(n), "l2", axis) for n, axis in (("w0", 0), ("w1", 1)))
    np.testing.assert_allclose(scores, (one / one.mean() + two / two.mean()) / 2, rtol=1e-12)
    np.testing.assert_allclose(scores.mean(), 1, rtol=1e-12)
    assert used == {"criterion": "l2"}


def test_bn_scale_reads_the_norms_and_says_when_there_is_none() -> None:
    nodes = [node("Conv", "x wa", "a"), node("BatchNormalization", "a s b m v", "c"), node("Conv", "c wb", "y")]
    model = model_of(
        nodes, {"wa": (4, 3, 1, 1), "wb": (5, 4, 1, 1), **dict.fromkeys("sbmv", (4,))}, (2, 3, 6, 7), (2, 5, 6, 7)
    )
    set_weight(model, "s", np.array([0.5, -4.0, 1.0, 2.5]))
    analysis = analyze_model(model)
    scores, used = group_scores(analysis, analysis.groups[0], "bn_scale")
    np.testing.assert_allclose(scores, np.array([0.5, 4, 1, 2.5]) / 2, rtol=1e-12)
    assert used == {"criterion": "bn_scale"}
    analysis = analyze_model(chain(4))
    _, used = group_scores(analysis, analysis.groups[0], "bn_scale")
    assert used == {"criterion": "bn_scale", "instead": "l2"}


def test_random_depends_on_the_seed_and_the_group_alone() -> None:
    one, other = analyze_model(chain(9)), analyze_model(chain(9))
    a, used = group_scores(one, one.groups[0], "random", 5)
    np.testing.assert_array_equal(a, group_scores(other, other.groups[0], "random", 5)[0])
    assert (a != group_scores(one, one.groups[0], "random", 6)[0]).all()
    assert used == {"criterion": "random", "seed": 5}


def test_rows_of_a_unit_are_gathered_from_wherever_they_are() -> None:
    slices = np.arange(10.0).reshape(5, 2)
    rows = gather_rows(slices, np.array([1, 0, -1, 1, 1]), 2)
    np.testing.assert_array_equal(rows, [[2, 3, 0, 0, 0, 0], [0, 1, 6, 7, 8, 9]])


def test_a_criterion_of_ones_own() -> None:
    @criterion("largest")
    def largest(rows: np.ndarray) -> np.ndarray:
        return np.abs(rows).max(axis=1)

    try:
        np.testing.assert_allclose(unit_scores(W, "largest"), [4, 1, 0, 8], rtol=0)
        assert "largest" in criteria
        with pytest.raises(OptionError, match="already registered"):
            criterion("largest")(largest)
    finally:
        criteria._entries.pop("largest")


# --- the original sparsifiers ---


def golden_cases(family: str) -> list[tuple[str, np.ndarray, np.ndarray]]:
    """Read (id, weight, kept rows) of a family's cases that bind bit for bit."""
    assert GOLDEN is not None
    index = json.loads((GOLDEN / "golden_index.json").read_text())
    with np.load(GOLDEN / "golden_data.npz") as data:
        packed = data["masks"]
    found = []
    for case in index["cases"]:
        if case["family"] != family or case["check"] != "exact" or case["params"]["dist"] != 2:
            continue
        spec, mask = case["inputs"]["W"], case["masks"]["rows"]
        if not {"seed", "shape", "scale", "offset"} <= set(spec) or "post" in spec:
            continue
        values = np.random.RandomState(spec["seed"]).standard_normal(tuple(spec["shape"])).astype(np.float32)
        weight = values * np.float32(spec["scale"]) + np.float32(spec["offset"])
        assert hashlib.sha256(weight.tobytes()).hexdigest()[:16] == spec["sha"]
        at, n = mask["at"]
        kept = np.unpackbits(packed[at : at + n])[: int(np.prod(mask["shape"]))].astype(bool)
        found.append((case["id"], weight, kept))
    return found


@pytest.mark.skipif(GOLDEN is None or not GOLDEN.is_dir(), reason="no golden masks beside ONNXPRUNE_ZOO")
def test_fpgm_prunes_what_torchao_prunes() -> None:
    cases = golden_cases("torchao.fpgm")
    assert len(cases) >= 20
    for name, weight, kept in cases:
        order = np.argsort(unit_scores(weight, "fpgm"), kind="stable")
        gone = np.sort(order[: int((~kept).sum())])
        np.testing.assert_array_equal(np.flatnonzero(~kept), gone, err_msg=name)
