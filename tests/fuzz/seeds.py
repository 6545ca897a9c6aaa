"""Small valid models that mutation starts from: every kind of construct that loading and analysis know."""

from __future__ import annotations

import functools
import os
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper, parser

from tests.random_graphs import build

ROOT = Path(__file__).resolve().parent.parent.parent
SAMPLES = ("digits_cnn", "digits_transformer", "digits_masked_ao")
ZOO = ("hand_control_if_cond", "hand_odd_ops_maxout_crelu", "spec_int8_qdq_cnn", "spec_local_function",
       "spec_loop_conv", "spec_nhwc_tf_style", "spec_opset9_ir3")  # fmt: skip
RANDOM_GRAPHS = range(60)


def weights(*shape: int) -> np.ndarray:
    """Give distinct float weights of a shape, the same every time."""
    return np.random.default_rng(shape).standard_normal(shape).astype(np.float32)


def with_weights(text: str, **shapes: tuple[int, ...]) -> onnx.ModelProto:
    """Parse a model and give it float initializers by name and shape."""
    model = parser.parse_model(text)
    model.graph.initializer.extend(numpy_helper.from_array(weights(*s), n) for n, s in shapes.items())
    return model


def function_model() -> onnx.ModelProto:
    """Two calls of a function that calls another."""
    return with_weights(
        """<ir_version: 9, opset_import: ["" : 18, "f" : 1]>
        g (float[n, 5] x) => (float[n, 3] y) {
          h = f.Outer <alpha = 0.1> (x, w1, b1)
          y = f.Outer <alpha = 0.2> (h, w2, b2)
        }
        <domain: "f", opset_import: ["" : 18, "f" : 1]>
        Outer <alpha> (x, w, b) => (y) { h = f.Inner (x, w, b) y = LeakyRelu <alpha: float = @alpha> (h) }
        <domain: "f", opset_import: ["" : 18]>
        Inner (x, w, b) => (y) { h = MatMul (x, w) y = Add (h, b) }""",
        w1=(5, 7), b1=(7,), w2=(7, 3), b2=(3,),
    )  # fmt: skip


def control_model() -> onnx.ModelProto:
    """If, Loop and Scan, with tensors inside their bodies."""
    return with_weights(
        """<ir_version: 9, opset_import: ["" : 18]>
        g (float[4, 6] x, bool c) => (float[4, 3] y, float[4, 6] s) {
          h = If (c) <then_branch = t () => (float[4, 7] a) { a0 = MatMul (x, w1) a = Relu (a0) },
                      else_branch = e () => (float[4, 7] b) { b0 = MatMul (x, w1) b = Tanh (b0) }>
          n = Constant <value = int64 {2}> ()
          l = Loop (n, , h) <body = k (int64 i, bool go, float[4, 7] v) => (bool more, float[4, 7] u)
                { more = Identity (go) u0 = MatMul (v, w2) u = Sigmoid (u0) }>
          y = MatMul (l, w3)
          z, s = Scan (zero, x) <num_scan_inputs = 1, body = q (float[6] st, float[6] e) => (float[6] st2, float[6] o)
                { st2 = Add (st, e) o = Identity (st2) }>
        }""",
        w1=(6, 7), w2=(7, 7), w3=(7, 3), zero=(6,),
    )  # fmt: skip


def recurrent_model() -> onnx.ModelProto:
    """LSTM in both directions, then a product."""
    return with_weights(
        """<ir_version: 9, opset_import: ["" : 18]>
        g (float[t, b, 5] x) => (float[t, b, 3] y) {
          h, hn, cn = LSTM <hidden_size = 4, direction = "bidirectional"> (x, w, r, bias)
          p = Transpose <perm = [0, 2, 1, 3]> (h)
          s = Constant <value = int64[3] {0, 0, 8}> ()
          f = Reshape (p, s)
          y = MatMul (f, v)
        }""",
        w=(2, 16, 5), r=(2, 16, 4), bias=(2, 32), v=(8, 3),
    )  # fmt: skip


def attention_model() -> onnx.ModelProto:
    """Fused attention of onnxruntime behind a normalization with a skip."""
    return with_weights(
        """<ir_version: 9, opset_import: ["" : 18, "com.microsoft" : 1]>
        g (float[1, 6, 8] x) => (float[1, 6, 8] y) {
          a = com.microsoft.Attention <num_heads = 2> (x, wqkv, bqkv)
          o = MatMul (a, wo)
          n = com.microsoft.SkipLayerNormalization (o, x, gamma, beta)
          u = MatMul (n, w1)
          v = com.microsoft.BiasGelu (u, b1)
          y = MatMul (v, w2)
        }""",
        wqkv=(8, 24), bqkv=(24,), wo=(8, 8), gamma=(8,), beta=(8,), w1=(8, 12), b1=(12,), w2=(12, 8),
    )  # fmt: skip


def mixed_model() -> onnx.ModelProto:
    """Convolutions with groups, Concat, Split, a computed shape, and weights of several types and stores."""
    model = with_weights(
        """<ir_version: 9, opset_import: ["" : 18]>
        g (float[n, 3, 8, 8] x) => (float[n, 5] y) {
          a = Conv <kernel_shape = [3, 3], pads = [1, 1, 1, 1]> (x, w1, b1)
          r = Relu (a)
          d = Conv <group = 8> (r, w2)
          p, q = Split <axis = 1> (d, parts)
          c = Concat <axis = 1> (q, p, r)
          m = GlobalAveragePool (c)
          sh = Shape <start = 0, end = 1> (m)
          k = Constant <value = int64[1] {16}> ()
          t = Concat <axis = 0> (sh, k)
          f = Reshape (m, t)
          wf = Cast <to = 1> (half)
          y = Gemm (f, wf, sparse)
        }""",
        w1=(8, 3, 3, 3), b1=(8,), w2=(8, 1, 1, 1),
    )  # fmt: skip
    graph = model.graph
    graph.initializer.append(numpy_helper.from_array(np.array([3, 5], np.int64), "parts"))
    graph.initializer.append(numpy_helper.from_array(weights(16, 5).astype(np.float16), "half"))
    values = helper.make_tensor("sparse", TensorProto.FLOAT, [2], [0.5, -0.25])
    graph.sparse_initializer.append(
        helper.make_sparse_tensor(values, helper.make_tensor("i", TensorProto.INT64, [2], [1, 3]), [5])
    )
    return model


@functools.cache
def seed_models() -> tuple[bytes, ...]:
    """Serialize all seeds, largest last."""
    made = [function_model(), control_model(), recurrent_model(), attention_model(), mixed_model()]
    found = [m.SerializeToString() for m in made] * 6
    found += [build(seed).model.SerializeToString() for seed in RANDOM_GRAPHS]
    found += [(ROOT / "samples" / f"{name}.onnx").read_bytes() for name in SAMPLES]
    zoo = os.environ.get("ONNXPRUNE_FUZZ_SEEDS")
    if zoo is not None:
        found += [Path(zoo, f"{name}.onnx").read_bytes() for name in ZOO]
    return tuple(found)
