"""Settings by layer: merged key by key, later ones win, and what depends on others is settled last."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnxprune import load
from onnxprune.errors import NotMetError, OptionError, UnknownNameError
from onnxprune.masks import Blocks, NofM
from onnxprune.sparsity.choice import choose_weights
from onnxprune.sparsity.settings import Settings, resolve
from onnxprune.sparsity.weights import find_weights


@pytest.fixture(scope="module")
def weights():
    rng = np.random.default_rng(3)
    shapes = {"table": (9, 6), "body.a": (6, 8), "body.b": (8, 12), "head": (12, 5)}
    nodes = [
        helper.make_node("Gather", ["table", "i"], ["h0"], name="look"),
        helper.make_node("MatMul", ["h0", "body.a"], ["h1"], name="first"),
        helper.make_node("MatMul", ["h1", "body.b"], ["h2"], name="second"),
        helper.make_node("MatMul", ["h2", "head"], ["h3"], name="last"),
        helper.make_node("Softmax", ["h3"], ["y"], name="softmax"),
    ]
    tensors = [numpy_helper.from_array(rng.normal(size=s).astype(np.float32), n) for n, s in shapes.items()]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("i", TensorProto.INT64, [2])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [2, 5])],
        tensors,
    )
    return find_weights(load(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)))


def test_later_globs_win_key_by_key(weights):
    layers = {"*": {"sparsity": 0.7, "norm": "l2"}, "body.*": {"sparsity": 0.3}, "second": {"pattern": "2x1"}}
    found = resolve(weights, Settings(pattern="1x4", max_ratio=0.9), layers)
    assert [found[n].sparsity for n in ("table", "body.a", "body.b", "head")] == [0.7, 0.3, 0.3, 0.7]
    assert {s.norm for s in found.values()} == {"l2"}
    assert {s.max_ratio for s in found.values()} == {0.9}
    assert found["body.a"].pattern == Blocks(1, 4)
    assert found["body.b"].pattern == Blocks(2, 1)


def test_derived_values_follow_the_layers_own_pattern(weights):
    found = resolve(
        weights, Settings(pattern="1:4"), {"body.a": {"pattern": "2:4"}, "head": {"pattern": "unstructured"}}
    )
    assert {n: s.sparsity for n, s in found.items()} == {"table": 0.75, "body.a": 0.5, "body.b": 0.75, "head": 0.5}
    assert found["body.b"].pattern == NofM(1, 4)
    blocks = resolve(weights, Settings(pattern="1x4"), {"head": {"pattern": "1x8"}, "body.b": {"zeros-per-block": 3}})
    # A block of another size is zeroed whole as well, not with the zeros of the first.
    assert (blocks["head"].pattern.zeros, blocks["body.b"].pattern.zeros) == (None, 3)


def test_spelled_patterns(weights):
    found = resolve(weights, Settings(pattern="1x4", zeros_per_block=2))
    assert found["head"].spelled == "1x4, 2 zeros per block"


@pytest.mark.parametrize(
    ("defaults", "layers", "message"),
    [
        ({}, {"boddy.*": {"sparsity": 0.1}}, r"unknown layer 'boddy\.\*'\. Did you mean 'body\."),
        ({}, {"head": {"sparcity": 0.1}}, r"'sparcity'\. Did you mean 'sparsity'"),
        ({}, {"head": 0.3}, "table of keys"),
        ({"sparsity": 1.5}, {}, "sparsity is a fraction from 0 to 1, not 1.5"),
        ({"sparsity": float("nan")}, {}, "from 0 to 1, not nan"),
        ({"max_ratio": -0.1}, {}, "max_ratio is a fraction"),
        ({"min_ratio": 0.6}, {}, "min_ratio 0.6 is above the sparsity asked for, 0.5"),
        ({"min_ratio": 0.4, "max_ratio": 0.3}, {}, "min_ratio 0.4 is above max_ratio 0.3"),
        ({"pattern": "2:4", "sparsity": 0.6}, {}, "at most 0.5, not 0.6"),
        ({}, {"head": {"pattern": "2:4", "sparsity": 0.6}}, "head: 2:4 keeps 2 of every 4"),
        ({"pattern": "4:2"}, {}, "4:2 keeps 4 of every 2"),
        ({"pattern": "1x4", "zeros_per_block": 5}, {}, "zeros_per_block is 5"),
        ({"pattern": "unstructurd"}, {}, "Did you mean 'unstructured'"),
        ({"criterion": "magnitud"}, {}, "Did you mean 'magnitude'"),
        ({"criterion": "l1", "norm": "l2"}, {}, "contradict"),
        ({"norm": "l3"}, {}, "unknown norm 'l3'"),
    ],
)
def test_what_cannot_be_meant_is_refused(weights, defaults, layers, message):
    with pytest.raises(OptionError, match=message):
        resolve(weights, Settings(**defaults), layers)


def test_kinds_globs_and_outputs_choose(weights):
    settings = resolve(weights, Settings())
    assert chosen(weights, settings) == ["body.a", "body.b", "head"]
    assert chosen(weights, settings, skip_outputs=True) == ["body.a", "body.b"]
    assert chosen(weights, settings, skip_outputs=True, include=["body.b", "head"]) == ["body.b", "head"]
    assert chosen(weights, settings, include=["table", "first"]) == ["table", "body.a"]
    assert chosen(weights, settings, exclude=["second"]) == ["body.a", "head"]
    assert chosen(weights, settings, kinds=["embedding"]) == ["table"]


def test_a_layers_own_skip_decides(weights):
    settings = resolve(weights, Settings(), {"table": {"skip": False}, "body.*": {"skip": True}})
    assert chosen(weights, settings) == ["table", "head"]


def chosen(weights, settings, **options):
    return [name for name, reason in choose_weights(weights, settings, **options).items() if reason is None]


def test_globs_and_kinds_that_name_nothing(weights):
    settings = resolve(weights, Settings())
    with pytest.raises(UnknownNameError, match="Did you mean 'head'"):
        choose_weights(weights, settings, exclude=["haed"])
    with pytest.raises(UnknownNameError, match="kind of weight 'embeding'"):
        choose_weights(weights, settings, kinds=["embeding"])
    with pytest.raises(NotMetError, match="excluded"):
        choose_weights(weights, settings, exclude=["*"])
