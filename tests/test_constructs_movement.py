"""Shuffles, flattenings, windows, picks and joins of an axis: units, and the pruned model as its twin."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from tests.constructs.sketch import Sketch, check, shape_of

N, C, H, W = 2, 3, 6, 4
END = np.iinfo(np.int64).max


def image(channels: int, opset: int = 17, shape: Sequence[int] = (N, C, H, W)) -> tuple[Sketch, str]:
    """A sketch, and the output of a convolution of kernel three with this many channels."""
    s = Sketch(opset)
    return s, s.conv(s.input(*shape), shape[1], channels, 3)


def cut(s: Sketch, x: str, axis: int, start: int, end: int, step: int = 1) -> str:
    return s("Slice", x, s.ints(start), s.ints(end), s.ints(axis), s.ints(step))


# --- shuffles ---


def test_channel_shuffle_by_reshape_and_transpose() -> None:
    s, h = image(10)
    apart = s.transpose(s.reshape(h, N, 2, 5, H, W), 0, 2, 1, 3, 4)
    y = s.conv(s.reshape(apart, N, 10, H, W), 10, 7)
    check(s.model(y), {"channels": [2, 5]})


def test_channel_shuffle_by_gather() -> None:
    s, h = image(10)
    order = np.arange(10).reshape(2, 5).T.ravel()
    check(s.model(s.conv(s("Gather", h, s.ints(*order), axis=1), 10, 7)), {"channels": [10]})


def test_channel_shuffle_between_grouped_convolutions() -> None:
    """ShuffleNet: the groups of the second convolution take from every group of the first."""
    s, h = image(8)
    a = s("Conv", h, s.w(12, 4, 1, 1), group=2)
    shuffled = s.reshape(s.transpose(s.reshape(a, N, 2, 6, H, W), 0, 2, 1, 3, 4), N, 12, H, W)
    b = s("Conv", shuffled, s.w(14, 6, 1, 1), group=2)
    check(s.model(s.conv(b, 14, 9)), {"groups": [2, 2], "channels": [3, 4, "2x7"]})


def test_shuffle_unit_with_halves() -> None:
    """ShuffleNet v2: half passes, half is convolved, both are joined and shuffled."""
    s, h = image(12)
    passed, taken = s.call("Split", h, s.ints(6, 6), outputs=2, axis=1)
    joined = s("Concat", passed, s("Relu", s.conv(taken, 6, 6, 3)), axis=1)
    shuffled = s.reshape(s.transpose(s.reshape(joined, N, 2, 6, H, W), 0, 2, 1, 3, 4), N, 12, H, W)
    left, right = s.call("Split", shuffled, s.ints(6, 6), outputs=2, axis=1)
    y = s.conv(s("Concat", left, s.conv(right, 6, 8), axis=1), 14, 7)
    check(s.model(y), {"channels": [2, 6, 6, 8]})


@pytest.mark.parametrize("mode", ["DCR", "CRD"])
def test_pixel_shuffle(mode: str) -> None:
    s, h = image(20)
    up = s("DepthToSpace", h, blocksize=2, mode=mode)
    check(s.model(s.conv(up, 5, 7)), {"channels": [5]})


@pytest.mark.parametrize("mode", ["DCR", "CRD"])
def test_pixel_shuffle_written_out(mode: str) -> None:
    s, h = image(20)
    if mode == "DCR":
        apart = s.transpose(s.reshape(h, N, 2, 2, 5, H, W), 0, 3, 4, 1, 5, 2)
    else:
        apart = s.transpose(s.reshape(h, N, 5, 2, 2, H, W), 0, 1, 4, 2, 5, 3)
    up = s.reshape(apart, N, 5, 2 * H, 2 * W)
    check(s.model(s.conv(up, 5, 7, 3)), {"channels": [5]})


@pytest.mark.parametrize("written_out", [False, True])
def test_pixel_unshuffle(written_out: bool) -> None:
    s, h = image(5)
    if written_out:
        apart = s.transpose(s.reshape(h, N, 5, H // 2, 2, W // 2, 2), 0, 1, 3, 5, 2, 4)
        down = s.reshape(apart, N, 20, H // 2, W // 2)
    else:
        down = s("SpaceToDepth", h, blocksize=2)
    check(s.model(s.conv(down, 20, 7)), {"channels": [5]})


def test_focus_of_strided_slices() -> None:
    """YOLOv5's stem, behind a convolution: every second row and column, four times, joined."""
    s, h = image(5)
    parts = [cut(s, cut(s, h, 2, a, END, 2), 3, b, END, 2) for a, b in ((0, 0), (1, 0), (0, 1), (1, 1))]
    check(s.model(s.conv(s("Concat", *parts, axis=1), 20, 7)), {"channels": [5]})


@pytest.mark.parametrize("flattened_by", ["Flatten", "Reshape", "Squeeze"])
def test_flatten_of_images(flattened_by: str) -> None:
    s, h = image(8)
    if flattened_by == "Squeeze":
        flat, width = s("Squeeze", s("GlobalAveragePool", h), s.ints(2, 3)), 8
    else:
        flat = s("Flatten", h) if flattened_by == "Flatten" else s.reshape(h, 0, -1)
        width = 8 * H * W
    y = s.linear(s("Relu", s.linear(flat, width, 11)), 11, 5)
    check(s.model(y), {"channels": [8], "features": [11]})


@pytest.mark.parametrize("pooled", [False, True])
def test_flatten_with_channels_last(pooled: bool) -> None:
    """Keras: the graph is transposed back before it is flattened, so a channel is every eighth column."""
    s, h = image(8)
    last = s.transpose(s("MaxPool", h, kernel_shape=[2, 2], strides=[2, 2]) if pooled else h, 0, 2, 3, 1)
    width = 8 * H * W // (4 if pooled else 1)
    check(s.model(s.linear(s.reshape(last, -1, width), width, 5)), {"channels": [8]})


def test_a_graph_with_channels_last() -> None:
    """tf2onnx: transposes around every convolution, vectors along the last axis."""
    s = Sketch()
    h = s.transpose(s.input(N, H, W, C), 0, 3, 1, 2)
    h = s.transpose(s.conv(h, C, 8, 3), 0, 2, 3, 1)
    h = s("Relu", s("Add", s("Mul", h, s.w(8)), s.w(8)))
    gate = s("ReduceMean", h, axes=[1, 2], keepdims=1)
    gate = s("Sigmoid", s.linear(s("Relu", s.linear(gate, 8, 5)), 5, 8))
    h = s.transpose(s("Mul", h, gate), 0, 3, 1, 2)
    check(s.model(s.transpose(s.conv(h, 8, 7), 0, 2, 3, 1)), {"channels": [8], "features": [5]})


def test_patches_merge() -> None:
    """Swin: four strided slices of a sequence of patches, joined, normalized, projected."""
    s, h = image(8)
    h = s.transpose(h, 0, 2, 3, 1)
    parts = [cut(s, cut(s, h, 1, a, END, 2), 2, b, END, 2) for a, b in ((0, 0), (1, 0), (0, 1), (1, 1))]
    joined = s("LayerNormalization", s("Concat", *parts, axis=-1), s.w(32), s.w(32))
    y = s.linear(s.linear(s.reshape(joined, N, H * W // 4, 32), 32, 11), 11, 7)
    check(s.model(y), {"~channels": [8], "features": [11]})


def test_patches_by_reshape() -> None:
    """Patches of 3 x 2 pixels, their pixels and channels in one axis; back again by a convolution."""
    s, h = image(8)
    patches = s.transpose(s.reshape(h, N, 8, H // 3, 3, W // 2, 2), 0, 2, 4, 3, 5, 1)
    tokens = s.linear(s.reshape(patches, N, 4, 48), 48, 11)
    check(s.model(s.linear(tokens, 11, 7)), {"channels": [8], "features": [11]})


def test_windows_apart_and_together() -> None:
    """Swin's window partition, something inside each window, and its reverse."""
    s, h = image(8)
    last = s.transpose(h, 0, 2, 3, 1)
    windows = s.transpose(s.reshape(last, N, H // 3, 3, W // 2, 2, 8), 0, 1, 3, 2, 4, 5)
    windows = s.linear(s.reshape(windows, -1, 6, 8), 8, 11)
    back = s.transpose(s.reshape(windows, N, H // 3, W // 2, 3, 2, 11), 0, 1, 3, 2, 4, 5)
    y = s.linear(s.reshape(back, N, H, W, 11), 11, 7)
    check(s.model(y), {"channels": [8], "features": [11]})


def test_rolled_windows() -> None:
    """A cyclic shift: two slices of each axis, joined the other way round."""
    s, h = image(8)
    for axis in (2, 3):
        h = s("Concat", cut(s, h, axis, 2, END), cut(s, h, axis, 0, 2), axis=axis)
    check(s.model(s.conv(h, 8, 7, 3)), {"channels": [8]})


def test_rolled_channels() -> None:
    s, h = image(8)
    rolled = s("Concat", cut(s, h, 1, 3, END), cut(s, h, 1, 0, 3), axis=1)
    check(s.model(s.conv(s("Add", h, rolled), 8, 7)), {})


# --- picks ---


def test_a_slice_of_channels() -> None:
    s, h = image(9)
    y = s.conv(cut(s, h, 1, 2, 7), 5, 8)
    check(s.model(y), {"channels": [4, 5]})


def test_slices_from_the_end() -> None:
    s, h = image(9)
    y = s.conv(s("Concat", cut(s, h, 1, -4, END), cut(s, h, 1, 0, -4), axis=1), 9, 7)
    check(s.model(y), {"channels": [4, 5]})


def test_every_other_channel() -> None:
    s, h = image(10)
    even, odd = cut(s, h, 1, 0, END, 2), cut(s, h, 1, 1, END, 2)
    check(s.model(s.conv(s("Mul", even, s("Sigmoid", odd)), 5, 7)), {"channels": [5]})


@pytest.mark.parametrize("how", ["slice", "last", "gather"])
def test_reversed_channels(how: str) -> None:
    s, h = image(9)
    if how == "gather":
        flipped = s("Gather", h, s.ints(*reversed(range(9))), axis=1)
    else:
        flipped = cut(s, h, 1, 8 if how == "last" else -1, -END, -1)
    check(s.model(s.conv(flipped, 9, 7)), {"channels": [9]})


def test_channels_added_to_their_reverse() -> None:
    """The first goes with the last: of nine channels four pairs may go, the middle one is alone."""
    s, h = image(9)
    y = s.conv(s("Add", h, cut(s, h, 1, -1, -END, -1)), 9, 7)
    check(s.model(y), {"channels": [4]})


def test_flipped_images() -> None:
    s, h = image(8)
    check(s.model(s.conv(s("Add", h, cut(s, h, 3, -1, -END, -1)), 8, 7, 3)), {"channels": [8]})


def test_picked_channels() -> None:
    """Two of nine once, one of them twice: that one is alone, and six are not read at all."""
    s, h = image(9)
    picked = s("Gather", h, s.ints(7, 0, 3, 7), axis=1)
    check(s.model(s.conv(picked, 4, 8)), {"channels": [2, 6]})


def test_picks_with_negative_indices() -> None:
    s, h = image(9)
    picked = s("Gather", h, s.ints(*range(-9, 0)), axis=1)
    check(s.model(s.conv(picked, 9, 7)), {"channels": [9]})


@pytest.mark.parametrize("mode", ["constant", "reflect", "edge"])
def test_padded_places(mode: str) -> None:
    s, h = image(8)
    padded = s("Pad", h, s.ints(0, 0, 1, 1, 0, 0, 1, 1), mode=mode)
    check(s.model(s("Conv", padded, s.w(7, 8, 3, 3))), {"channels": [8]})


@pytest.mark.parametrize("opset", [10, 17])
def test_padded_channels(opset: int) -> None:
    s, h = image(8, opset)
    pads = [0, 1, 0, 0, 0, 3, 0, 0]
    padded = s("Pad", h, pads=pads) if opset == 10 else s("Pad", h, s.ints(*pads))
    check(s.model(s.conv(padded, 12, 7)), {"channels": [8], "features": [4]})


def test_padded_channels_with_another_number() -> None:
    s, h = image(8)
    padded = s("Pad", h, s.ints(0, 1, 0, 0, 0, 3, 0, 0), s.number(0.7))
    check(s.model(s.conv(padded, 12, 7)), {"channels": [8], "features": [4]})


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_condition_that_picks(axis: int) -> None:
    """Compress with a constant condition along one axis: the others are tied."""
    s, h = image(8)
    sizes = (N, 8, H)
    condition = s.tensor(np.arange(sizes[axis]) % 3 != 1, "condition")
    picked = s("Compress", h, condition, axis=axis)
    shape = [int((np.arange(d) % 3 != 1).sum()) if k == axis else d for k, d in enumerate((N, 8, H, W))]
    s.declare(picked, *shape)
    model = s.model(s.conv(picked, shape[1], 7))
    check(model, {} if axis == 1 else {"channels": [8]})


def test_a_condition_that_picks_from_everything() -> None:
    s, h = image(8)
    picked = s("Compress", h, s.tensor(np.arange(N * 8 * H * W) % 3 != 1, "condition"))
    check(s.model(s("ReduceSum", picked, keepdims=1)), {})


# --- stretched and joined ---


def test_stack_and_sum() -> None:
    s = Sketch()
    x = s.input(N, 5, C)
    stacked = s("Concat", *(s("Unsqueeze", s.linear(x, C, 8), s.ints(0)) for _ in range(4)), axis=0)
    check(s.model(s.linear(s("ReduceSum", stacked, s.ints(0), keepdims=0), 8, 7)), {"features": [8]})


def test_stack_and_mean_of_a_pair() -> None:
    s = Sketch()
    x = s.input(N, 5, C)
    stacked = s("Concat", *(s("Unsqueeze", s.linear(x, C, 8), s.ints(2)) for _ in range(2)), axis=2)
    check(s.model(s.linear(s("ReduceMean", stacked, axes=[2], keepdims=0), 8, 7)), {"features": [8]})


def test_tile() -> None:
    s, h = image(8)
    check(s.model(s.conv(s("Tile", h, s.ints(1, 3, 1, 1)), 24, 7)), {"channels": [8], "features": [3]})


def test_expand() -> None:
    s = Sketch()
    h = s("Unsqueeze", s.linear(s.input(N, C), C, 8), s.ints(2, 3))
    check(s.model(s.conv(s("Relu", s("Expand", h, s.ints(N, 8, H, W))), 8, 7, 3)), {"features": [8]})


def test_expanded_keys_for_several_queries() -> None:
    """Unsqueeze, expand, reshape: every row stands three times in a row."""
    s = Sketch()
    x = s.input(N, 5, C)
    h = s("Unsqueeze", s.reshape(s.linear(x, C, 8), N, 5, 2, 4), s.ints(3))
    repeated = s.reshape(s("Expand", h, s.ints(N, 5, 2, 3, 4)), N, 5, 24)
    check(s.model(s.linear(repeated, 24, 7)), {"features": [2, "2x3", "2x4"]})


@pytest.mark.parametrize(
    ("equation", "weight"),
    [("btc,cd->btd", (3, 8)), ("btc,dc->btd", (8, 3)), ("...c,dc->...d", (8, 3)), ("dc, btc -> btd", (8, 3))],
)
def test_einsum_products(equation: str, weight: tuple[int, int]) -> None:
    s = Sketch()
    operands = [s.input(N, 5, 3), s.w(*weight)]
    h = s("Einsum", *(reversed(operands) if equation.startswith("dc") else operands), equation=equation)
    check(s.model(s("Einsum", h, s.w(8, 7), equation="btd,de->bte")), {"features": [8]})


def test_einsum_without_an_arrow() -> None:
    """The letters that stand once come out in alphabetic order: (b, d, t)."""
    s = Sketch()
    h = s("Einsum", s.input(N, 5, 3), s.w(3, 8), equation="btc,cd")
    check(s.model(s.linear(s.transpose(h, 0, 2, 1), 8, 7)), {"features": [8]})


def test_einsum_attention() -> None:
    """Keras: projections to heads and back are Einsum with weights of rank three."""
    s = Sketch()
    x = s.input(N, 5, 3)
    q, k, v = (s("Einsum", x, s.w(3, 4, d), equation="btc,chd->bthd") for d in (6, 6, 8))
    scores = s("Softmax", s("Einsum", q, k, equation="bthd,bshd->bhts"), axis=-1)
    mixed = s("Einsum", scores, v, equation="bhts,bshd->bthd")
    y = s("Einsum", mixed, s.w(4, 8, 7), equation="bthd,hdc->btc")
    check(s.model(y), {"heads": [4], "head_dim": [6, 8]})


def test_einsum_of_three_operands() -> None:
    s = Sketch()
    x = s.input(N, 5, 3)
    h = s("Einsum", x, s.w(3, 8), s.w(8), equation="btc,cd,d->btd")
    check(s.model(s.linear(s("Relu", h), 8, 7)), {"features": [8]})


def test_einsum_with_a_diagonal() -> None:
    """A repeated letter takes the diagonal: both of its axes are one."""
    s = Sketch()
    x = s.input(N, 3)
    square = s.reshape(s.linear(x, 3, 25), N, 5, 5)
    y = s.linear(s("Einsum", square, equation="bii->bi"), 5, 7)
    check(s.model(y), {"features": [5]})


@pytest.mark.parametrize("computed", [False, True])
def test_masks_that_stand_in_for_values(computed: bool) -> None:
    s = Sketch()
    h = s.linear(s.input(N, 5, C), C, 8)
    mask = s("Less", h, s.number(0.0)) if computed else s.tensor(np.arange(5).reshape(5, 1) % 2 == 0, "mask")
    y = s.linear(s("Where", mask, s.number(-1.5), h), 8, 7)
    check(s.model(y), {"features": [8]})


def test_a_table_is_sliced_by_rows_that_are_computed() -> None:
    """Positions: the first t rows of a table, cut by a computed end; only its width may go."""
    s = Sketch()
    x = s.input("n", "t", C)
    table = s.w(19, 8, name="table0")
    end = s("Unsqueeze", s("Gather", s("Shape", x), s.number(1, np.int64)), s.ints(0))
    positions = s("Slice", table, s.ints(0), end, s.ints(0))
    y = s.linear(s("Add", s.linear(x, C, 8), positions), 8, 7)
    result = check(s.model(y), {"features": [8]})
    assert result is not None
    assert shape_of(result.model.proto, table) == (19, 4)
