"""Sparsity shared between weights: exact totals, bounds, locks; and sparsity measured."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import onnxprune
from onnxprune.masks import Rule

QUICK = settings(deadline=None, derandomize=True, max_examples=60)


def scores() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(3)
    return {
        "weak": np.abs(rng.standard_normal((6, 8))) * 0.1,
        "strong": np.abs(rng.standard_normal((10, 12))),
        "conv": np.abs(rng.standard_normal((4, 8, 3, 3))) * 0.5,
    }


def gone(masks: dict[str, np.ndarray]) -> dict[str, int]:
    return {name: int((~mask).sum()) for name, mask in masks.items()}


def test_local_masks_are_those_of_each_weight_alone() -> None:
    given_ = scores()
    masks = onnxprune.keep_masks(given_, {"weak": "2:4", "conv": "1x4"}, {"strong": 0.25, "conv": 0.75})
    np.testing.assert_array_equal(masks["weak"], onnxprune.keep_mask(given_["weak"], "2:4"))
    np.testing.assert_array_equal(masks["strong"], onnxprune.keep_mask(given_["strong"], sparsity=0.25))
    np.testing.assert_array_equal(masks["conv"], onnxprune.keep_mask(given_["conv"], "1x4", 0.75))


def test_global_masks_are_one_ranking() -> None:
    given_ = scores()
    masks = onnxprune.keep_masks(given_, sparsity=0.4, scope="global")
    joined = np.concatenate([s.reshape(-1) for s in given_.values()])
    order = np.sort(joined)
    k = round(0.4 * joined.size)
    assert sum(gone(masks).values()) == k
    for name, mask in masks.items():
        np.testing.assert_array_equal(mask, given_[name] > order[k - 1])


def test_what_one_weight_may_not_give_the_others_do() -> None:
    given_ = scores()
    free = gone(onnxprune.keep_masks(given_, sparsity=0.5, scope="global"))
    capped = gone(onnxprune.keep_masks(given_, sparsity=0.5, scope="global", max_ratio=0.6))
    assert free["weak"] > 0.6 * 48
    assert capped["weak"] == 28
    assert sum(capped.values()) == sum(free.values()) == 228
    least = gone(onnxprune.keep_masks(given_, sparsity=0.5, scope="global", min_ratio={"strong": 0.45}))
    assert least["strong"] == 54 > free["strong"]
    assert sum(least.values()) == 228


def test_bounds_that_cannot_be_met() -> None:
    with pytest.raises(onnxprune.TargetError, match=r"at most 0\.3"):
        onnxprune.keep_masks(scores(), sparsity=0.5, scope="global", max_ratio=0.3)
    with pytest.raises(onnxprune.OptionError, match="minima"):
        onnxprune.keep_masks(scores(), sparsity=0.3, scope="global", min_ratio=0.4)
    with pytest.raises(onnxprune.OptionError, match="minimum <= maximum"):
        onnxprune.keep_masks(scores(), min_ratio=0.6, max_ratio=0.4)
    with pytest.raises(onnxprune.UnknownNameError, match="Did you mean 'weak'"):
        onnxprune.keep_masks(scores(), {"waek": "2:4"})
    with pytest.raises(onnxprune.OptionError, match="scope 'local'"):
        onnxprune.keep_masks(scores(), "nearly_diagonal(3)", scope="global")
    with pytest.raises(onnxprune.UnknownNameError, match="scope"):
        onnxprune.keep_masks(scores(), scope="layer")  # type: ignore[arg-type]


def test_patterns_of_different_sizes_share_a_number_of_weights() -> None:
    given_ = scores()
    masks = onnxprune.keep_masks(given_, {"weak": "2:4", "strong": "unstructured", "conv": "4x1"}, scope="global")
    assert sum(gone(masks).values()) == 228
    assert onnxprune.measure(masks["conv"], "4x1").valid_fraction == 1
    assert onnxprune.measure(masks["weak"], "2:4").valid_fraction == 1


def test_locked_weights_count_and_stay() -> None:
    given_ = scores()
    locked = {"strong": given_["strong"] > 1.5}
    masks = onnxprune.keep_masks(given_, sparsity=0.5, scope="global", locked=locked)
    assert not masks["strong"][locked["strong"]].any()
    assert sum(gone(masks).values()) == 228
    again = onnxprune.keep_masks(given_, sparsity=0.5, scope="global", locked={n: ~m for n, m in masks.items()})
    for name, mask in masks.items():
        np.testing.assert_array_equal(again[name], mask)


def test_one_unit_of_each_weight_stays_below_full_sparsity() -> None:
    tiny = {"a": np.zeros((2, 3)), "b": np.ones((4, 5))}
    masks = onnxprune.keep_masks(tiny, sparsity=0.5, scope="global")
    assert gone(masks) == {"a": 5, "b": 8}
    assert gone(onnxprune.keep_masks(tiny, sparsity=0.5, scope="global", rule=Rule(min_keep=0))) == {"a": 6, "b": 7}
    assert gone(onnxprune.keep_masks(tiny, sparsity=1, scope="global")) == {"a": 6, "b": 20}
    assert onnxprune.keep_masks({}, scope="global") == {}


@given(
    st.integers(0, 2**32 - 1), st.floats(0, 1), st.floats(0, 1), st.floats(0, 1), st.sampled_from(("1x1", "2x1", "1x3"))
)
@QUICK
def test_totals_are_exact_within_any_bounds(seed: int, low: float, target: float, high: float, pattern: str) -> None:
    low, target, high = sorted((low, target, high))
    rng = np.random.default_rng(seed)
    given_ = {n: rng.integers(0, 6, (4 + 2 * i, 6 + 3 * i)).astype(float) for i, n in enumerate("abc")}
    size = {"1x1": 1, "2x1": 2, "1x3": 3}[pattern]
    units = {n: s.size // size for n, s in given_.items()}
    least = {name: int(np.ceil(low * n - 1e-9)) for name, n in units.items()}
    most = {name: max(int(high * n + 1e-9), least[name]) for name, n in units.items()}
    k = round(target * sum(units.values()))
    masks = onnxprune.keep_masks(
        given_, pattern, target, scope="global", min_ratio=low, max_ratio=high, rule=Rule(min_keep=0)
    )
    done = {n: onnxprune.measure(m, pattern).complete for n, m in masks.items()}
    assert sum(done.values()) == min(max(k, sum(least.values())), sum(most.values()))
    for name in units:
        assert least[name] <= done[name] <= most[name]


def test_measure_tells_zeros_that_serve_the_pattern() -> None:
    mask = np.array([[0, 0, 1, 1, 0, 1, 1, 1, 0], [0, 0, 0, 0, 1, 1, 1, 1, 1]], dtype=bool)
    two_four = onnxprune.measure(mask, "2:4")
    assert (two_four.elements, two_four.zeros, two_four.units, two_four.complete, two_four.held) == (18, 8, 6, 4, 7)
    assert two_four.sparsity == pytest.approx(8 / 18)
    blocks = onnxprune.measure(mask, "1x4")
    assert (blocks.units, blocks.complete, blocks.held) == (6, 2, 5)
    assert blocks.valid_fraction == pytest.approx(5 / 8)
    assert onnxprune.measure(np.ones((2, 3), dtype=bool)).valid_fraction == 1
    with pytest.raises(onnxprune.OptionError, match="booleans"):
        onnxprune.measure(np.ones((2, 3)))
