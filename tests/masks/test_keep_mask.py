"""keep_mask on small arrays whose masks were worked out by hand, and what holds for every array."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import onnxprune
from onnxprune.masks import Blocks, NofM, Transposable, VNofM, parse_pattern, patterns

QUICK = settings(deadline=None, derandomize=True, max_examples=60)


def mask_of(text: str) -> np.ndarray:
    """Read a mask drawn with x (survives) and . (goes)."""
    return np.array([[mark == "x" for mark in row.split()[0]] for row in text.split()])


W = np.array([[4.0, -1.0, 2.0, 3.0, 7.0], [-5.0, 6.0, 0.5, -8.0, 9.0], [1.5, 2.5, -3.5, 4.5, 0.1]])


@pytest.mark.parametrize(
    ("pattern", "settings_", "want"),
    [
        # 7.5 of 15 rounds to 8: 0.1 0.5 1 1.5 2 2.5 3 3.5 go.
        ("unstructured", {}, "x...x xx.xx ...x."),
        ("unstructured", {"rounding": "down"}, "x...x xx.xx ..xx."),
        # The lone fifth weight of a row is a group of its own that keeps what it has.
        ("2:4", {}, "x..xx .x.xx ..xxx"),
        ("1:4", {}, "x...x ...xx ...xx"),
        # Means 2.5 2.5 7 | 5.5 4.25 9 | 2 4 0.1: 4.5 of 9 rounds to 4, 2.7 to 3; of equal ones the first stays.
        ("1x2", {"sparsity": 0.5}, "....x xxxxx ..xx."),
        ("1x2", {"sparsity": 0.3}, "xx..x xxxxx ..xx."),
        ("1x2", {"sparsity": 1, "zeros_per_block": 1}, "x..xx .x.xx .x.xx"),
        ("2x1", {"sparsity": 0.2}, "xx.xx xx.xx xxxx."),
        ("2x1", {"sparsity": 0.2, "reduce": "max"}, "xxxxx xxxxx .xxx."),
        ("channelx1", {"sparsity": 0.2}, "xx.xx xx.xx xx.xx"),
        ("1xchannel", {"sparsity": 0.33}, "xxxxx xxxxx ....."),
        ("per_row", {"sparsity": 0.4}, "x..xx .x.xx .xxx."),
        ("nearly_diagonal(3)", {}, "xx... xxx.. .xxx."),
        ("heads(3)", {"sparsity": 0.9}, "xxxxx xxxxx xxxxx"),
        ("heads(1)", {"sparsity": 0.34}, "xxxxx xxxxx ....."),
        ("heads(1, axis=1)", {"sparsity": 0.2}, "xx.xx xx.xx xx.xx"),
    ],
)
def test_masks_worked_out_by_hand(pattern: str, settings_: dict[str, object], want: str) -> None:
    keep = onnxprune.keep_mask(W, pattern, **settings_)
    assert keep.dtype == np.bool_
    np.testing.assert_array_equal(keep, mask_of(want))


def test_l2_ranks_blocks_by_mean_squares() -> None:
    w = np.array([[3.0, 3.0, 1.0, 4.6]])
    np.testing.assert_array_equal(onnxprune.keep_mask(w, "1x2"), mask_of("xx.."))  # means 3 and 2.8
    np.testing.assert_array_equal(onnxprune.keep_mask(w, "1x2", norm="l2"), mask_of("..xx"))  # 9 and 11.08


def test_a_callable_norm_may_be_signed() -> None:
    np.testing.assert_array_equal(onnxprune.keep_mask(W[:1], norm=lambda w: w), mask_of("x..xx"))


def test_ties_keep_the_lower_index() -> None:
    np.testing.assert_array_equal(onnxprune.keep_mask(np.ones((2, 5)), sparsity=0.3), mask_of("xxxxx xx..."))
    np.testing.assert_array_equal(onnxprune.keep_mask(np.ones((2, 6)), "2:4"), mask_of("xx..xx xx..xx"))
    np.testing.assert_array_equal(onnxprune.keep_mask(np.ones((2, 20)), "3:10")[1, 10:], [True] * 3 + [False] * 7)


@pytest.mark.parametrize("shape", [(4, 8, 3), (3, 7, 2, 5), (6, 4, 1, 1)])
def test_groups_and_blocks_run_along_inputs_at_one_pixel(shape: tuple[int, ...]) -> None:
    w = np.random.default_rng(4).standard_normal(shape)
    for pattern in ("2:4", "2x3", "1x4"):
        flat = np.moveaxis(w.reshape(*shape[:2], -1), 2, 0)
        keep = np.moveaxis(onnxprune.keep_mask(w, pattern, 0.5).reshape(*shape[:2], -1), 2, 0)
        if pattern == "2:4":
            for pixel, mask in zip(flat, keep, strict=True):
                np.testing.assert_array_equal(onnxprune.keep_mask(pixel, pattern), mask)
        else:
            measured = [onnxprune.measure(mask, pattern) for mask in keep]
            assert sum(m.complete for m in measured) == round(0.5 * sum(m.units for m in measured))
            assert all(m.valid_fraction == 1 for m in measured)


def test_channels_of_one_kernel_pixel_and_of_all() -> None:
    w = np.random.default_rng(5).standard_normal((4, 6, 3, 3))
    channels = onnxprune.keep_mask(w, "input_channel", 0.5)
    assert (channels == channels[:1, :, :1, :1]).all()
    assert channels[0, :, 0, 0].sum() == 3
    rows = onnxprune.keep_mask(w, "output_channel", 0.5)
    assert (rows == rows[:, :1, :1, :1]).all()
    column = onnxprune.keep_mask(w, "channelx1", 0.5)
    np.testing.assert_array_equal(column, onnxprune.keep_mask(w, "*x1", 0.5))
    assert (column == column[:1]).all()
    assert column[0].sum() == 27
    assert (column != column[:, :, :1, :1]).any()


def test_keep_zeros_locks_complete_units_and_counts_them() -> None:
    w = np.array([[0.0, 0.0, 0.0, 4.0, 0.0, 6.0, 7.0, 8.0]])
    np.testing.assert_array_equal(onnxprune.keep_mask(w, "2:4", keep_zeros=True), mask_of("...x..xx"))
    np.testing.assert_array_equal(onnxprune.keep_mask(w, "2:4", 0, keep_zeros=True), mask_of("...xxxxx"))
    np.testing.assert_array_equal(onnxprune.keep_mask(w, "1x2", 0.5, keep_zeros=True), mask_of("....xxxx"))
    np.testing.assert_array_equal(onnxprune.keep_mask(w, sparsity=0.25, keep_zeros=True), mask_of("...x.xxx"))


def test_locked_weights_go_whatever_their_score() -> None:
    locked = W == 9
    for pattern in ("unstructured", "2:4", "1x2", "per_row", "nearly_diagonal(3)", "transposable(2:4)", "4:2:8"):
        assert not onnxprune.keep_mask(W, pattern, locked=locked)[locked].any(), pattern
    assert (~onnxprune.keep_mask(W, sparsity=0.2, locked=locked)).sum() == 3
    assert (~onnxprune.keep_mask(W, sparsity=0, locked=locked)).sum() == 1


@pytest.mark.parametrize(
    "dtype", [np.float16, np.float32, np.float64, ml_dtypes.bfloat16, ml_dtypes.float8_e4m3fn, ml_dtypes.float8_e5m2]
)
def test_every_float_dtype(dtype: type) -> None:
    w = (np.random.default_rng(6).standard_normal((8, 12)) * 3).astype(dtype)
    for pattern in ("unstructured", "2:4", "1x4"):
        want = onnxprune.keep_mask(w.astype(np.float64), pattern, norm="l2")
        np.testing.assert_array_equal(onnxprune.keep_mask(w, pattern, norm="l2"), want)


def test_scores_do_not_overflow_or_vanish() -> None:
    half = np.array([[300.0, 400.0, 500.0, 600.0]], dtype=np.float16)
    np.testing.assert_array_equal(onnxprune.keep_mask(half, norm="l2"), mask_of("..xx"))
    for scale in (1e25, 1e-25):
        w = np.float32(scale) * np.array([[3, 3, 2, 2, 1, 1, 4, 4]], dtype=np.float32)
        np.testing.assert_array_equal(onnxprune.keep_mask(w, "1x2", norm="l2"), mask_of("xx....xx"))


def test_weights_that_are_not_finite_are_refused_unless_allowed() -> None:
    w = np.array([[1.0, np.nan, 3.0, -np.inf]])
    with pytest.raises(onnxprune.OptionError, match="2 values that are not finite"):
        onnxprune.keep_mask(w)
    for pattern in ("unstructured", "2:4"):
        np.testing.assert_array_equal(onnxprune.keep_mask(w, pattern, allow_nonfinite=True), mask_of(".x.x"))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"pattern": "3:2"}, "N kept of M"),
        ({"pattern": "0:4"}, "N kept of M"),
        ({"pattern": "2:4", "sparsity": 0.6}, "at most 0.5"),
        ({"pattern": "2:4", "zeros_per_block": 1}, "belongs to block patterns"),
        ({"pattern": "1x4", "zeros_per_block": 5}, "has 4 weights"),
        ({"pattern": "1x4", "zeros_per_block": -1}, "0 or more"),
        ({"pattern": "0x4"}, "1 or more"),
        ({"pattern": "heads(2)"}, r"shape \(3, 5\)"),
        ({"pattern": "heads(x)"}, "heads"),
        ({"pattern": "heads(1, 2, 3)"}, "do not fit"),
        ({"pattern": "unstructred"}, "Did you mean 'unstructured'"),
        ({"pattern": "nearly_diagonal(2)"}, "odd"),
        ({"pattern": "nearly_diagonal(9)"}, "does not fit"),
        ({"pattern": "transposable(24)"}, "N kept of M"),
        ({"pattern": "transposable(2:4)", "sparsity": 0.3}, "cannot give 0.3"),
        ({"sparsity": float("nan")}, "not a number"),
        ({"pattern": "2:4", "sparsity": float("nan")}, "not a number"),
        ({"weight": np.ones((2, 4), ml_dtypes.int4)}, "int4"),
        ({"norm": "l3"}, "unknown norm"),
        ({"norm": lambda w: w[:1]}, "one score per weight"),
        ({"rounding": "up"}, "unknown rounding"),
        ({"kernel": "cuda"}, "unknown kernel"),
        ({"locked": np.zeros((3, 4), dtype=bool)}, r"shape \(3, 4\)"),
        ({"weight": W.astype(np.int8)}, "int8"),
        ({"weight": np.float32(1.0)}, "single number"),
    ],
)
def test_what_cannot_be_is_refused(arguments: dict[str, object], words: str) -> None:
    with pytest.raises(onnxprune.OptionError, match=words):
        onnxprune.keep_mask(**{"weight": W, **arguments})


def test_the_weight_is_not_written_to() -> None:
    w = np.random.default_rng(7).standard_normal((5, 8))
    w.flags.writeable = False
    before = w.copy()
    for pattern in ("unstructured", "2:4", "1x4", "1xchannel", "transposable(2:4)"):
        mask = onnxprune.keep_mask(w, pattern, keep_zeros=True)
        mask[:] = False
    np.testing.assert_array_equal(w, before)


def test_empty_and_small_weights() -> None:
    assert onnxprune.keep_mask(np.zeros((0, 4), np.float32), "2:4").shape == (0, 4)
    assert onnxprune.keep_mask(np.zeros((3, 0), np.float32)).shape == (3, 0)
    assert onnxprune.keep_mask(np.ones((1, 1), np.float32), sparsity=0.9).all()
    assert onnxprune.keep_mask(np.ones(3, np.float32), "2:4").tolist() == [True, True, False]


def test_users_register_functions_and_classes() -> None:
    @onnxprune.pattern("test_checkerboard", replace=True)
    def checkerboard(scores: np.ndarray, sparsity: float) -> np.ndarray:
        assert sparsity == 0.5
        return np.indices(scores.shape).sum(axis=0) % 2 == 0

    @onnxprune.pattern("test_last_columns", replace=True)
    class LastColumns:
        def __init__(self, n: int = 1) -> None:
            self.n = n

        def keep(self, scores: np.ndarray, sparsity: float) -> np.ndarray:
            assert sparsity == 0.5
            mask = np.zeros(scores.shape, dtype=bool)
            mask[:, -self.n :] = True
            return mask

    assert onnxprune.keep_mask(W, "test_checkerboard").sum() == 8
    assert onnxprune.keep_mask(W, "test_last_columns(2)").sum() == 6
    assert onnxprune.keep_mask(W, LastColumns(3)).sum() == 9
    assert "test_checkerboard" in patterns
    with pytest.raises(onnxprune.OptionError, match="already registered"):
        onnxprune.pattern("test_checkerboard")(checkerboard)
    with pytest.raises(onnxprune.OptionError, match="method keep"):
        onnxprune.pattern("test_nothing")(int)
    with pytest.raises(onnxprune.OptionError, match="boolean"):
        onnxprune.keep_mask(W, lambda scores, _: scores)


@st.composite
def arrays(draw: st.DrawFn) -> np.ndarray:
    shape = tuple(draw(st.lists(st.integers(1, 9), min_size=2, max_size=4)))
    values = draw(st.sampled_from((2, 5, 1000)))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    return rng.integers(-values, values + 1, shape).astype(draw(st.sampled_from((np.float32, np.float64))))


@given(arrays(), st.floats(0, 1))
@QUICK
def test_counts_are_exact_and_the_lowest_go(w: np.ndarray, sparsity: float) -> None:
    keep = onnxprune.keep_mask(w, sparsity=sparsity, min_keep=0)
    k = round(sparsity * w.size)
    order = np.lexsort((-np.arange(w.size), np.abs(w).reshape(-1)))
    want = np.ones(w.size, dtype=bool)
    want[order[:k]] = False
    np.testing.assert_array_equal(keep.reshape(-1), want)


@given(arrays(), st.integers(1, 9), st.integers(0, 8))
@QUICK
def test_n_of_m_against_a_sort_of_every_group(w: np.ndarray, kept: int, more: int) -> None:
    group = kept + more
    keep = onnxprune.keep_mask(w, f"{kept}:{group}")
    want = np.zeros(w.shape, dtype=bool)
    for start in range(0, w.shape[1], group):
        part = slice(start, start + group)
        order = np.argsort(-np.abs(w[:, part]), axis=1, kind="stable")
        np.put_along_axis(want[:, part], order[:, :kept], True, axis=1)
    np.testing.assert_array_equal(keep, want)
    assert onnxprune.measure(keep, f"{kept}:{group}").complete_fraction == 1


@given(arrays(), st.integers(1, 4), st.integers(1, 5), st.floats(0, 1), st.sampled_from(("l1", "l2")))
@QUICK
def test_blocks_against_a_loop(w: np.ndarray, rows: int, columns: int, sparsity: float, norm: str) -> None:
    keep = onnxprune.keep_mask(w, f"{rows}x{columns}", sparsity, norm=norm)
    scored = np.abs(w).astype(np.float64).reshape(*w.shape[:2], -1)
    mask = keep.reshape(scored.shape)
    power = {"l1": 1, "l2": 2}[norm]
    means, whole = [], []
    for i in range(0, w.shape[0], rows):
        for j in range(0, w.shape[1], columns):
            for p in range(scored.shape[2]):
                means.append((scored[i : i + rows, j : j + columns, p] ** power).mean())
                block = mask[i : i + rows, j : j + columns, p]
                assert block.all() or not block.any()
                whole.append(bool(block.all()))
    gone = ~np.array(whole)
    n = len(means)
    assert gone.sum() == (n if sparsity >= 1 else min(round(sparsity * n), n - 1))
    if gone.any() and not gone.all():
        assert np.max(np.array(means)[gone]) <= np.min(np.array(means)[~gone]) * (1 + 1e-6) + 1e-12


@given(arrays(), st.floats(0, 1), st.floats(0, 1), st.sampled_from(("unstructured", "2x2", "1x3")))
@QUICK
def test_masks_are_nested_and_idempotent(w: np.ndarray, a: float, b: float, pattern: str) -> None:
    low, high = sorted((a, b))
    less, more = onnxprune.keep_mask(w, pattern, low), onnxprune.keep_mask(w, pattern, high)
    assert (less | ~more).all()
    again = onnxprune.keep_mask(np.where(more, w, 0), pattern, high, locked=~more)
    np.testing.assert_array_equal(again, more)


@given(arrays(), st.randoms(use_true_random=False))
@QUICK
def test_rows_may_be_permuted(w: np.ndarray, random: object) -> None:
    order = np.random.default_rng(random.randint(0, 2**31)).permutation(w.shape[0])  # type: ignore[attr-defined]
    for pattern in ("2:4", "per_row", "3:5"):
        np.testing.assert_array_equal(
            onnxprune.keep_mask(w[order], pattern), onnxprune.keep_mask(w, pattern)[order], err_msg=pattern
        )


@given(arrays(), st.sampled_from(((2, 4), (1, 3), (3, 6), (4, 8), (2, 8))))
@QUICK
def test_transposable_masks_are_n_of_m_both_ways(w: np.ndarray, n_of_m: tuple[int, int]) -> None:
    kept, group = n_of_m
    keep = onnxprune.keep_mask(w, f"transposable({kept}:{group})")
    flat = np.moveaxis(keep.reshape(*w.shape[:2], -1), 2, 0)
    for mask in flat:
        assert onnxprune.measure(mask, NofM(kept, group)).complete_fraction == 1
        assert onnxprune.measure(np.ascontiguousarray(mask.T), NofM(kept, group)).complete_fraction == 1


def test_swaps_come_close_to_the_best_tiles_and_fill_them() -> None:
    w = np.abs(np.random.default_rng(8).standard_normal((32, 48)))
    best = Transposable(2, 4, "exact").keep(w)
    swapped = Transposable(2, 4, "swaps").keep(w)
    greedy = Transposable(2, 4, "greedy").keep(w)
    assert w[greedy].sum() < w[swapped].sum() <= w[best].sum()
    assert w[swapped].sum() > 0.99 * w[best].sum()
    assert swapped.sum() == best.sum() == w.size // 2
    eight = Transposable(4, 8).keep(w)
    assert (eight.reshape(4, 8, 6, 8).sum(axis=1) == 4).all()
    assert (eight.reshape(32, 6, 8).sum(axis=2) == 4).all()


def test_v_n_m_shares_four_inputs_between_its_rows() -> None:
    w = np.random.default_rng(9).standard_normal((8, 24))
    keep = onnxprune.keep_mask(w, "4:2:12")
    assert keep.sum() == w.size // 6
    used = keep.reshape(2, 4, 2, 12).any(axis=1)
    assert (used.sum(axis=2) <= 4).all()
    assert onnxprune.measure(keep, VNofM(4, 2, 12)).sparsity == pytest.approx(1 - 2 / 12)


def test_complete_tiles_and_groups_are_measured() -> None:
    w = np.random.default_rng(10).standard_normal((8, 10))
    for pattern in ("transposable(2:4)", "4:2:8", "2:4"):
        measured = onnxprune.measure(onnxprune.keep_mask(w, pattern), pattern)
        assert measured.complete_fraction == measured.valid_fraction == 1, pattern
    assert onnxprune.measure(onnxprune.keep_mask(w, "2:4"), "transposable(2:4)").complete_fraction < 1


def test_patterns_are_values() -> None:
    assert parse_pattern("2:4") == NofM(2, 4)
    assert parse_pattern("4x1") == Blocks(4, 1)
    assert parse_pattern("4x*", 2) == Blocks(4, None, 2)
    assert parse_pattern(" channelx1 ") == Blocks(None, 1)
    assert parse_pattern("input_channel") == Blocks(None, 1, whole_kernel=True)
    assert hash(parse_pattern("heads(8)")) == hash(parse_pattern("heads(8)"))
