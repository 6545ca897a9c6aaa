"""Turns of phrase of exporters where a pruner goes wrong unnoticed: units, and the pruned model as its twin."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import TensorProto as T

from tests.constructs.sketch import MS, Sketch, check

N, C, H, W, OUT = 2, 3, 6, 4, 7
END = np.iinfo(np.int64).max


def image(channels: int, opset: int = 17) -> tuple[Sketch, str]:
    s = Sketch(opset)
    return s, s.conv(s.input(N, C, H, W), C, channels, 3)


def vector(width: int, opset: int = 17) -> tuple[Sketch, str]:
    s = Sketch(opset)
    return s, s.linear(s.input(N, C), C, width)


def test_a_bias_in_front_of_a_padded_convolution() -> None:
    """A removed channel is zero, its padding too: nothing is folded into borders."""
    s, h = image(8)
    h = s("Sigmoid", h)
    check(s.model(s.conv(h, 8, OUT, 3)), {"channels": [8]})


def test_an_average_pool_that_does_not_count_the_padding() -> None:
    s, h = image(8)
    h = s("AveragePool", s("Sigmoid", h), kernel_shape=[3, 3], pads=[1] * 4, ceil_mode=1, strides=[2, 2])
    check(s.model(s.conv(h, 8, OUT)), {"channels": [8]})


def test_a_sum_of_channels_behind_a_sigmoid_is_approximate() -> None:
    """A masked channel adds one half to the sum."""
    s, h = image(8)
    total = s("ReduceSum", s("Sigmoid", h), s.ints(1), keepdims=1)
    check(s.model(s.conv(s("Mul", h, total), 8, OUT)), {"~channels": [8]})


def test_a_power_of_zero_is_one() -> None:
    """x ** 0 is one where x is masked: a sum over it counts what goes."""
    s, h = vector(8)
    total = s("ReduceSum", s("Pow", h, s.number(0.0)), s.ints(1), keepdims=1)
    check(s.model(s.linear(s("Add", h, total), 8, OUT)), {"~features": [8]})


@pytest.mark.parametrize(("low", "high"), [(-1.0, 1.0), (0.5, 1.0), (-1.0, -0.5)])
def test_clips_that_move_zero(low: float, high: float) -> None:
    s, h = vector(8)
    total = s("ReduceSum", s("Clip", h, s.number(low), s.number(high)), s.ints(1), keepdims=1)
    kind = "features" if low <= 0 <= high else "~features"
    check(s.model(s.linear(s("Add", h, total), 8, OUT)), {kind: [8]})


def test_a_dot_product_of_two_computed_vectors() -> None:
    """Both sides lose the same units; zero times zero adds nothing."""
    s = Sketch()
    x = s.input(N, C)
    product = s("ReduceSum", s("Mul", s.linear(x, C, 8), s.linear(x, C, 8)), s.ints(1), keepdims=1)
    check(s.model(s("Mul", s.linear(x, C, OUT), product)), {"features": [8]})


def test_cosine_similarity_with_stored_prototypes() -> None:
    """Both norms run over what goes: a zero adds nothing to a sum of squares."""
    s, h = vector(8)
    unit = s("Div", h, s("Clip", s("ReduceL2", h, axes=[1]), s.number(1e-6), ""))
    prototypes = s.w(OUT, 8)
    rows = s("Div", prototypes, s("ReduceL2", prototypes, axes=[1]))
    check(s.model(s("MatMul", unit, s("Transpose", rows))), {"features": [8]})


def test_a_correlation_of_channels() -> None:
    """A Gram matrix of channels with themselves, flattened: rows and columns go together."""
    s, h = image(5)
    flat = s.reshape(h, N, 5, H * W)
    gram = s("MatMul", flat, s("Transpose", flat, perm=[0, 2, 1]))
    check(s.model(s.linear(s.reshape(gram, N, 25), 25, OUT)), {"head_dim": [5]})


def test_channel_attention_by_a_product_of_channels() -> None:
    """CBAM-like self-attention over channels: the softmax compares them, so approximate."""
    s, h = image(8)
    flat = s.reshape(h, N, 8, H * W)
    weights = s("Softmax", s("MatMul", flat, s("Transpose", flat, perm=[0, 2, 1])), axis=-1)
    mixed = s.reshape(s("MatMul", weights, flat), N, 8, H, W)
    check(s.model(s.conv(s("Add", mixed, h), 8, OUT)), {"~head_dim": [8]})


def test_efficient_channel_attention() -> None:
    """ECA: a convolution slides over the channels, whose neighborhood may not change."""
    s, h = image(8)
    pooled = s("Transpose", s("Squeeze", s("GlobalAveragePool", h), s.ints(3)), perm=[0, 2, 1])
    slid = s("Conv", pooled, s.w(1, 1, 3), pads=[1, 1])
    gate = s("Unsqueeze", s("Transpose", s("Sigmoid", slid), perm=[0, 2, 1]), s.ints(3))
    check(s.model(s.conv(s("Mul", h, gate), 8, OUT)), {})


def test_channels_become_time() -> None:
    """CRNN: height and channels are one axis of features, the width is time."""
    s, h = image(8)
    sequence = s.reshape(s("Transpose", h, perm=[3, 0, 1, 2]), W, N, 8 * H)
    made = s.call("GRU", sequence, s.w(1, 27, 48), s.w(1, 27, 9), s.w(1, 54), outputs=2, hidden_size=9)
    y = s.linear(s("Squeeze", made[0], s.ints(1)), 9, OUT)
    check(s.model(y), {"channels": [8], "hidden": [9]})


def test_channels_become_places() -> None:
    """A reshape that does not cut between channels: 6 of 24 places read as 8 of 18. Whole thirds would be windows."""
    s, h = image(6)
    y = s.conv(s.reshape(h, N, 8, 6, 3), 8, OUT)
    check(s.model(y), {})


def test_a_transpose_without_a_permutation() -> None:
    s, h = vector(8)
    turned = s("Transpose", h)
    check(s.model(s("MatMul", s.w(OUT, 8), turned)), {"features": [8]})


def test_a_product_with_the_weight_on_the_left() -> None:
    s = Sketch()
    x = s.input(C, N)
    h = s("Relu", s("Add", s("MatMul", s.w(8, C), x), s.w(8, 1)))
    check(s.model(s("MatMul", s.w(OUT, 8), h)), {"features": [8]})


def test_a_vector_product() -> None:
    """A lone axis on the right is summed away, and so is one on the left."""
    s, h = vector(8)
    right = s("MatMul", h, s.w(8))
    left = s("MatMul", s.w(8), s("Transpose", h))
    check(s.model(s("Add", right, left)), {"features": [8]})


def test_gemm_with_alpha_beta_and_both_transposed() -> None:
    s = Sketch()
    x = s.input(C, N)
    h = s("Gemm", x, s.w(8, C), s.w(1, 8), transA=1, transB=1, alpha=0.5, beta=2.0)
    check(s.model(s("Gemm", s("Relu", h), s.w(8, OUT), s.w(N, OUT))), {"features": [8]})


def test_a_bias_that_differs_per_place() -> None:
    """A position table of (1, c, h, w) loses its channels."""
    s, h = image(8)
    check(s.model(s.conv(s("Add", h, s.w(1, 8, H, W)), 8, OUT)), {"channels": [8]})


def test_a_bias_of_as_many_places_as_channels() -> None:
    """Sizes that agree by chance: a vector of 4 runs along the width, not along the 4 channels."""
    s, h = image(4)
    model = s.model(s.conv(s("Add", h, s.w(4)), 4, OUT))
    result = check(model, {"channels": [4]})
    assert result is not None
    assert all(tuple(t.dims) != (2,) or t.name != s.nodes[1].input[1] for t in result.model.proto.graph.initializer)


def test_batch_and_channels_of_one_size() -> None:
    s = Sketch()
    h = s.conv(s.input(8, C, 8, 8), C, 8, 3)
    moved = s("Transpose", h, perm=[0, 2, 3, 1])
    check(s.model(s.linear(s("Add", moved, s.w(8)), 8, OUT)), {"channels": [8]})


def test_a_mean_divided_by_hand() -> None:
    """A sum over channels divided by their stored number: the number stays that of the whole."""
    s, h = image(8)
    mean = s("Div", s("ReduceSum", h, s.ints(1), keepdims=1), s.number(8.0))
    check(s.model(s.conv(s("Sub", h, mean), 8, OUT)), {"channels": [8]})


def test_a_mean_divided_by_a_computed_size() -> None:
    """The number of channels is read from the shape: in the smaller model it would be another."""
    s, h = image(8)
    size = s("Cast", s("Slice", s("Shape", h), s.ints(1), s.ints(2), s.ints(0)), to=T.FLOAT)
    mean = s("Div", s("ReduceSum", h, s.ints(1), keepdims=1), size)
    check(s.model(s.conv(s("Mul", h, mean), 8, OUT)), {"channels": [8]})


def test_a_size_that_is_an_output() -> None:
    s, h = image(8)
    model = s.model(s.conv(h, 8, OUT), s("Shape", h))
    check(model, {})


def test_a_range_over_channels() -> None:
    """Weights that depend on a channel's position are made as a whole: nothing may go."""
    s, h = image(8)
    positions = s("Cast", s("Range", s.number(0, np.int64), s.number(8, np.int64), s.number(1, np.int64)), to=T.FLOAT)
    ramp = s.reshape(positions, 8, 1, 1)
    check(s.model(s.conv(s("Mul", h, ramp), 8, OUT)), {})


def test_an_identity_matrix_is_not_a_weight() -> None:
    s, h = vector(8)
    eye = s("EyeLike", s("ConstantOfShape", s.ints(8, 8)))
    check(s.model(s.linear(s("MatMul", h, eye), 8, OUT)), {})


def test_one_hot_codes_of_a_class() -> None:
    s = Sketch()
    ids = s.input(N, kind=T.INT64)
    codes = s("OneHot", ids, s.number(8, np.int64), s.tensor(np.array([0, 1], np.float32), "values"))
    y = s.linear(s("Relu", s.linear(codes, 8, 6)), 6, OUT)
    check(s.model(y), {"features": [6]})


def test_a_gather_whose_indices_are_shared() -> None:
    """One list of indices picks from two tensors of different width: it is renumbered per use."""
    s = Sketch()
    x = s.input(N, C, H, W)
    order = s.ints(2, 0, 3, 1)
    a, b = (s("Gather", s.conv(x, C, width), order, axis=1) for width in (8, 6))
    check(s.model(s.conv(s("Concat", a, b, axis=1), 8, OUT)), {"channels": [2, 4, 4, 4]})


def test_a_gather_along_two_axes() -> None:
    """Indices of rank two make an axis of pairs."""
    s, h = vector(8)
    pairs = s("Gather", h, s.tensor(np.array([[0, 1], [2, 3], [4, 5], [6, 7]]), "pairs"), axis=1)
    y = s("ReduceMax", pairs, axes=[2], keepdims=0)
    check(s.model(s.linear(y, 4, OUT)), {"~features": [2], "features": [4]})


def test_a_padding_that_is_not_zero_counts_in_a_sum() -> None:
    """Padded with 0.7, the channels that are there are zero where masked, the padding is not, and stays."""
    s, h = vector(8)
    padded = s("Pad", h, s.ints(0, 1, 0, 2), s.number(0.7))
    total = s("ReduceSum", padded, s.ints(1), keepdims=1)
    check(s.model(s.linear(s("Add", h, total), 8, OUT)), {"~features": [8]})


def test_split_into_single_channels() -> None:
    s, h = image(4)
    one, two, three, four = s.call("Split", h, s.ints(1, 1, 1, 1), outputs=4, axis=1)
    y = s("Concat", four, s("Mul", one, two), three, axis=1)
    check(s.model(s.conv(y, 3, OUT)), {})


def test_a_split_of_which_a_part_is_not_read() -> None:
    s, h = image(11)
    parts = s.call("Split", h, s.ints(4, 7), outputs=2, axis=1)
    check(s.model(s.conv(parts[1], 7, OUT)), {"channels": [4, 7]})


def test_a_concat_of_one_tensor_with_itself() -> None:
    s, h = image(8)
    check(s.model(s.conv(s("Concat", h, h, axis=1), 16, OUT)), {"channels": [8]})


def test_a_concat_with_the_input() -> None:
    """U-Net's last level joins the image: its channels stay, the others go."""
    s = Sketch()
    x = s.input(N, C, H, W)
    joined = s("Concat", x, s.conv(x, C, 8, 3), axis=1)
    check(s.model(s.conv(joined, C + 8, OUT)), {"channels": [8]})


def test_a_residual_with_the_input() -> None:
    s = Sketch()
    x = s.input(N, C, H, W)
    h = s("Add", x, s.conv(s("Relu", s.conv(x, C, 8, 3)), 8, C))
    check(s.model(s.conv(h, C, OUT)), {"channels": [8]})


def test_an_output_that_is_also_used() -> None:
    """Features given out stay whole, and so does what is tied to them."""
    s, h = image(8)
    y = s.conv(s("Relu", s.conv(h, 8, 6)), 6, OUT)
    check(s.model(y, h), {"channels": [6]}, still=[h])


def test_a_detection_head_joins_levels() -> None:
    """Boxes and classes of two scales, flattened and joined along places; the channels are the outputs'."""
    s, h = image(8)
    small = s.conv(s("MaxPool", h, kernel_shape=[2, 2], strides=[2, 2]), 8, 10, 3)
    levels = []
    for value, width, places in ((h, 8, H * W), (small, 10, H * W // 4)):
        tower = s("Relu", s.conv(value, width, 6 if width == 8 else 9))
        levels.append(s.reshape(s.conv(tower, 6 if width == 8 else 9, OUT), N, OUT, places))
    check(s.model(s("Sigmoid", s("Concat", *levels, axis=2))), {"channels": [6, 8, 9, 10]})


def test_a_distribution_over_bins() -> None:
    """YOLOv8's box head: (4 bins), softmax over the bins, a stored convolution takes the mean bin."""
    s, h = image(8)
    bins = s.conv(h, 8, 4 * 5)
    apart = s("Transpose", s.reshape(bins, N, 4, 5, H * W), perm=[0, 2, 1, 3])
    y = s("Conv", s("Softmax", apart, axis=1), s.tensor(np.arange(5, dtype=np.float32).reshape(1, 5, 1, 1), "bins"))
    check(s.model(s.reshape(y, N, 4, H * W)), {"channels": [8], "~channels": [5]})


def test_modulated_by_a_vector_of_scales_and_shifts() -> None:
    """FiLM, AdaLN: one product gives scale and shift of every channel."""
    s = Sketch()
    h = s.conv(s.input(N, C, H, W), C, 8, 3)
    both = s.linear(s.input(N, 5, name="condition"), 5, 16)
    scale, shift = (s.reshape(part, N, 8, 1, 1) for part in s.call("Split", both, s.ints(8, 8), outputs=2, axis=1))
    modulated = s("Add", s("Mul", h, s("Add", scale, s.number(1.0))), shift)
    check(s.model(s.conv(modulated, 8, OUT)), {"channels": [8]})


def test_weights_that_are_computed_from_data() -> None:
    """A dynamic convolution: the kernel is a product of the input; both its axes may go."""
    s = Sketch()
    h = s.conv(s.input(1, C, H, W), C, 8, 3)
    kernel = s.reshape(s.linear(s.input(1, 5, name="style"), 5, 6 * 8), 6, 8, 1, 1)
    check(s.model(s.conv(s("Conv", h, kernel), 6, OUT)), {"channels": [6, 8]})


def test_folded_constants_of_ones_and_zeros() -> None:
    """Equal kept and removed values do not make a unit of the wrong place."""
    s, h = vector(8)
    ones, zeros = s.tensor(np.ones(8, np.float32), "ones"), s.tensor(np.zeros(8, np.float32), "zeros")
    y = s("Add", s("Mul", h, ones), zeros)
    check(s.model(s.linear(s("Relu", y), 8, OUT)), {"features": [8]})


def test_a_fused_block_of_onnxruntime() -> None:
    """BiasGelu, SkipLayerNormalization and FusedMatMul as its optimizer writes them."""
    s = Sketch()
    x = s.input(N, 5, C)
    h = s("MatMul", x, s.w(C, 9))
    inner = s("BiasGelu", s("MatMul", h, s.w(9, 8)), s.w(8), domain=MS)
    out = s("FusedMatMul", inner, s.w(8, 9), domain=MS, alpha=0.5)
    normed = s("SkipLayerNormalization", out, h, s.w(9), s.w(9), s.w(9), domain=MS)
    check(s.model(s.linear(normed, 9, OUT)), {"features": [8], "~embedding": [9]})
