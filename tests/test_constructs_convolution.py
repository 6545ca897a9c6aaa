"""Convolutions of every kind, joins of their channels, gates and shortcuts: units, and the pruned model as its twin."""

from __future__ import annotations

import numpy as np
import pytest

from tests.constructs.sketch import Sketch, check, shape_of

N, C, H, W = 2, 3, 6, 5


def image(opset: int = 17) -> tuple[Sketch, str]:
    s = Sketch(opset)
    return s, s.input(N, C, H, W)


# --- groups ---


@pytest.mark.parametrize(("group", "multiplier"), [(8, 1), (8, 2), (8, 3)])
def test_depthwise_convolution(group: int, multiplier: int) -> None:
    s, x = image()
    h = s.conv(x, C, group)
    d = s("Conv", h, s.w(group * multiplier, 1, 3, 3), s.w(group * multiplier), group=group, pads=[1] * 4)
    y = s.conv(s("Relu", d), group * multiplier, 7)
    expected = {"channels": [group]} if multiplier == 1 else {"groups": [group], "channels": [f"{group}x{multiplier}"]}
    check(s.model(y), expected)


def test_depthwise_convolutions_in_a_row_multiply() -> None:
    """8 channels become 16, then 48: each step's copies are units of their own."""
    s, x = image()
    h = s.conv(x, C, 8)
    d = s("Conv", h, s.w(16, 1, 3, 3), group=8, pads=[1] * 4)
    e = s("Conv", d, s.w(48, 1, 3, 3), group=16, pads=[1] * 4)
    check(s.model(s.conv(e, 48, 7)), {"groups": [8, "8x2"], "channels": ["8x3"]})


@pytest.mark.parametrize("group", [2, 3])
def test_grouped_convolution(group: int) -> None:
    s, x = image()
    h = s.conv(x, C, 4 * group)
    g = s("Conv", h, s.w(5 * group, 4, 3, 3), s.w(5 * group), group=group, pads=[1] * 4)
    model = s.model(s.conv(s("Relu", g), 5 * group, 7))
    check(model, {"groups": [group], "channels": [4, f"{group}x5"]})


def test_grouped_convolutions_of_different_groups_in_a_row() -> None:
    """2 groups, then 3: the 12 channels between are 2 times 6 and 3 times 4, (2, 2, 3) has no common factor of both."""
    s, x = image()
    h = s.conv(x, C, 8)
    a = s("Conv", h, s.w(12, 4, 1, 1), group=2)
    b = s("Conv", a, s.w(15, 4, 1, 1), group=3)
    check(s.model(s.conv(b, 15, 7)), {"channels": [4, "3x5"]})


def test_grouped_convolutions_whose_groups_divide_each_other() -> None:
    """2 groups, then 4 inside them: the 12 channels between are (2 2 3)."""
    s, x = image()
    h = s.conv(x, C, 10)
    a = s("Conv", h, s.w(12, 5, 1, 1), group=2)
    b = s("Conv", a, s.w(28, 3, 1, 1), group=4)
    check(s.model(s.conv(b, 28, 9)), {"groups": [2, "2x2"], "channels": [3, 5, "2x7"]})


def test_groups_whose_boundaries_do_not_line_up_with_a_concats() -> None:
    """6 + 4 channels meet 2 groups of 5: the last of the six shares a group with the four."""
    s, x = image()
    joined = s("Concat", s.conv(x, C, 6), s.conv(x, C, 4), axis=1)
    g = s("Conv", joined, s.w(14, 5, 3, 3), s.w(14), group=2, pads=[1] * 4)
    check(s.model(s.conv(g, 14, 9)), {"groups": [2], "channels": [5, "2x7"]})


def test_groups_that_line_up_with_a_concats() -> None:
    s, x = image()
    joined = s("Concat", s.conv(x, C, 5), s.conv(x, C, 5), axis=1)
    g = s("Conv", joined, s.w(14, 5, 3, 3), s.w(14), group=2, pads=[1] * 4)
    check(s.model(s.conv(g, 14, 9)), {"groups": [2], "channels": [5, "2x7"]})


@pytest.mark.parametrize("group", [1, 2])
def test_transposed_convolution(group: int) -> None:
    s, x = image()
    h = s.conv(x, C, 8)
    up = s("ConvTranspose", h, s.w(8, 10 // group, 2, 2), s.w(10), group=group, strides=[2, 2])
    expected = {"channels": [8, 10]} if group == 1 else {"groups": [2], "channels": ["2x4", 5]}
    check(s.model(s.conv(s("Relu", up), 10, 7)), expected)


@pytest.mark.parametrize("multiplier", [1, 3])
def test_depthwise_transposed_convolution(multiplier: int) -> None:
    s, x = image()
    up = s("ConvTranspose", s.conv(x, C, 8), s.w(8, multiplier, 2, 2), group=8, strides=[2, 2])
    expected = {"channels": [8]} if multiplier == 1 else {"groups": [8], "channels": [3]}
    check(s.model(s.conv(up, 8 * multiplier, 7)), expected)


@pytest.mark.parametrize("axes", [1, 3])
@pytest.mark.parametrize("group", [1, 2])
def test_convolutions_over_one_and_three_axes(axes: int, group: int) -> None:
    s = Sketch()
    x = s.input(N, C, *(7, 5, 6)[:axes])
    kernel, edge = [3] * axes, [1] * 2 * axes
    h = s("Conv", x, s.w(8, C, *kernel), s.w(8), pads=edge)
    g = s("Conv", h, s.w(10, 8 // group, *kernel), s.w(10), pads=edge, group=group)
    up = s("ConvTranspose", g, s.w(10, 12, *kernel), s.w(12), pads=edge)
    y = s("Conv", up, s.w(7, 12, *kernel), pads=edge)
    expected = {"channels": [8, 10, 12]} if group == 1 else {"groups": [2], "channels": [4, "2x5", 12]}
    check(s.model(y), expected)


def test_a_grouped_convolution_keeps_other_channels_in_each_group() -> None:
    """The channels behind two groups go their own way in each: nothing ties them but their number."""
    s, x = image()
    h = s.conv(x, C, 8)
    weight = s.w(10, 4, 1, 1, name="g0")
    g = s("Conv", h, weight, group=2)
    result = check(s.model(s.conv(g, 10, 7)), {"groups": [2], "channels": [4, "2x5"]}, kinds=["channels"])
    assert result is not None
    assert shape_of(result.model.proto, weight) == (6, 2, 1, 1)
    removed = next(g.removed for g in result.plan.groups if g.size == 10)
    assert {u % 5 for u in removed if u < 5} != {u % 5 for u in removed if u >= 5}


# --- shortcuts, joins, gates ---


def test_shortcuts_share_one_width() -> None:
    s, x = image()
    h = s.conv(x, C, 8)
    for _ in range(2):
        inner = s("Relu", s.conv(h, 8, 10 + 2 * _, 3))
        h = s("Add", h, s.conv(inner, 10 + 2 * _, 8))
    check(s.model(s.conv(h, 8, 7)), {"channels": [8, 10, 12]})


def test_a_cross_stage_block_with_residuals() -> None:
    """C2f: split in halves, every block's output joins, with a shortcut inside the block."""
    s, x = image()
    h = s.conv(x, C, 16)
    parts = s.call("Split", h, s.ints(8, 8), outputs=2, axis=1)
    joined = list(parts)
    for inner in (10, 12):
        last = joined[-1]
        block = s.conv(s("Relu", s.conv(last, 8, inner, 3)), inner, 8)
        joined.append(s("Add", last, block))
    y = s.conv(s("Concat", *joined, axis=1), 32, 7)
    check(s.model(y), {"channels": [8, 8, 10, 12]})


def test_a_cross_stage_block_cut_by_slices() -> None:
    """C2f as older exporters write it: chunk is two slices."""
    s, x = image()
    h = s.conv(x, C, 16)
    one = s("Slice", h, s.ints(0), s.ints(8), s.ints(1))
    two = s("Slice", h, s.ints(8), s.ints(16), s.ints(1))
    block = s("Add", two, s.conv(s("Relu", s.conv(two, 8, 10, 3)), 10, 8))
    y = s.conv(s("Concat", one, two, block, axis=1), 24, 7)
    check(s.model(y), {"channels": [8, 8, 10]})


@pytest.mark.parametrize("opset", [12, 17, 18])
def test_chunks_without_sizes(opset: int) -> None:
    """A split that names no sizes gets them once its parts differ."""
    s, x = image(opset)
    more = {"num_outputs": 2} if opset >= 18 else {}
    one, two = s.call("Split", s.conv(x, C, 14), outputs=2, axis=1, **more)
    y = s.conv(s("Concat", s("Relu", one), two, axis=1), 14, 9)
    check(s.model(y), {"channels": [7, 7]})


def test_dense_connections() -> None:
    s, x = image()
    features, width = [s.conv(x, C, 8)], 8
    for growth in (5, 7):
        joined = s("Concat", *features, axis=1) if len(features) > 1 else features[0]
        features.append(s.conv(s("Relu", joined), width, growth, 3))
        width += growth
    check(s.model(s.conv(s("Concat", *features, axis=1), width, 9)), {"channels": [5, 7, 8]})


@pytest.mark.parametrize("spatial", [False, True])
def test_gates_per_channel_and_per_place(spatial: bool) -> None:
    """Squeeze and excite, [n, c, 1, 1], and attention over places, [n, 1, h, w]."""
    s, x = image()
    h = s.conv(x, C, 8)
    if spatial:
        gate = s("Sigmoid", s.conv(h, 8, 1, 3))
        expected = {"channels": [8]}
    else:
        squeezed = s("Relu", s.conv(s("GlobalAveragePool", h), 8, 5))
        gate = s("HardSigmoid", s.conv(squeezed, 5, 8))
        expected = {"channels": [5, 8]}
    check(s.model(s.conv(s("Mul", h, gate), 8, 7)), expected)


def test_a_gate_from_the_largest_and_the_mean_channel() -> None:
    """CBAM's spatial gate takes statistics over the channels: approximate."""
    s, x = image()
    h = s.conv(x, C, 8)
    both = s("Concat", s("ReduceMax", h, axes=[1], keepdims=1), s("ReduceMean", h, axes=[1], keepdims=1), axis=1)
    gate = s("Sigmoid", s.conv(both, 2, 1, 3))
    check(s.model(s.conv(s("Mul", h, gate), 8, 7)), {"~channels": [8]})


def test_selective_kernels_stack_and_sum() -> None:
    """Branches stacked on a new axis, weighted by a softmax over it, summed."""
    s, x = image()
    branches = [s("Unsqueeze", s.conv(x, C, 8, k), s.ints(1)) for k in (1, 3)]
    stacked = s("Concat", *branches, axis=1)
    total = s("ReduceSum", stacked, s.ints(1), keepdims=0)
    squeezed = s("Relu", s.conv(s("GlobalAveragePool", total), 8, 5))
    logits = [s("Unsqueeze", s.conv(squeezed, 5, 8), s.ints(1)) for _ in range(2)]
    weights = s("Softmax", s("Concat", *logits, axis=1), axis=1)
    y = s("ReduceSum", s("Mul", stacked, weights), s.ints(1), keepdims=0)
    check(s.model(s.conv(y, 8, 7)), {"channels": [5, 8]})


def test_split_attention_by_groups() -> None:
    """ResNeSt: the output of a convolution of radix 2 is reshaped, weighted by a softmax over the radix, summed."""
    s, x = image()
    h = s.conv(x, C, 8)
    u = s("Relu", s("Conv", h, s.w(20, 4, 3, 3), s.w(20), group=2, pads=[1] * 4))
    apart = s.reshape(u, N, 2, 10, H, W)
    gap = s("GlobalAveragePool", s("ReduceSum", apart, s.ints(1), keepdims=0))
    a = s.conv(s("Relu", s.conv(gap, 10, 7)), 7, 20)
    a = s.reshape(s("Softmax", s.reshape(a, N, 2, 10, 1, 1), axis=1), N, 2, 10, 1, 1)
    y = s("ReduceSum", s("Mul", apart, a), s.ints(1), keepdims=0)
    check(s.model(s.conv(y, 10, 9)), {"~groups": [2], "channels": [4, 7, 10]})


def test_maxout_over_pieces() -> None:
    s, x = image()
    pieces = s.reshape(s.conv(x, C, 16), N, 8, 2, H, W)
    y = s("ReduceMax", pieces, axes=[2], keepdims=0)
    check(s.model(s.conv(y, 8, 7)), {"channels": [8], "~channels": ["8x2"]})


def test_positive_and_negative_parts_joined() -> None:
    s, x = image()
    h = s.conv(x, C, 8)
    y = s("Relu", s("Concat", h, s("Neg", h), axis=1))
    check(s.model(s.conv(y, 16, 7)), {"channels": [8]})


def test_masks_choose_between_branches() -> None:
    s, x = image()
    a, b = s.conv(x, C, 8), s.conv(x, C, 8)
    chosen = s("Where", s("Greater", a, s.number(0.1)), a, b)
    mask = s.tensor(np.arange(H * W).reshape(1, 1, H, W) % 3 > 0, "mask")
    y = s("Where", mask, chosen, s.number(0.5))
    check(s.model(s.conv(y, 8, 7)), {"channels": [8]})


def test_a_shortcut_that_pads_channels() -> None:
    s, x = image()
    a = s.conv(x, C, 8)
    padded = s("Pad", a, s.ints(0, 2, 0, 0, 0, 4, 0, 0))
    y = s("Add", s.conv(s("Relu", a), 8, 14, 3), padded)
    check(s.model(s.conv(y, 14, 9)), {"channels": [6, 8]})


def test_a_shortcut_that_pads_with_zeros_from_a_concat() -> None:
    s, x = image()
    a = s.conv(x, C, 8)
    zeros = s("ConstantOfShape", s.ints(N, 6, H, W))
    y = s("Add", s.conv(s("Relu", a), 8, 14, 3), s("Concat", a, zeros, axis=1))
    check(s.model(s.conv(y, 14, 9)), {"channels": [6, 8]})


@pytest.mark.parametrize("op", ["LRN", "LpNormalization"])
def test_normalizations_over_channels_are_approximate(op: str) -> None:
    s, x = image()
    more = {"size": 3} if op == "LRN" else {"axis": 1}
    check(s.model(s.conv(s(op, s.conv(x, C, 8), **more), 8, 7)), {"~channels": [8]})


def test_pooling_of_every_kind() -> None:
    s, x = image()
    h = s.conv(x, C, 8)
    h = s("MaxPool", h, kernel_shape=[3, 3], pads=[1] * 4)
    h = s("AveragePool", h, kernel_shape=[3, 3], pads=[1] * 4, count_include_pad=1)
    h = s("LpPool", h, kernel_shape=[2, 2])
    pooled = s("Add", s("GlobalMaxPool", h), s("Add", s("GlobalAveragePool", h), s("GlobalLpPool", h)))
    check(s.model(s.conv(pooled, 8, 7)), {"channels": [8]})


def test_positions_of_a_maximum_keep_the_channels() -> None:
    s, x = image()
    pooled, index = s.call("MaxPool", s.conv(x, C, 8), outputs=2, kernel_shape=[2, 2], strides=[2, 2])
    model = s.model(s.conv(pooled, 8, 7), index)
    check(model, {})


@pytest.mark.parametrize("how", ["sizes", "scales"])
def test_resize(how: str) -> None:
    s, x = image()
    h = s.conv(x, C, 8)
    if how == "scales":
        up = s("Resize", h, "", s.tensor(np.array([1, 1, 2, 2], np.float32), "scales"))
    else:
        up = s("Resize", h, "", "", s.ints(N, 8, 11, 9), mode="linear")
    check(s.model(s.conv(up, 8, 7)), {"channels": [8]})


def test_resize_to_the_size_of_another_tensor() -> None:
    """Shape → Slice → Concat: batch and channels of one, height and width of the other."""
    s, x = image()
    big = s.conv(x, C, 8)
    small = s.conv(s("MaxPool", big, kernel_shape=[2, 2], strides=[2, 2]), 8, 10)
    front = s("Slice", s("Shape", small), s.ints(0), s.ints(2), s.ints(0))
    back = s("Slice", s("Shape", big), s.ints(2), s.ints(4), s.ints(0))
    up = s("Resize", small, "", "", s("Concat", front, back, axis=0))
    y = s.conv(s("Concat", up, big, axis=1), 18, 7)
    check(s.model(y), {"channels": [8, 10]})


# --- normalization ---


def test_batch_normalization_and_activations() -> None:
    s, x = image()
    h = s.conv(x, C, 8)
    h = s("BatchNormalization", h, s.w(8), s.w(8), s.w(8), s.w(8, low=0.5))
    h = s("PRelu", h, s.w(8, 1, 1))
    h = s("Clip", h, s.number(-1.0), s.number(4.0))
    check(s.model(s.conv(h, 8, 7)), {"channels": [8]})


def test_folded_batch_normalization_as_scale_and_shift() -> None:
    s, x = image()
    h = s("Add", s("Mul", s.conv(x, C, 8), s.w(8, 1, 1)), s.w(1, 8, 1, 1))
    check(s.model(s.conv(h, 8, 7)), {"channels": [8]})


def test_instance_normalization_is_exact() -> None:
    s, x = image()
    h = s("InstanceNormalization", s.conv(x, C, 8), s.w(8), s.w(8))
    check(s.model(s.conv(h, 8, 7)), {"channels": [8]})


@pytest.mark.parametrize("opset", [18, 21])
def test_group_normalization_fused(opset: int) -> None:
    """Its parameters run along the groups in opset 18, which is deprecated, and along the channels in 21."""
    s, x = image(opset)
    size = 12 if opset >= 21 else 4
    h = s("GroupNormalization", s.conv(x, C, 12), s.w(size), s.w(size), num_groups=4)
    activated = s("Relu", h)
    if opset < 21:
        s.declare(activated, N, 12, H, W)
    model = s.model(s.conv(activated, 12, 7), check=opset >= 21)
    check(model, {"groups": [4], "~channels": ["4x3"]})


def test_group_normalization_through_instance_normalization() -> None:
    s, x = image()
    h = s.reshape(s.conv(x, C, 12), 0, 4, -1)
    h = s(
        "InstanceNormalization", h, s.tensor(np.ones(4, np.float32), "one"), s.tensor(np.zeros(4, np.float32), "zero")
    )
    h = s.reshape(h, N, 12, H, W)
    h = s("Add", s("Mul", h, s.w(12, 1, 1)), s.w(12, 1, 1))
    check(s.model(s.conv(h, 12, 7)), {"channels": [4], "~channels": ["4x3"]})


def test_mean_variance_normalization_over_channels_is_approximate() -> None:
    s, x = image()
    h = s("MeanVarianceNormalization", s.conv(x, C, 8), axes=[1, 2, 3])
    check(s.model(s.conv(h, 8, 7)), {"~channels": [8]})


def test_mean_variance_normalization_over_places_is_exact() -> None:
    s, x = image()
    h = s("MeanVarianceNormalization", s.conv(x, C, 8), axes=[0, 2, 3])
    check(s.model(s.conv(h, 8, 7)), {"channels": [8]})


def test_weight_normalization_in_the_graph() -> None:
    s, x = image()
    direction = s.w(8, C, 3, 3)
    norm = s("ReduceL2", direction, axes=[1, 2, 3], keepdims=1)
    weight = s("Mul", s("Div", direction, norm), s.w(8, 1, 1, 1))
    h = s("Conv", x, weight, s.w(8), pads=[1] * 4)
    check(s.model(s.conv(h, 8, 7)), {"channels": [8]})


def test_sampled_features() -> None:
    s, x = image()
    h = s.conv(x, C, 8)
    grid = s.tensor(s.rng.uniform(-1, 1, (N, 4, 7, 2)).astype(np.float32), "grid")
    rois = s.tensor(np.array([[0, 0, 3, 3], [1, 1, 4, 5], [0, 2, 5, 4]], np.float32), "rois")
    pooled = s("RoiAlign", h, rois, s.ints(0, 1, 0), output_height=3, output_width=2, sampling_ratio=1)
    model = s.model(s.conv(s("GridSample", h, grid), 8, 7), s.conv(pooled, 8, 9))
    check(model, {"channels": [8]})
