"""Statistics of inner tensors, against numpy on the same data."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper, parser

from onnxprune.calibration import Probe, Statistics, Wanted, gather, gather_in_order, wanted
from onnxprune.errors import DataError, ModelError, OptionError, UnknownNameError
from onnxprune.graph.model import Model, load, save

Array = np.ndarray[Any, Any]
ALL = ("gram", "mean", "square", "variance", "zeros")


def text_model(text: str, **weights: Array) -> Model:
    """Parse a model; weights become initializers."""
    proto = parser.parse_model(text)
    proto.graph.initializer.extend(numpy_helper.from_array(array, name) for name, array in weights.items())
    return Model(proto)


def draw(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng([seed, *shape]).standard_normal(shape).astype(np.float32)


def check(found: Statistics, rows: Array) -> None:
    """Compare all statistics with rows (groups, rows, features)."""
    rows = rows.astype(np.float64)
    n = rows.shape[1]
    assert found.n_rows == n
    np.testing.assert_allclose(found.get("gram"), rows.swapaxes(1, 2) @ rows / n, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(found.get("mean"), rows.mean(1), rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(found.get("square"), (rows**2).mean(1), rtol=1e-5)
    np.testing.assert_allclose(found.get("variance"), rows.var(1), rtol=1e-4, atol=1e-7)
    np.testing.assert_array_equal(found.get("zeros"), (rows == 0).mean(1))


HEAD = '<ir_version: 8, opset_import: ["" : 17, "local" : 1]>'
MLP = (
    HEAD
    + """
mlp (float[n, 5] x) => (float[n, 3] y) {
  a = MatMul(x, w1)
  h = Relu(a)
  y = Gemm<transB = 1>(h, w2)
}"""
)


def mlp() -> Model:
    return text_model(MLP, w1=draw(5, 7), w2=draw(3, 7))


def test_inputs_inner_tensors_and_all_feeds_count() -> None:
    feeds = [{"x": draw(4, 5, seed=k)} for k in range(3)] + [{"x": draw(2, 5, seed=9)}]
    first, second = wanted(0, 0, *ALL), wanted(2, 0, *ALL)
    found = gather(mlp(), [second, first], feeds)
    assert list(found) == [second, first]
    x = np.concatenate([feed["x"] for feed in feeds])
    check(found[first], x[None])
    check(found[second], np.maximum(x @ draw(5, 7), 0)[None])
    assert found[first].n_samples == 14
    assert 0.1 < found[second].get("zeros").mean() < 0.9


def test_only_what_is_wanted_is_there() -> None:
    w = wanted(2, 0, "mean")
    found = gather(mlp(), [w], [{"x": draw(4, 5)}])[w]
    assert found.square is None
    assert found.gram is None
    with pytest.raises(LookupError, match="'gram' was not gathered"):
        found.get("gram")


def test_consumers_of_one_tensor_share_its_sums_but_get_their_own_needs() -> None:
    model = text_model(
        HEAD + "g (float[n, 5] x) => (float[n, 7] p, float[n, 3] q) { h = Tanh(x) p = MatMul(h, a) q = MatMul(h, b) }",
        a=draw(5, 7),
        b=draw(5, 3),
    )
    one, two = wanted(1, 0, "gram"), wanted(2, 0, "mean")
    found = gather(model, [one, two], [{"x": draw(6, 5)}])
    h = np.tanh(draw(6, 5)).astype(np.float64)
    np.testing.assert_allclose(found[one].get("gram")[0], h.T @ h / 6, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(found[two].get("mean")[0], h.mean(0), rtol=1e-5, atol=1e-7)
    assert found[two].gram is None


def test_operands_of_products_in_every_position() -> None:
    model = text_model(
        HEAD
        + """
g (float[5, 4] x, float[2, 4, 3] z) => (float[4, 7] p, float[6, 4] q, float[2, 8, 3] r, float[2, 4, 9] s) {
  p = Gemm<transA = 1>(x, w1)
  q = Gemm(w2, x)
  r = MatMul(w3, z)
  s = MatMul(z, w4)
}""",
        w1=draw(5, 7),
        w2=draw(6, 5),
        w3=draw(8, 4),
        w4=draw(2, 3, 9),
    )
    x, z = draw(5, 4), draw(2, 4, 3)
    wants = [wanted(0, 0, *ALL), wanted(1, 1, *ALL), wanted(2, 1, *ALL), wanted(3, 0, *ALL)]
    found = gather(model, wants, [{"x": x, "z": z}])
    check(found[wants[0]], x.T[None])
    check(found[wants[1]], x.T[None])
    check(found[wants[2]], z.swapaxes(1, 2).reshape(1, -1, 4))
    # A stack of weights: every one has its own rows.
    check(found[wants[3]], z)


def test_a_vector_and_shared_rows_of_a_stack() -> None:
    model = text_model(
        HEAD + "g (float[5] x, float[4, 5] z) => (float[7] p, float[2, 4, 3] q) { p = MatMul(x, a) q = MatMul(z, b) }",
        a=draw(5, 7),
        b=draw(2, 5, 3),
    )
    wants = [wanted(0, 0, *ALL), wanted(1, 0, *ALL)]
    found = gather(model, wants, [{"x": draw(5), "z": draw(4, 5)}])
    check(found[wants[0]], draw(5).reshape(1, 1, 5))
    check(found[wants[1]], np.stack([draw(4, 5)] * 2))


def test_einsum_contracts_several_letters_in_the_weights_order() -> None:
    model = text_model(
        HEAD + 'g (float[2, 3, 4, 5] x) => (float[2, 4, 7] y) { y = Einsum<equation = "bhtd,tdho->bto">(x, w) }',
        w=draw(4, 5, 3, 7),
    )
    w = wanted(0, 0, *ALL)
    x = draw(2, 3, 4, 5)
    # t is in both and stays, so it groups; d and h are contracted, in the weight's order.
    check(gather(model, [w], [{"x": x}])[w], x.transpose(2, 0, 3, 1).reshape(4, 2, 15))


def test_any_axis_of_any_tensor() -> None:
    model = text_model(HEAD + "g (float[2, 3, 4] x) => (float[2, 3, 4] y) { h = Abs(x) y = Sqrt(h) }")
    w = wanted(1, 0, *ALL, axis=1)
    found = gather(model, [w], [{"x": draw(2, 3, 4)}])[w]
    check(found, np.abs(draw(2, 3, 4)).transpose(1, 0, 2).reshape(1, 3, 8).swapaxes(1, 2))


# --- recurrent layers, tables ---


def recurrent(op: str, direction: str, gates: int, *, give_y: bool, lengths: bool) -> tuple[Model, dict[str, Array]]:
    d = 2 if direction == "bidirectional" else 1
    n_steps, n, into, hidden = 6, 3, 4, 5
    weights = {"w": draw(d, gates * hidden, into), "r": draw(d, gates * hidden, hidden, seed=1)}
    feed = {"x": draw(n_steps, n, into), "h0": draw(d, n, hidden, seed=2)}
    if lengths:
        feed["n"] = np.array([6, 2, 4], np.int32)
    node = helper.make_node(
        op,
        ["x", "w", "r", "", "n" if lengths else "", "h0"],
        ["y" if give_y else "", "last"],
        hidden_size=hidden,
        direction=direction,
    )
    inputs = [
        helper.make_tensor_value_info(k, TensorProto.INT32 if k == "n" else TensorProto.FLOAT, v.shape)
        for k, v in feed.items()
    ]
    outputs = [helper.make_tensor_value_info("last", TensorProto.FLOAT, None)]
    tensors = [numpy_helper.from_array(v, k) for k, v in weights.items()]
    graph = helper.make_graph([node], "recurrent", inputs, outputs, tensors)
    return Model(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)), feed


@pytest.mark.parametrize("lengths", [False, True])
@pytest.mark.parametrize("direction", ["forward", "reverse", "bidirectional"])
@pytest.mark.parametrize(("op", "gates"), [("LSTM", 4), ("GRU", 3), ("RNN", 1)])
def test_recurrent_layers_show_their_steps_and_states(op: str, gates: int, direction: str, lengths: bool) -> None:
    model, feed = recurrent(op, direction, gates, give_y=False, lengths=lengths)
    steps, states = wanted(0, 0, *ALL), wanted(0, 5, *ALL)
    found = gather(model, [steps, states], [feed])
    counts = feed.get("n", np.full(3, 6))
    check(found[steps], np.concatenate([feed["x"][:k, b] for b, k in enumerate(counts)])[None])
    model.proto.graph.node[0].output[0] = "y"
    model.proto.graph.output.add(name="y")
    y = ort.InferenceSession(model.proto.SerializeToString()).run(["y"], feed)[0]
    rows: list[list[Array]] = [[] for _ in range(y.shape[1])]
    for d, held in enumerate(rows):
        for b, k in enumerate(counts):
            order = list(range(k))
            if direction == "reverse" or d == 1:
                order.reverse()
            state = feed["h0"][d, b]
            for step in order:
                held.append(state)
                state = y[step, d, b]
    check(found[states], np.array(rows))


def test_reads_of_a_table() -> None:
    model = text_model(HEAD + "g (int64[n, 4] i) => (float[n, 4, 3] y) { y = Gather<axis = 0>(t, i) }", t=draw(6, 3))
    w, gram = wanted(0, 1, "mean", "square", "variance", "zeros"), wanted(0, 1, "gram")
    feeds = [{"i": np.array([[0, 1, 1, -1]])}, {"i": np.array([[5, 1, 2, 2], [2, 2, 2, 2]])}]
    found = gather(model, [w, gram], feeds)
    share = np.array([1, 3, 6, 0, 0, 2]) / 12
    np.testing.assert_allclose(found[w].get("mean")[0], share, rtol=1e-12)
    np.testing.assert_allclose(found[w].get("square")[0], share, rtol=1e-12)
    np.testing.assert_allclose(found[w].get("zeros")[0], 1 - share, rtol=1e-12)
    np.testing.assert_allclose(found[w].get("variance")[0], share * (1 - share), rtol=1e-12, atol=1e-15)
    assert "diagonal" in found[gram].missing


# --- quantized operands ---


def test_codes_are_decoded_or_read_before_they_were_quantized() -> None:
    model = text_model(
        HEAD
        + """
g (float[n, 5] x) => (uint8[n, 7] p, int32[n, 7] q) {
  a = QuantizeLinear(x, s, z)
  p = QLinearMatMul(a, s, z, b, s, zb, s, z)
  c, cs, cz = DynamicQuantizeLinear(x)
  q = MatMulInteger(c, b, cz, zb)
}""",
        s=np.float32(0.05).reshape(()),
        z=np.uint8(100).reshape(()),
        zb=np.int8(3).reshape(()),
        b=np.arange(-17, 18, dtype=np.int8).reshape(5, 7),
    )
    x = draw(6, 5)
    wants = [wanted(1, 0, *ALL), wanted(3, 0, *ALL)]
    found = gather(model, wants, [{"x": x}])
    decoded = (np.clip(np.rint(x / np.float32(0.05)) + 100, 0, 255) - 100) * np.float32(0.05)
    check(found[wants[0]], decoded[None])
    check(found[wants[1]], x[None])


def test_codes_of_unknown_scale_say_so() -> None:
    model = text_model(
        HEAD + "g (uint8[n, 5] x) => (int32[n, 7] y) { y = MatMulInteger(x, b) }", b=np.ones((5, 7), np.int8)
    )
    w = wanted(0, 0, "mean")
    assert "unknown scale" in gather(model, [w], [{"x": np.ones((2, 5), np.uint8)}])[w].missing


def test_half_precision_is_accumulated_in_float64() -> None:
    model = text_model(HEAD + "g (float16[n, 5] x) => (float16[n, 5] y) { y = Add(x, x) z = Mul(y, y) }")
    w = wanted(1, 0, *ALL, axis=-1)
    x = (300 * draw(40, 5)).astype(np.float16)
    check(gather(model, [w], [{"x": x}])[w], (x + x).astype(np.float32)[None])


def test_bfloat16_is_cast_on_the_way_out() -> None:
    model = text_model(
        HEAD + "g (float[n, 5] x) => (float[n, 5] y) { h = Cast<to = 16>(x) g = Identity(h) y = Cast<to = 1>(g) }"
    )
    w = wanted(1, 0, *ALL, axis=1)
    found = gather(model, [w], [{"x": np.round(4 * draw(6, 5))}])[w]
    check(found, np.round(4 * draw(6, 5))[None])


def test_a_small_variance_beside_a_large_mean_survives() -> None:
    x = (1000 + 0.01 * draw(5000, 3)).astype(np.float32)
    w = wanted(0, 0, "variance", axis=1)
    model = text_model(HEAD + "g (float[n, 3] x) => (float[n, 3] y) { y = Relu(x) }")
    found = gather(model, [w], [{"x": part} for part in np.split(x, 10)])[w]
    np.testing.assert_allclose(found.get("variance")[0], x.astype(np.float64).var(0), rtol=1e-3)


def test_values_that_are_not_finite_are_reported() -> None:
    model = text_model(HEAD + "g (float[n, 3] x) => (float[n, 4] y) { h = Log(x) y = MatMul(h, w) }", w=draw(3, 4))
    w = wanted(1, 0, "gram")
    found = gather(model, [w], [{"x": np.zeros((2, 3), np.float32)}])[w]
    assert "not finite" in found.missing
    with pytest.raises(LookupError, match="not finite"):
        found.get("gram")


# --- bodies ---

FUNCTION = (
    HEAD
    + """
g (float[n, 5] x) => (float[n, 3] y) {
  h = local.half(x, w1)
  k = local.half(h, w2)
  y = MatMul(k, w3)
}
<domain: "local", opset_import: ["" : 17]>
half (a, w) => (c) { b = MatMul(a, w) c = Relu(b) }
"""
)


def test_bodies_of_functions_are_laid_open() -> None:
    model = text_model(FUNCTION, w1=draw(5, 7), w2=draw(7, 6), w3=draw(6, 3))
    inner = [k for k, n in enumerate(model.flat.nodes) if n.op_type == "MatMul"]
    wants = [wanted(k, 0, *ALL) for k in inner]
    found = gather(model, wants, [{"x": draw(8, 5)}])
    h = np.maximum(draw(8, 5) @ draw(5, 7), 0)
    check(found[wants[0]], draw(8, 5)[None])
    check(found[wants[1]], h[None])
    check(found[wants[2]], np.maximum(h @ draw(7, 6), 0)[None])


BRANCHES = (
    HEAD
    + """
g (float[n, 5] x, bool up) => (float[n, 3] y) {
  h = Tanh(x)
  y = If (up) <
    then_branch = yes () => (float[n, 3] p) { a = Relu(h) p = MatMul(a, w1) },
    else_branch = no () => (float[n, 3] q) { b = Neg(h) c = Sigmoid(b) q = MatMul(c, w2) }
  >
}"""
)


def test_branches_pass_out_what_they_ran_on() -> None:
    model = text_model(BRANCHES, w1=draw(5, 3), w2=draw(5, 3))
    wants = [wanted(k, 0, *ALL) for k, n in enumerate(model.flat.nodes) if n.op_type == "MatMul"]
    feeds = [{"x": draw(4, 5, seed=k), "up": np.array(k % 3 == 0)} for k in range(5)]
    found = gather(model, wants, feeds)
    up, down = (np.concatenate([f["x"] for f in feeds if bool(f["up"]) is which]) for which in (True, False))
    check(found[wants[0]], np.maximum(np.tanh(up), 0)[None])
    check(found[wants[1]], (1 / (1 + np.exp(np.tanh(down))))[None])
    assert found[wants[0]].n_samples == 20


def test_a_branch_that_never_ran_says_so() -> None:
    model = text_model(BRANCHES, w1=draw(5, 3), w2=draw(5, 3))
    wants = [wanted(k, 0, "mean") for k, n in enumerate(model.flat.nodes) if n.op_type == "MatMul"]
    found = gather(model, wants, [{"x": draw(4, 5), "up": np.array(False)}])
    assert found[wants[0]].missing == "it holds no rows on the samples"
    assert not found[wants[1]].missing


def test_bodies_of_loops_are_missing_with_the_reason() -> None:
    model = text_model(
        HEAD
        + """
g (float[n, 5] x) => (float[n, 5] y) {
  y = Loop (m, , x) <body = b (int64 i, bool c, float[n, 5] a) => (bool d, float[n, 5] e) {
    d = Identity(c) t = Tanh(a) e = MatMul(t, w)
  }>
}""",
        m=np.int64(3).reshape(()),
        w=draw(5, 5),
    )
    (node,) = [k for k, n in enumerate(model.flat.nodes) if n.op_type == "MatMul"]
    w = wanted(node, 0, "mean")
    assert gather(model, [w], [{"x": draw(2, 5)}])[w].missing == "it lies in the body of a Loop"


# --- weights, memory, order ---


def test_other_weights_change_what_comes_after_them() -> None:
    other = draw(5, 7, seed=4)
    w = wanted(2, 0, *ALL)
    found = gather(mlp(), [w], [{"x": draw(6, 5)}], weights={"w1": other})[w]
    check(found, np.maximum(draw(6, 5) @ other, 0)[None])


def test_other_weights_in_constants_and_branches() -> None:
    model = text_model(
        HEAD
        + "g (float[n, 2] x) => (float[n, 2] y) { k = Constant<value = float[2] {1, 2}>() h = Mul(x, k) y = Relu(h) }"
    )
    w = wanted(2, 0, "mean", axis=-1)
    k = np.array([3, -4], np.float32)
    found = gather(model, [w], [{"x": draw(6, 2)}], weights={"k": k})[w]
    np.testing.assert_allclose(found.get("mean")[0], (draw(6, 2) * k).mean(0), rtol=1e-5)
    branches = text_model(
        HEAD
        + """
g (float[n, 2] x, bool up) => (float[n, 2] y) {
  y = If (up) <
    then_branch = yes () => (float[n, 2] p) { k = Constant<value = float[2] {1, 2}>() a = Mul(x, k) p = Relu(a) },
    else_branch = no () => (float[n, 2] q) { q = Neg(x) }
  >
}"""
    )
    node = next(i for i, n in enumerate(branches.flat.nodes) if n.op_type == "Relu")
    w = wanted(node, 0, "mean", axis=-1)
    found = gather(branches, [w], [{"x": draw(6, 2), "up": np.array(True)}], weights={"k": k})[w]
    np.testing.assert_allclose(found.get("mean")[0], (draw(6, 2) * k).mean(0), rtol=1e-5)


def test_in_order_every_layer_sees_the_changed_ones_before_it() -> None:
    model = text_model(
        HEAD
        + """
g (float[n, 5] x) => (float[n, 3] y, float[n, 4] z) {
  h = MatMul(x, w1)
  r = Relu(h)
  y = MatMul(r, w2)
  z = MatMul(r, w3)
}""",
        w1=draw(5, 7),
        w2=draw(7, 3),
        w3=draw(7, 4),
    )
    feeds = [{"x": draw(6, 5)}]
    first, second, third = wants = [wanted(k, 0, "gram", "cross") for k in (0, 2, 3)]
    weights: dict[str, Array] = {}
    seen = []
    calls = []
    for k, found in enumerate(
        gather_in_order(model, wants[::-1], feeds, weights=weights, progress=lambda a, b: calls.append((a, b)))
    ):
        seen.append(found)
        weights[f"w{k + 1}"] = 2 * draw(5, 7, seed=1) if k == 0 else draw(7, 3)
    assert [list(found) for found in seen] == [[first], [second, third]]
    assert calls == [(1, 2), (2, 2)]
    x = feeds[0]["x"].astype(np.float64)
    new, old = np.maximum(x @ (2 * draw(5, 7, seed=1)), 0), np.maximum(x @ draw(5, 7), 0)
    np.testing.assert_allclose(seen[0][first].get("cross")[0], x.T @ x / 6, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(seen[1][second].get("gram")[0], new.T @ new / 6, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(seen[1][third].get("cross")[0], new.T @ old / 6, rtol=1e-5, atol=1e-6)


def test_states_of_layers_that_share_a_start_are_steps_of_their_own() -> None:
    model, feed = recurrent("RNN", "forward", 1, give_y=True, lengths=False)
    steps = gather_in_order(model, [wanted(0, 5, "mean"), wanted(0, 0, "mean")], [feed], weights={})
    assert [[w.slot for w in found] for found in steps] == [[0], [5]]


def test_several_passes_give_what_one_gives() -> None:
    feeds = [{"x": draw(4, 5, seed=k)} for k in range(3)]
    wants = [wanted(0, 0, *ALL), wanted(1, 0, *ALL, axis=1), wanted(2, 0, *ALL)]
    calls: list[tuple[int, int]] = []
    one = gather(mlp(), wants, feeds)
    many = gather(mlp(), wants, feeds, memory_bytes=1, progress=lambda done, total: calls.append((done, total)))
    assert calls == [(k, 9) for k in range(1, 10)]
    for w in wants:
        for need in ALL:
            np.testing.assert_array_equal(one[w].get(need), many[w].get(need))


def test_no_session_holds_more_than_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    from onnxprune.calibration.session import Session

    fetched: list[int] = []
    original = Session.run

    def counted(self: Session, names: Any, feed: Any) -> list[Array]:
        found = original(self, names, feed)
        fetched.append(sum(array.nbytes for array in found))
        return found

    monkeypatch.setattr(Session, "run", counted)
    text = "".join(f"h{k + 1} = Tanh(h{k}) " for k in range(9))
    model = text_model(HEAD + f"g (float[n, 16] h0) => (float[n, 16] y) {{ {text} y = Neg(h9) }}")
    feeds = [{"h0": draw(3, 16)}, {"h0": draw(10, 16)}]
    found = gather(model, [wanted(k, 0, "mean", axis=1) for k in range(10)], feeds, memory_bytes=3 * 10 * 16 * 4)
    assert max(fetched) == 3 * 10 * 16 * 4
    assert len({s.get("mean").tobytes() for s in found.values()}) == 10


def test_the_same_bits_every_time() -> None:
    feeds = [{"x": draw(40, 5, seed=k)} for k in range(3)]
    w = wanted(2, 0, *ALL)
    first, *others = (gather(mlp(), [w], feeds, threads=n)[w] for n in (1, 1, 3, None))
    assert all(first.get(need).tobytes() == again.get(need).tobytes() for need in ALL for again in others)


@settings(max_examples=25, deadline=None, derandomize=True)
@given(st.lists(st.integers(1, 7), min_size=1, max_size=5))
def test_how_samples_are_divided_does_not_matter(sizes: list[int]) -> None:
    x = draw(sum(sizes), 5)
    w = wanted(2, 0, *ALL)
    feeds = [{"x": part} for part in np.split(x, np.cumsum(sizes)[:-1])]
    found = gather(mlp(), [w], feeds)[w]
    check(found, np.maximum(x @ draw(5, 7), 0)[None])
    assert found.n_samples == sum(sizes)


def test_a_model_with_its_data_outside(tmp_path: Any) -> None:
    model = text_model(MLP, w1=draw(5, 700), w2=draw(3, 700))
    save(model, tmp_path / "m.onnx", external_data=True)
    kept = load(tmp_path / "m.onnx")
    assert kept.has_external_data
    w = wanted(2, 0, "mean")
    found = gather(kept, [w], [{"x": draw(6, 5)}], weights={"w2": draw(3, 700, seed=1)})[w]
    np.testing.assert_allclose(
        found.get("mean")[0], np.maximum(draw(6, 5) @ draw(5, 700), 0).mean(0), rtol=1e-4, atol=1e-6
    )


# --- what is refused ---


def test_feeds_that_can_be_read_once_are_kept() -> None:
    x = draw(6, 5)
    w, v = wanted(0, 0, "mean"), wanted(2, 0, "mean")
    found = gather(mlp(), [w, v], ({"x": part} for part in np.split(x, 3)), memory_bytes=1)
    assert found[v].n_samples == 6
    np.testing.assert_allclose(found[w].get("mean")[0], x.mean(0), rtol=1e-5, atol=1e-7)


def test_one_symbol_may_have_two_sizes_in_feeds_that_run() -> None:
    model = text_model(
        HEAD + "g (float[n, 5] x, float[n, 3] z) => (float[n, 5] p, float[n, 3] q) { p = Abs(x) q = Neg(z) }"
    )
    w = wanted(1, 0, "mean", axis=1)
    found = gather(model, [w], [{"x": draw(4, 5), "z": draw(2, 3)}, {"x": draw(3, 5), "z": draw(6, 3)}])[w]
    assert found.n_rows == 8


def test_bad_arguments() -> None:
    feeds = [{"x": draw(4, 5)}]
    with pytest.raises(UnknownNameError, match=r"unknown statistic 'median'.*mean"):
        wanted(0, 0, "median")
    with pytest.raises(OptionError, match="there is no node 12"):
        gather(mlp(), [wanted(12, 0, "mean")], feeds)
    with pytest.raises(OptionError, match="MatMul 'a' has no input 4"):
        gather(mlp(), [wanted(0, 4, "mean")], feeds)
    with pytest.raises(DataError, match="no samples"):
        gather(mlp(), [wanted(0, 0, "mean")], [])
    with pytest.raises(UnknownNameError, match="Did you mean 'w1'"):
        gather(mlp(), [wanted(2, 0, "mean")], feeds, weights={"w11": draw(5, 7)})
    with pytest.raises(DataError, match="axis 1 is 6 and must be 5"):
        gather(mlp(), [wanted(2, 0, "mean")], [{"x": draw(4, 6)}])
    with pytest.raises(ModelError, match=r"onnxruntime does not load it: .*Incompatible dimensions"):
        gather(text_model(MLP, w1=draw(5, 7), w2=draw(3, 8)), [wanted(2, 0, "mean")], feeds, weights={"w1": draw(4, 7)})
    with pytest.raises(OptionError, match="memory_bytes"):
        gather(mlp(), [], feeds, memory_bytes=0)


def test_other_inputs_are_missing_with_the_reason() -> None:
    w = Wanted(1, 0, frozenset({"mean"}))
    found = gather(Probe(mlp()), [w], [{"x": draw(4, 5)}])[w]
    assert found.missing == "input 0 of 'Relu' is no data that a weight of it multiplies"
    assert onnx.checker.check_model(mlp().proto) is None
