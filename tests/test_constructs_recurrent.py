"""Recurrent layers as exporters write them: one or two directions, stacked, with states, peepholes, both layouts."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx.reference import ReferenceEvaluator

import onnxprune
from tests.constructs.sketch import Sketch, check, counts, random_feeds, shape_of

T, N, C, OUT = 5, 2, 3, 7
GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}
CELLS = sorted(GATES)


def layer(s: Sketch, cell: str, x: str, inner: int, hidden: int, directions: int = 1, **more: object) -> list[str]:
    """A layer with bias; gives y (t, d, n, h), the last hidden state and, of an LSTM, the last cell state."""
    k, names = GATES[cell], {1: "forward", 2: "bidirectional"}
    states = more.pop("states", [])
    peepholes = more.pop("peepholes", False)
    inputs = [
        x,
        s.w(directions, k * hidden, inner),
        s.w(directions, k * hidden, hidden),
        s.w(directions, 2 * k * hidden),
        "",
        *states,
    ]  # fmt: skip
    if peepholes:
        inputs += [""] * (7 - len(inputs)) + [s.w(directions, 3 * hidden)]
    more = {"direction": names[directions], "hidden_size": hidden, **more}
    return s.call(cell, *inputs, outputs=3 if cell == "LSTM" else 2, **more)


def flat(s: Sketch, y: str, hidden: int, directions: int) -> str:
    """(t, d, n, h) to (t, n, d*h), as torch exports it."""
    if directions == 1:
        return s("Squeeze", y, s.ints(1))
    return s.reshape(s.transpose(y, 0, 2, 1, 3), 0, 0, hidden * directions)


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("directions", [1, 2])
def test_two_layers(cell: str, directions: int) -> None:
    """Both directions of a layer are stored in one tensor: they lose the same units."""
    s = Sketch()
    x = s.input(T, N, C)
    h = flat(s, layer(s, cell, x, C, 8, directions)[0], 8, directions)
    h = flat(s, layer(s, cell, h, 8 * directions, 6, directions)[0], 6, directions)
    result = check(s.model(s.linear(h, 6 * directions, OUT)), {"hidden": [6, 8]})
    assert result is not None
    attributes = [a.i for n in result.model.proto.graph.node for a in n.attribute if a.name == "hidden_size"]
    assert attributes == [4, 3]


@pytest.mark.parametrize("cell", CELLS)
def test_states_of_the_signature_stay(cell: str) -> None:
    """A streaming model takes and gives its states: their width is part of the interface."""
    s = Sketch()
    x = s.input(T, N, C)
    names = ["h0", "c0"][: 2 if cell == "LSTM" else 1]
    states = [s.input(1, N, 8, name=name) for name in names]
    made = layer(s, cell, x, C, 8, states=states)
    model = s.model(s.linear(s.linear(flat(s, made[0], 8, 1), 8, 6), 6, OUT), *made[1:])
    check(model, {"features": [6]}, still=made[1:])


@pytest.mark.parametrize("cell", CELLS)
def test_states_that_are_stored(cell: str) -> None:
    """Learned initial states lose their units with the layer."""
    s = Sketch()
    states = [s.w(1, N, 8) for _ in range(2 if cell == "LSTM" else 1)]
    made = layer(s, cell, s.input(T, N, C), C, 8, states=states)
    result = check(s.model(s.linear(flat(s, made[0], 8, 1), 8, OUT)), {"hidden": [8]})
    assert result is not None
    assert shape_of(result.model.proto, states[0]) == (1, N, 4)


def test_zero_states_of_a_computed_batch() -> None:
    """torch: ConstantOfShape of (directions, batch, hidden) from Shape and Concat, one for hidden and cell state."""
    s = Sketch()
    x = s.input(T, "n", C)
    batch = s("Unsqueeze", s("Gather", s("Shape", x), s.number(1, np.int64)), s.ints(0))
    zeros = s("ConstantOfShape", s("Concat", s.ints(1), batch, s.ints(8), axis=0))
    made = layer(s, "LSTM", x, C, 8, states=[zeros, zeros])
    check(s.model(s.linear(flat(s, made[0], 8, 1), 8, OUT)), {"hidden": [8]})


def test_zero_states_sliced_out_of_one_tensor() -> None:
    """torch, several layers: the zeros of all layers are one tensor, cut by layer."""
    s = Sketch()
    x = s.input(T, N, C)
    zeros = s("ConstantOfShape", s.ints(2, N, 8))
    h = x
    for k, inner in enumerate((C, 8)):
        state = s("Slice", zeros, s.ints(k), s.ints(k + 1), s.ints(0))
        h = flat(s, layer(s, "GRU", h, inner, 8, states=[state])[0], 8, 1)
    found = counts(onnxprune.analyze(s.model(s.linear(h, 8, OUT))))
    assert found in ({"hidden": ["8", "8"]}, {"hidden": ["8"]})


@pytest.mark.parametrize("directions", [1, 2])
def test_peepholes(directions: int) -> None:
    s = Sketch()
    made = layer(s, "LSTM", s.input(T, N, C), C, 8, directions, peepholes=True)
    check(s.model(s.linear(flat(s, made[0], 8, directions), 8 * directions, OUT)), {"hidden": [8]})


@pytest.mark.parametrize("cell", CELLS)
def test_the_last_state_is_read(cell: str) -> None:
    """A classifier reads the last hidden state of both directions, and of an LSTM the cell state too."""
    s = Sketch()
    made = layer(s, cell, s.input(T, N, C), C, 8, 2)
    read = [s.reshape(s.transpose(y, 1, 0, 2), N, 16) for y in made[1:]]
    joined = s("Concat", *read, axis=1) if len(read) > 1 else read[0]
    check(s.model(s.linear(joined, 16 * len(read), OUT)), {"hidden": [8]})


def test_a_gru_that_resets_after_the_product() -> None:
    s = Sketch()
    made = layer(s, "GRU", s.input(T, N, C), C, 8, linear_before_reset=1)
    check(s.model(s.linear(flat(s, made[0], 8, 1), 8, OUT)), {"hidden": [8]})


@pytest.mark.parametrize("activations", [["Tanh"], ["Relu"], ["Sigmoid"]])
def test_activations_of_its_own(activations: list[str]) -> None:
    """Where a zero does not stay zero the unit is still read by nothing once its columns are gone."""
    s = Sketch()
    made = layer(s, "RNN", s.input(T, N, C), C, 8, activations=activations)
    check(s.model(s.linear(flat(s, made[0], 8, 1), 8, OUT)), {"hidden": [8]})


@pytest.mark.parametrize("cell", CELLS)
def test_batch_first(cell: str) -> None:
    """Layout 1, which onnxruntime does not run: against the twin in the reference evaluator."""
    s = Sketch()
    x = s.input(N, T, C)
    made = layer(s, cell, x, C, 8, layout=1)
    y = s.linear(s("Squeeze", made[0], s.ints(2)), 8, OUT)
    graph = onnx.helper.make_graph(
        s.nodes, "g", s.inputs, [onnx.helper.make_tensor_value_info(y, onnx.TensorProto.FLOAT, (N, T, OUT))], s.tensors
    )  # fmt: skip
    model = onnx.helper.make_model(graph, ir_version=10, opset_imports=[onnx.helper.make_opsetid("", s.opset)])
    analysis = onnxprune.analyze(model)
    assert counts(analysis) == {"hidden": ["8"]}
    plan = onnxprune.plan(analysis, ratio=0.5)
    pruned, twin = onnxprune.apply(model, plan).proto, onnxprune.mask(model, plan).proto
    feeds = random_feeds(model)
    original, got, expected = (ReferenceEvaluator(m).run(None, feeds)[0] for m in (model, pruned, twin))
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-6)
    assert np.abs(got - original).max() > 0.01


def test_a_tagger_with_an_embedding_and_a_convolution() -> None:
    s = Sketch()
    ids = s.input(N, T, kind=onnx.TensorProto.INT64)
    h = s.transpose(s("Gather", s.w(11, 6), ids), 0, 2, 1)
    h = s("Relu", s("Conv", h, s.w(9, 6, 3), s.w(9), pads=[1, 1]))
    h = flat(s, layer(s, "LSTM", s.transpose(h, 2, 0, 1), 9, 8, 2)[0], 8, 2)
    check(s.model(s.transpose(s.linear(h, 16, OUT), 1, 0, 2)), {"embedding": [6], "channels": [9], "hidden": [8]})


def test_an_encoder_hands_its_state_to_a_decoder() -> None:
    """The decoder starts from the encoder's state: both lose the same units."""
    s = Sketch()
    encoded = layer(s, "GRU", s.input(T, N, C), C, 8)
    decoded = layer(s, "GRU", s.input(4, N, 6, name="target"), 6, 8, states=[encoded[1]])
    check(s.model(s.linear(flat(s, decoded[0], 8, 1), 8, OUT)), {"hidden": [8]})
