"""Bodies of If, Loop, Scan and model-local functions: what is found in them, and what a cut makes of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import onnx
import pytest
from onnx import TensorProto as T
from onnx import helper, numpy_helper

import onnxprune
from onnxprune.graph.model import serialize
from onnxprune.verification.tensors import graphs
from tests.test_properties import distance, run

OPSET = 18
LOCAL = "local"
Shape = Sequence[int | str]


def random(*shape: int) -> np.ndarray:
    return np.random.default_rng(sum(shape)).standard_normal(shape).astype(np.float32)


def tensor(name: str, *shape: int, scale: float = 1.0) -> onnx.TensorProto:
    seed = sum(shape) + sum(map(ord, name))
    array = np.random.default_rng(seed).standard_normal(shape) * scale
    return numpy_helper.from_array(array.astype(np.float32), name)


def numbers(name: str, *items: int) -> onnx.TensorProto:
    return numpy_helper.from_array(np.array(items, np.int64), name)


def info(name: str, *shape: int | str, kind: int = T.FLOAT) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, kind, list(shape))


def node(op: str, inputs: str, outputs: str, domain: str = "", **attributes: object) -> onnx.NodeProto:
    """Make a node from names separated by blanks; `_` is an empty one."""
    names = [["" if n == "_" else n for n in part.split()] for part in (inputs, outputs)]
    return helper.make_node(op, *names, name=f"n_{names[1][0]}", domain=domain, **attributes)


def body(
    name: str,
    nodes: Sequence[onnx.NodeProto],
    outputs: Sequence[onnx.ValueInfoProto],
    tensors: Sequence[onnx.TensorProto] = (),
    inputs: Sequence[onnx.ValueInfoProto] = (),
) -> onnx.GraphProto:
    return helper.make_graph(list(nodes), name, list(inputs), list(outputs), list(tensors))


def model_of(graph: onnx.GraphProto, functions: Sequence[onnx.FunctionProto] = ()) -> onnx.ModelProto:
    opsets = [helper.make_opsetid("", OPSET), *([helper.make_opsetid(LOCAL, 1)] if functions else [])]
    model = helper.make_model(graph, opset_imports=opsets, functions=list(functions), ir_version=10)
    onnx.checker.check_model(model, full_check=True)
    return model


def function(
    name: str, inputs: str, outputs: str, nodes: Sequence[onnx.NodeProto], attributes: Sequence[str] = ()
) -> onnx.FunctionProto:
    opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid(LOCAL, 1)]
    return helper.make_function(LOCAL, name, inputs.split(), outputs.split(), list(nodes), opsets, list(attributes))


def n_weights(proto: onnx.ModelProto) -> int:
    """Count the numbers that all tensors of all graphs and functions hold."""
    lists = [[*g.node] for _, g in graphs(proto)] + [[*f.node] for f in proto.functions]
    held = [t for _, g in graphs(proto) for t in g.initializer]
    held += [a.t for nodes in lists for n in nodes for a in n.attribute if a.type == onnx.AttributeProto.TENSOR]
    return sum(int(np.prod(t.dims)) for t in held)


def sizes(proto: onnx.ModelProto) -> list[int]:
    return sorted(g.size for g in onnxprune.analyze(proto).groups)


def halve(proto: onnx.ModelProto, feeds: Sequence[Mapping[str, np.ndarray]], **options: object) -> onnx.ModelProto:
    """Prune at one half; the result verifies, equals the masked twin on `feeds`, and is smaller in every way."""
    before = serialize(proto)
    analysis = onnxprune.analyze(proto)
    plan = onnxprune.plan(analysis, ratio=0.5, **options)
    assert not plan.empty
    assert all(g.removed for g in plan.groups), [g.id for g in plan.groups if not g.removed]
    pruned = onnxprune.apply(analysis, plan).proto
    assert serialize(proto) == before, "the source was edited"
    onnx.checker.check_model(pruned, full_check=True)
    verdict = onnxprune.verify(proto, onnxprune.load(pruned), plan=plan, data=list(feeds))
    assert verdict.ok, [c for c in verdict.checks if not c.ok]
    assert verdict.exact, verdict.exact_reason
    twin = onnxprune.mask(proto, plan).proto
    for feed in feeds:
        expected = run(twin, feed)
        assert distance(run(pruned, feed), expected) <= 1e-5
        assert distance(run(proto, feed), expected) > 1e-3, "the removal must show"
    assert n_weights(pruned) < n_weights(proto)
    assert len(serialize(pruned)) < len(serialize(proto)) + 250  # the stamp
    again = onnxprune.analyze(pruned)
    assert sorted(g.size for g in again.groups) == sorted(g.size - len(g.removed) for g in plan.groups)
    return pruned


def dims(graph: onnx.GraphProto) -> dict[str, list[int]]:
    return {t.name: list(t.dims) for t in graph.initializer}


def bodies_of(n: onnx.NodeProto) -> dict[str, onnx.GraphProto]:
    return {a.name: a.g for a in n.attribute if a.type == onnx.AttributeProto.GRAPH}


YES, NO = ({"cond": np.array(c), "x": random(3, 40)} for c in (True, False))


# --- If ---


def branches(
    then: onnx.GraphProto, other: onnx.GraphProto, tensors: Sequence[onnx.TensorProto], *conditions: str
) -> onnx.ModelProto:
    nodes = [
        node("MatMul", "x w1", "h"),
        helper.make_node("If", ["cond"], ["y"], "n_y", then_branch=then, else_branch=other),
    ]
    inputs = [*(info(name, kind=T.BOOL) for name in ("cond", *conditions)), info("x", 3, 40)]
    return model_of(body("g", nodes, [info("y", 3, 7)], tensors, inputs))


def test_if_captures_weights() -> None:
    then = body("then", [node("Relu", "h", "t0"), node("MatMul", "t0 w2", "t1")], [info("t1", 3, 7)])
    other = body("else", [node("MatMul", "h w2", "e1")], [info("e1", 3, 7)])
    proto = branches(then, other, [tensor("w1", 40, 24), tensor("w2", 24, 7)])
    assert sizes(proto) == [24]
    pruned = halve(proto, [YES, NO])
    assert dims(pruned.graph) == {"w1": [40, 12], "w2": [12, 7]}
    assert not any(dims(b) for b in bodies_of(pruned.graph.node[1]).values()), "no weight moves into a branch"


def test_branches_with_weights_of_the_same_names() -> None:
    def inner(width: int) -> onnx.GraphProto:
        nodes = [node("MatMul", "h a", "b0"), node("Relu", "b0", "b1"), node("MatMul", "b1 c", "out")]
        return body(f"b{width}", nodes, [info("out", 3, 7)], [tensor("a", 24, width), tensor("c", width, 7)])

    proto = branches(inner(10), inner(16), [tensor("w1", 40, 24)])
    assert sizes(proto) == [10, 16, 24]
    pruned = halve(proto, [YES, NO])
    found = bodies_of(pruned.graph.node[1])
    assert dims(found["then_branch"]) == {"a": [12, 5], "c": [5, 7]}
    assert dims(found["else_branch"]) == {"a": [12, 8], "c": [8, 7]}


def test_nested_if() -> None:
    deep = [
        body(f"d{k}", [node("MatMul", "m v", "z")], [info("z", 3, 7)], [tensor("v", 14, 7, scale=k + 1)])
        for k in range(2)
    ]
    then = body(
        "then",
        [
            node("MatMul", "h u", "m0"),
            node("Relu", "m0", "m"),
            helper.make_node("If", ["deeper"], ["out"], "n_in", then_branch=deep[0], else_branch=deep[1]),
        ],
        [info("out", 3, 7)],
        [tensor("u", 24, 14)],
    )
    other = body("else", [node("MatMul", "h v", "out")], [info("out", 3, 7)], [tensor("v", 24, 7)])
    proto = branches(then, other, [tensor("w1", 40, 24)], "deeper")
    assert sizes(proto) == [14, 24]
    feeds = [{**feed, "deeper": np.array(d)} for feed in (YES, NO) for d in (True, False)]
    pruned = halve(proto, feeds)
    outer = bodies_of(pruned.graph.node[1])
    assert dims(outer["then_branch"]) == {"u": [12, 7]}
    assert dims(outer["else_branch"]) == {"v": [12, 7]}
    assert all(dims(b) == {"v": [7, 7]} for b in bodies_of(outer["then_branch"].node[2]).values())


def test_if_whose_output_is_pruned() -> None:
    """The units reach through the branches' outputs: both branches lose the same."""
    parts = [
        body(f"b{k}", [node("MatMul", "x v", "out")], [info("out", 3, 18)], [tensor("v", 40, 18, scale=k + 1)])
        for k in range(2)
    ]
    nodes = [
        helper.make_node("If", ["cond"], ["h"], "n_h", then_branch=parts[0], else_branch=parts[1]),
        node("Relu", "h", "r"),
        node("MatMul", "r w", "y"),
    ]
    inputs = [info("cond", kind=T.BOOL), info("x", 3, 40)]
    proto = model_of(body("g", nodes, [info("y", 3, 7)], [tensor("w", 18, 7)], inputs))
    assert sizes(proto) == [18]
    pruned = halve(proto, [YES, NO])
    assert all(dims(b) == {"v": [40, 9]} for b in bodies_of(pruned.graph.node[0]).values())


def test_a_vector_captured_by_both_branches_comes_to_differ() -> None:
    """A Reshape target that two branches and the main graph share must be written for each."""

    def inner(name: str, width: int) -> onnx.GraphProto:
        nodes = [
            node("MatMul", f"h {name}1", f"{name}a"),
            node("Add", f"{name}a bias", f"{name}b"),
            node("Relu", f"{name}b", f"{name}c"),
            node("MatMul", f"{name}c {name}2", "out"),
        ]
        tensors = [tensor(f"{name}1", 24, width), tensor(f"{name}2", width, 7)]
        return body(name, nodes, [info("out", 3, 7)], tensors)

    proto = branches(inner("p", 14), inner("q", 14), [tensor("w1", 40, 24), tensor("bias", 14)])
    assert sizes(proto) == [14, 14, 24]
    pruned = halve(proto, [YES, NO])
    named = dims(pruned.graph)
    assert named["bias"] == [7]
    read = {b.node[1].input[1] for b in bodies_of(pruned.graph.node[1]).values()}
    assert all(named[name] == [7] for name in read)


def test_a_reshape_target_shared_by_branches_is_written_per_use() -> None:
    def inner(name: str, width: int) -> onnx.GraphProto:
        nodes = [
            node("MatMul", f"h {name}1", f"{name}a"),
            node("Reshape", f"{name}a target", f"{name}b"),
            node("Relu", f"{name}b", f"{name}c"),
            node("Reshape", f"{name}c back", f"{name}d"),
            node("MatMul", f"{name}d {name}2", "out"),
        ]
        tensors = [tensor(f"{name}1", 24, width), tensor(f"{name}2", width, 7)]
        return body(name, nodes, [info("out", 3, 7)], tensors)

    shared = [tensor("w1", 40, 24), numbers("target", 3, 2, 7, 1), numbers("back", 3, 14)]
    proto = branches(inner("p", 14), inner("q", 14), shared)
    before = onnxprune.analyze(proto)
    mine = [g.id for g in before.groups if any(m.initializer == "p1" and m.axis == 1 for m in g.members)]
    assert mine
    plan = onnxprune.plan(before, ratio=0.5, include=mine[:1])
    pruned = onnxprune.apply(before, plan).proto
    assert onnxprune.verify(proto, onnxprune.load(pruned), plan=plan, data=[YES, NO]).ok
    found = bodies_of(pruned.graph.node[1])
    targets = {name: b.node[1].input[1] for name, b in found.items()}
    assert targets["then_branch"] != targets["else_branch"]
    twin = onnxprune.mask(proto, plan).proto
    for feed in (YES, NO):
        assert distance(run(pruned, feed), run(twin, feed)) <= 1e-5


# --- Loop and Scan ---


def test_loop_with_a_carried_state_and_captured_convolutions() -> None:
    inside = body(
        "inside",
        [
            node("Conv", "state w2", "c0", pads=[1, 1, 1, 1]),
            node("Relu", "c0", "next"),
            node("Identity", "going", "go_on"),
        ],
        [info("go_on", kind=T.BOOL), info("next", 1, 12, 5, 6)],
        (),
        [info("round", kind=T.INT64), info("going", kind=T.BOOL), info("state", 1, 12, 5, 6)],
    )
    nodes = [
        node("Conv", "x w1", "h", pads=[1, 1, 1, 1]),
        helper.make_node("Loop", ["rounds", "", "h"], ["final"], "n_loop", body=inside),
        node("Conv", "final w3", "y"),
    ]
    tensors = [
        tensor("w1", 12, 3, 3, 3),
        tensor("w2", 12, 12, 3, 3, scale=0.2),
        tensor("w3", 7, 12, 1, 1),
        numpy_helper.from_array(np.array(2, np.int64), "rounds"),
    ]
    proto = model_of(body("g", nodes, [info("y", 1, 7, 5, 6)], tensors, [info("x", 1, 3, 5, 6)]))
    assert sizes(proto) == [12]
    pruned = halve(proto, [{"x": random(1, 3, 5, 6)}])
    assert dims(pruned.graph) == {"w1": [6, 3, 3, 3], "w2": [6, 6, 3, 3], "w3": [7, 6, 1, 1], "rounds": []}
    declared = bodies_of(pruned.graph.node[1])["body"]
    assert [d.dim_value for d in declared.input[2].type.tensor_type.shape.dim] == [1, 6, 5, 6]


def test_loop_with_scan_outputs() -> None:
    """The state's width is fixed by the graph output; the stacked output's width and a layer inside may shrink."""
    inside = body(
        "inside",
        [
            node("MatMul", "state a", "m0"),
            node("Relu", "m0", "m"),
            node("MatMul", "m b", "next0"),
            node("Tanh", "next0", "next"),
            node("MatMul", "next c", "row"),
            node("Identity", "going", "go_on"),
        ],
        [info("go_on", kind=T.BOOL), info("next", 3, 8), info("row", 3, 18)],
        [tensor("a", 8, 14), tensor("b", 14, 8), tensor("c", 8, 18)],
        [info("round", kind=T.INT64), info("going", kind=T.BOOL), info("state", 3, 8)],
    )
    nodes = [
        helper.make_node("Loop", ["rounds", "", "x"], ["last", "rows"], "n_loop", body=inside),
        node("Relu", "rows", "r"),
        node("MatMul", "r w", "y"),
    ]
    tensors = [tensor("w", 18, 5), numpy_helper.from_array(np.array(4, np.int64), "rounds")]
    proto = model_of(body("g", nodes, [info("last", 3, 8), info("y", 4, 3, 5)], tensors, [info("x", 3, 8)]))
    assert sizes(proto) == [14, 18]
    pruned = halve(proto, [{"x": random(3, 8)}])
    assert dims(bodies_of(pruned.graph.node[0])["body"]) == {"a": [8, 7], "b": [7, 8], "c": [8, 9]}
    assert dims(pruned.graph)["w"] == [9, 5]


@pytest.mark.parametrize("axis", [0, 1])
def test_scan_with_states_and_scan_inputs(axis: int) -> None:
    inside = body(
        "inside",
        [
            node("MatMul", "step a", "s0"),
            node("MatMul", "state b", "s1"),
            node("Add", "s0 s1", "s2"),
            node("Relu", "s2", "next"),
            node("MatMul", "next c", "row"),
        ],
        [info("next", 3, 12), info("row", 3, 18)],
        [tensor("a", 10, 12), tensor("b", 12, 12, scale=0.2), tensor("c", 12, 18)],
        [info("state", 3, 12), info("step", 3, 10)],
    )
    nodes = [
        node("MatMul", "x w0", "start"),
        node("MatMul", "z w1", "steps"),
        helper.make_node(
            "Scan",
            ["start", "steps"],
            ["last", "rows"],
            "n_scan",
            body=inside,
            num_scan_inputs=1,
            scan_input_axes=[axis],
            scan_output_axes=[axis],
        ),
        node("MatMul", "rows w2", "y"),
        node("MatMul", "last w3", "y2"),
    ]
    tensors = [tensor("w0", 5, 12), tensor("w1", 6, 10), tensor("w2", 18, 7), tensor("w3", 12, 9)]
    z = [4, 3, 6] if axis == 0 else [3, 4, 6]
    y = [*z[:2], 7]
    inputs = [info("x", 3, 5), info("z", *z)]
    proto = model_of(body("g", nodes, [info("y", *y), info("y2", 3, 9)], tensors, inputs))
    assert sizes(proto) == [10, 12, 18]
    pruned = halve(proto, [{"x": random(3, 5), "z": random(*z)}])
    assert dims(pruned.graph) == {"w0": [5, 6], "w1": [6, 5], "w2": [9, 7], "w3": [6, 9]}
    assert dims(bodies_of(pruned.graph.node[2])["body"]) == {"a": [5, 6], "b": [6, 6], "c": [6, 9]}


# --- functions ---


X = [{"x": random(3, 40)}]


def mlp(name: str = "Mlp") -> onnx.FunctionProto:
    nodes = [node("MatMul", "a u", "h"), node("Relu", "h", "r"), node("MatMul", "r v", "b")]
    return function(name, "a u v", "b", nodes)


def calls(
    nodes: Sequence[onnx.NodeProto], tensors: Sequence[onnx.TensorProto], functions: Sequence[onnx.FunctionProto]
) -> onnx.ModelProto:
    return model_of(body("g", nodes, [info("y", 3, 7)], tensors, [info("x", 3, 40)]), functions)


def test_one_call() -> None:
    proto = calls([node("Mlp", "x w1 w2", "y", LOCAL)], [tensor("w1", 40, 24), tensor("w2", 24, 7)], [mlp()])
    assert sizes(proto) == [24]
    pruned = halve(proto, X)
    assert dims(pruned.graph) == {"w1": [40, 12], "w2": [12, 7]}
    assert list(pruned.functions) == list(proto.functions)


def test_two_calls_with_different_weights_share_a_body_that_needs_no_edit() -> None:
    nodes = [node("Mlp", "x w1 w2", "m", LOCAL), node("Mlp", "m w3 w4", "y", LOCAL)]
    tensors = [tensor("w1", 40, 24), tensor("w2", 24, 18), tensor("w3", 18, 10), tensor("w4", 10, 7)]
    proto = calls(nodes, tensors, [mlp()])
    assert sizes(proto) == [10, 18, 24]
    pruned = halve(proto, X)
    assert list(pruned.functions) == list(proto.functions)
    assert dims(pruned.graph) == {"w1": [40, 12], "w2": [12, 9], "w3": [9, 5], "w4": [5, 7]}


def convolutions(groups: Sequence[int]) -> onnx.ModelProto:
    """Two calls of a grouped convolution whose group count is written in the function."""
    block = function("Block", "a u", "b", [node("Conv", "a u", "c", group=12), node("Relu", "c", "b")])
    nodes = [node("Conv", "x w0", "h0")]
    tensors = [tensor("w0", 12, 5, 1, 1)]
    for k in range(2):
        nodes += [node("Block", f"h{k} d{k}", f"r{k}", LOCAL), node("Conv", f"r{k} p{k}", f"h{k + 1}")]
        tensors += [tensor(f"d{k}", 12, 1, 1, 1), tensor(f"p{k}", groups[k], 12, 1, 1)]
    nodes.append(node("Conv", "h2 w3", "y"))
    tensors.append(tensor("w3", 7, groups[1], 1, 1))
    return model_of(body("g", nodes, [info("y", 1, 7, 4, 3)], tensors, [info("x", 1, 5, 4, 3)]), [block])


def group_of(proto: onnx.ModelProto, call: onnx.NodeProto) -> int:
    found = next(f for f in proto.functions if f.name == call.op_type)
    return next(a.i for a in found.node[0].attribute if a.name == "group")


def test_an_attribute_that_differs_between_calls_makes_a_second_function() -> None:
    proto = convolutions([12, 9])
    analysis = onnxprune.analyze(proto)
    first = next(g.id for g in analysis.groups if any(m.initializer == "d0" for m in g.members))
    plan = onnxprune.plan(analysis, ratio=0.5, include=[first])
    pruned = onnxprune.apply(analysis, plan).proto
    onnx.checker.check_model(pruned, full_check=True)
    assert onnxprune.verify(proto, onnxprune.load(pruned), plan=plan).ok
    blocks = [n for n in pruned.graph.node if n.domain == LOCAL]
    assert sorted(f.name for f in pruned.functions) == ["Block", "Block.onnxprune.1"]
    assert [group_of(pruned, n) for n in blocks] == [6, 12]
    x = {"x": random(1, 5, 4, 3)}
    assert distance(run(pruned, x), run(onnxprune.mask(proto, plan).proto, x)) <= 1e-5


def test_an_attribute_edited_alike_in_all_calls_keeps_one_function() -> None:
    proto = convolutions([12, 9])
    pruned = halve(proto, [{"x": random(1, 5, 4, 3)}])
    assert [f.name for f in pruned.functions] == ["Block"]
    assert {group_of(pruned, n) for n in pruned.graph.node if n.domain == LOCAL} == {6}


def test_a_reshape_constant_in_the_body_is_written_per_call() -> None:
    block = function(
        "Block",
        "a u v",
        "b",
        [
            node("MatMul", "a u", "m"),
            _constant("target", 3, 4, 6),
            node("Reshape", "m target", "s"),
            node("Relu", "s", "r"),
            _constant("flat", 3, 24),
            node("Reshape", "r flat", "f"),
            node("MatMul", "f v", "b"),
        ],
    )
    nodes = [node("Block", "x w1 w2", "m1", LOCAL), node("Block", "m1 w3 w4", "y", LOCAL)]
    tensors = [tensor("w1", 40, 24), tensor("w2", 24, 18), tensor("w3", 18, 24), tensor("w4", 24, 7)]
    proto = calls(nodes, tensors, [block])
    analysis = onnxprune.analyze(proto)
    first = [g.id for g in analysis.groups if any(m.initializer == "w1" and m.axis == 1 for m in g.members)]
    assert first
    plan = onnxprune.plan(analysis, ratio=0.5, include=first[:1])
    pruned = onnxprune.apply(analysis, plan).proto
    onnx.checker.check_model(pruned, full_check=True)
    verdict = onnxprune.verify(proto, onnxprune.load(pruned), plan=plan)
    assert verdict.ok, [c for c in verdict.checks if not c.ok]
    assert len(pruned.functions) == 2
    assert distance(run(pruned, X[0]), run(onnxprune.mask(proto, plan).proto, X[0])) <= 1e-5


def _constant(name: str, *items: int) -> onnx.NodeProto:
    return helper.make_node("Constant", [], [name], f"n_{name}", value=numbers(name, *items))


def test_nested_functions() -> None:
    inner = function("Inner", "a u", "b", [node("MatMul", "a u", "c"), node("Relu", "c", "b")])
    outer = function(
        "Outer", "a u v", "b", [node("Inner", "a u", "h", LOCAL), node("MatMul", "h v", "c"), node("Tanh", "c", "b")]
    )
    nodes = [
        node("Outer", "x w1 w2", "m", LOCAL),
        node("Inner", "m w3", "n", LOCAL),
        node("Outer", "n w4 w5", "y", LOCAL),
    ]
    shapes = {"w1": (40, 24), "w2": (24, 18), "w3": (18, 14), "w4": (14, 10), "w5": (10, 7)}
    proto = calls(nodes, [tensor(n, *s) for n, s in shapes.items()], [outer, inner])
    assert sizes(proto) == [10, 14, 18, 24]
    pruned = halve(proto, X)
    assert dims(pruned.graph) == {"w1": [40, 12], "w2": [12, 9], "w3": [9, 7], "w4": [7, 5], "w5": [5, 7]}
    assert len(pruned.functions) == 2


def test_a_nested_function_edited_for_one_outer_call() -> None:
    inner = function("Inner", "a u", "b", [node("Conv", "a u", "b", group=12)])
    outer = function("Outer", "a u", "b", [node("Inner", "a u", "h", LOCAL), node("Relu", "h", "b")])
    nodes = [node("Conv", "x w0", "h0")]
    tensors = [tensor("w0", 12, 5, 1, 1)]
    for k in range(2):
        nodes += [node("Outer", f"h{k} d{k}", f"r{k}", LOCAL), node("Conv", f"r{k} p{k}", f"h{k + 1}")]
        tensors += [tensor(f"d{k}", 12, 1, 1, 1), tensor(f"p{k}", (12, 7)[k], 12, 1, 1)]
    graph = body("g", nodes, [info("h2", 1, 7, 4, 3)], tensors, [info("x", 1, 5, 4, 3)])
    proto = model_of(graph, [outer, inner])
    analysis = onnxprune.analyze(proto)
    for wanted in ("d0", "d1"):
        group = next(g.id for g in analysis.groups if any(m.initializer == wanted for m in g.members))
        plan = onnxprune.plan(analysis, ratio=0.5, include=[group])
        pruned = onnxprune.apply(analysis, plan).proto
        onnx.checker.check_model(pruned, full_check=True)
        verdict = onnxprune.verify(proto, onnxprune.load(pruned), plan=plan)
        assert verdict.ok, [c for c in verdict.checks if not c.ok]
        assert sorted(f.name for f in pruned.functions) == ["Inner", "Inner.onnxprune.1", "Outer", "Outer.onnxprune.1"]
        x = {"x": random(1, 5, 4, 3)}
        assert distance(run(pruned, x), run(onnxprune.mask(proto, plan).proto, x)) <= 1e-5


def test_function_attributes_by_reference() -> None:
    """`group` is an attribute of the call: the call is edited, or the body, so that each call gets its own."""
    conv = helper.make_node("Conv", ["a", "u"], ["c"], "n_c")
    conv.attribute.add(name="group", ref_attr_name="n_groups", type=onnx.AttributeProto.INT)
    block = function("Block", "a u", "b", [conv, node("Relu", "c", "b")], ["n_groups"])
    nodes = [
        node("Conv", "x w0", "h0"),
        node("Block", "h0 d0", "r0", LOCAL, n_groups=12),
        node("Block", "r0 p0", "h1", LOCAL, n_groups=1),
        node("Conv", "h1 w3", "y"),
    ]
    tensors = [
        tensor("w0", 12, 5, 1, 1),
        tensor("d0", 12, 1, 1, 1),
        tensor("p0", 18, 12, 1, 1),
        tensor("w3", 7, 18, 1, 1),
    ]
    graph = body("g", nodes, [info("y", 1, 7, 4, 3)], tensors, [info("x", 1, 5, 4, 3)])
    proto = model_of(graph, [block])
    assert sizes(proto) == [12, 18]
    halve(proto, [{"x": random(1, 5, 4, 3)}])


def test_an_if_inside_a_function() -> None:
    then = body("then", [node("MatMul", "r v", "out")], [info("out", 3, 7)])
    other = body("else", [node("Tanh", "r", "q"), node("MatMul", "q v", "out")], [info("out", 3, 7)])
    block = function(
        "Block",
        "c a u v",
        "b",
        [
            node("MatMul", "a u", "h"),
            node("Relu", "h", "r"),
            helper.make_node("If", ["c"], ["b"], "n_if", then_branch=then, else_branch=other),
        ],
    )
    inputs = [info("cond", kind=T.BOOL), info("x", 3, 40)]
    tensors = [tensor("w1", 40, 24), tensor("w2", 24, 7)]
    graph = body("g", [node("Block", "cond x w1 w2", "y", LOCAL)], [info("y", 3, 7)], tensors, inputs)
    proto = model_of(graph, [block])
    assert sizes(proto) == [24]
    pruned = halve(proto, [YES, NO])
    assert dims(pruned.graph) == {"w1": [40, 12], "w2": [12, 7]}
    assert list(pruned.functions) == list(proto.functions)


def test_a_function_called_inside_a_branch() -> None:
    then = body("then", [node("Mlp", "h a b", "out", LOCAL)], [info("out", 3, 7)])
    other = body("else", [node("MatMul", "h c", "out")], [info("out", 3, 7)])
    nodes = [
        node("MatMul", "x w1", "h"),
        helper.make_node("If", ["cond"], ["y"], "n_y", then_branch=then, else_branch=other),
    ]
    tensors = [tensor("w1", 40, 24), tensor("a", 24, 10), tensor("b", 10, 7), tensor("c", 24, 7)]
    inputs = [info("cond", kind=T.BOOL), info("x", 3, 40)]
    proto = model_of(body("g", nodes, [info("y", 3, 7)], tensors, inputs), [mlp()])
    assert sizes(proto) == [10, 24]
    pruned = halve(proto, [YES, NO])
    assert dims(pruned.graph) == {"w1": [40, 12], "a": [12, 5], "b": [5, 7], "c": [12, 7]}


def test_weights_inside_a_branch_of_a_function_are_left_alone() -> None:
    """A function has one body for all its calls, so its own tensors stay; sizes in it follow each call."""

    def branch(name: str, width: int) -> onnx.GraphProto:
        nodes = [
            node("Reshape", "r target", "s"),
            node("Relu", "s", "t"),
            node("Reshape", "t flat", "f"),
            node("MatMul", "f v", "p"),
            node("MatMul", "p own", "q"),
            node("Relu", "q", "q1"),
            node("MatMul", "q1 own2", "out"),
        ]
        own = [tensor("own", 7, width), tensor("own2", width, 7), numbers("target", 3, 4, 6), numbers("flat", 3, 24)]
        return body(name, nodes, [info("out", 3, 7)], own)

    block = function(
        "Block",
        "c a u v",
        "b",
        [
            node("MatMul", "a u", "h"),
            node("Relu", "h", "r"),
            helper.make_node("If", ["c"], ["b"], "n_if", then_branch=branch("t", 10), else_branch=branch("e", 14)),
        ],
    )
    inputs = [info("cond", kind=T.BOOL), info("x", 3, 40)]
    tensors = [tensor("w1", 40, 24), tensor("w2", 24, 7), tensor("w3", 7, 24), tensor("w4", 24, 7)]
    calls_ = [node("Block", "cond x w1 w2", "m", LOCAL), node("Block", "cond m w3 w4", "y", LOCAL)]
    proto = model_of(body("g", calls_, [info("y", 3, 7)], tensors, inputs), [block])
    analysis = onnxprune.analyze(proto)
    first = [g.id for g in analysis.groups if any(m.initializer == "w1" and m.axis == 1 for m in g.members)]
    assert first
    assert not any("own" in m.initializer for g in analysis.groups for m in g.members)
    plan = onnxprune.plan(analysis, ratio=0.5, include=first[:1])
    pruned = onnxprune.apply(analysis, plan).proto
    onnx.checker.check_model(pruned, full_check=True)
    verdict = onnxprune.verify(proto, onnxprune.load(pruned), plan=plan, data=[YES, NO])
    assert verdict.ok, [c for c in verdict.checks if not c.ok]
    assert len(pruned.functions) == 2
    twin = onnxprune.mask(proto, plan).proto
    for feed in (YES, NO):
        assert distance(run(pruned, feed), run(twin, feed)) <= 1e-5


def test_a_function_that_ends_in_a_call() -> None:
    """What the inner call gives is the graph's output, whose width stays."""
    inner = function("Inner", "a u", "b", [node("MatMul", "a u", "c"), node("Relu", "c", "b")])
    outer = function("Outer", "a u v", "b", [node("Inner", "a u", "h", LOCAL), node("Inner", "h v", "b", LOCAL)])
    proto = calls([node("Outer", "x w1 w2", "y", LOCAL)], [tensor("w1", 40, 24), tensor("w2", 24, 7)], [outer, inner])
    assert sizes(proto) == [24]
    pruned = halve(proto, X)
    assert dims(pruned.graph) == {"w1": [40, 12], "w2": [12, 7]}


@pytest.mark.parametrize("n_rounds", [None, 5])
def test_a_loop_that_stops_by_itself(n_rounds: int | None) -> None:
    """The number of rounds is known at run time only; a declared one holds nothing up."""
    inside = body(
        "inside",
        [
            node("MatMul", "state a", "m0"),
            node("Relu", "m0", "m"),
            node("MatMul", "m b", "next"),
            node("MatMul", "next c", "row"),
            node("Less", "round last_round", "go_on"),
        ],
        [info("go_on", kind=T.BOOL), info("next", 3, 8), info("row", 3, 18)],
        [tensor("a", 8, 14, scale=0.3), tensor("b", 14, 8, scale=0.3), tensor("c", 8, 18)],
        [info("round", kind=T.INT64), info("going", kind=T.BOOL), info("state", 3, 8)],
    )
    nodes = [
        helper.make_node("Loop", ["", "yes", "x"], ["last", "rows"], "n_loop", body=inside),
        node("Relu", "rows", "r"),
        node("MatMul", "r w", "y"),
    ]
    tensors = [
        tensor("w", 18, 5),
        numpy_helper.from_array(np.array(True), "yes"),
        numpy_helper.from_array(np.array(4, np.int64), "last_round"),
    ]
    outputs = [info("last", 3, 8), info("y", n_rounds or "rounds", 3, 5)]
    proto = model_of(body("g", nodes, outputs, tensors, [info("x", 3, 8)]))
    assert sizes(proto) == [14, 18]
    halve(proto, [{"x": random(3, 8)}])


def test_a_loop_inside_a_function() -> None:
    """Both calls change the body's declared state alike, so one function stays."""
    inside = body(
        "inside",
        [node("MatMul", "state u", "s0"), node("Relu", "s0", "next"), node("Identity", "going", "go_on")],
        [info("go_on", kind=T.BOOL), info("next", 3, 24)],
        (),
        [info("round", kind=T.INT64), info("going", kind=T.BOOL), info("state", 3, 24)],
    )
    block = function("Block", "a u n", "b", [helper.make_node("Loop", ["n", "", "a"], ["b"], "n_loop", body=inside)])
    nodes = [
        node("MatMul", "x w1", "h"),
        node("Block", "h w2 n", "m", LOCAL),
        node("Block", "m w3 n", "k", LOCAL),
        node("MatMul", "k w4", "y"),
    ]
    tensors = [
        tensor("w1", 40, 24),
        tensor("w2", 24, 24, scale=0.2),
        tensor("w3", 24, 24, scale=0.2),
        tensor("w4", 24, 7),
        numpy_helper.from_array(np.array(2, np.int64), "n"),
    ]
    proto = calls(nodes, tensors, [block])
    assert sizes(proto) == [24]
    pruned = halve(proto, X)
    assert dims(pruned.graph) == {"w1": [40, 12], "w2": [12, 12], "w3": [12, 12], "w4": [12, 7], "n": []}
    assert len(pruned.functions) == 1
    state = bodies_of(pruned.functions[0].node[0])["body"].input[2]
    assert [d.dim_value for d in state.type.tensor_type.shape.dim] == [3, 12]


def test_a_loop_whose_declared_rounds_are_not_those_of_the_analysis() -> None:
    """Rows of one axis are stacked. A later declaration of how many binds nobody; a tensor that they are added to does,
    and where that is a contradiction it freezes, no crash."""
    inside = body(
        "inside",
        [node("MatMul", "state a", "next"), node("MatMul", "next c", "row"), node("Less", "round last_round", "go_on")],
        [info("go_on", kind=T.BOOL), info("next", 8), info("row", 18)],
        [tensor("a", 8, 8, scale=0.3), tensor("c", 8, 18)],
        [info("round", kind=T.INT64), info("going", kind=T.BOOL), info("state", 8)],
    )
    nodes = [
        helper.make_node("Loop", ["", "yes", "x"], ["last", "rows"], "n_loop", body=inside),
        node("Relu", "rows", "r"),
        node("MatMul", "r w", "y"),
    ]
    tensors = [
        tensor("w", 18, 5),
        numpy_helper.from_array(np.array(True), "yes"),
        numpy_helper.from_array(np.array(4, np.int64), "last_round"),
    ]

    def declared(rounds: int | str) -> onnx.ModelProto:
        return model_of(body("g", nodes, [info("last", 8), info("y", rounds, 5)], tensors, [info("x", 8)]))

    assert sizes(declared("rounds")) == sizes(declared(5)) == [18]
    between = declared("rounds")
    between.graph.value_info.append(info("r", 5, 18))
    assert sizes(between) == [18]
    added = declared("rounds")
    added.graph.node[1].CopyFrom(node("Add", "rows k", "r"))
    added.graph.initializer.append(tensor("k", 5, 18))
    added.graph.output.append(info("r", 5, 18))
    analysis = onnxprune.analyze(added)
    assert not analysis.groups
    assert any("how often a loop runs shows at run time only" in row.reason for row in analysis.locked)


def test_branches_that_differ_in_rank_freeze_with_both_shapes() -> None:
    """One branch drops an axis of one: what follows could mean either, so nothing is guessed."""
    then = body("then", [node("Squeeze", "h", "out")], [info("out", 24)])
    other = body("else", [node("Identity", "h", "out")], [info("out", 1, 24)])
    nodes = [
        node("MatMul", "x w1", "a"),
        node("MatMul", "a w2", "h"),
        helper.make_node("If", ["cond"], ["m"], "n_m", then_branch=then, else_branch=other),
        node("MatMul", "m w3", "p"),
        node("ReduceSum", "p", "y", keepdims=0),
    ]
    tensors = [tensor("w1", 40, 10), tensor("w2", 10, 24), tensor("w3", 24, 7)]
    proto = model_of(body("g", nodes, [info("y")], tensors, [info("cond", kind=T.BOOL), info("x", 1, 40)]))
    analysis = onnxprune.analyze(proto)
    assert [g.size for g in analysis.groups] == [10]
    (row,) = [row for row in analysis.locked if (row.initializer, row.axis) == ("w2", 1)]
    assert "its sides meet in different shapes, [1, 24] and [24]" in row.reason


# --- inputs that are no tensors ---


def behind(opener: Sequence[onnx.NodeProto], given: onnx.ValueInfoProto) -> onnx.ModelProto:
    """Put two products behind nodes that take a tensor `x` (4, 5) out of an input."""
    nodes = [*opener, node("MatMul", "x w1", "h"), node("Relu", "h", "r"), node("MatMul", "r w2", "y")]
    tensors = [tensor("w1", 5, 8), tensor("w2", 8, 3), numpy_helper.from_array(np.array(1), "one")]
    graph = body("g", nodes, [info("y", 4, 3)], tensors, [given])
    graph.value_info.append(info("x", 4, 5))
    return model_of(graph)


def sequence_input() -> onnx.ModelProto:
    return behind([node("SequenceAt", "xs one", "x")], helper.make_tensor_sequence_value_info("xs", T.FLOAT, [4, 5]))


def optional_input() -> onnx.ModelProto:
    kind = helper.make_optional_type_proto(helper.make_tensor_type_proto(T.FLOAT, [4, 5]))
    return behind([node("OptionalGetElement", "xo", "x")], helper.make_value_info("xo", kind))


@pytest.mark.parametrize("build", [sequence_input, optional_input])
def test_sequences_and_optionals_as_inputs_verify_on_random_feeds(build: Callable[[], onnx.ModelProto]) -> None:
    proto = build()
    result = onnxprune.prune(proto, ratio=0.5)
    assert [(g.size, len(g.removed)) for g in result.plan.groups] == [(8, 4)]
    assert result.report.ok
    assert result.report.exact["outputs"]["y"]["varies"]


def test_feeds_of_sequences_and_optionals() -> None:
    x = random(4, 5)
    for proto, feeds in ((sequence_input(), [{"xs": [x, 2 * x, x]}]), (optional_input(), [{"xo": x}])):
        result = onnxprune.prune(proto, ratio=0.5, verify=False)
        assert onnxprune.verify(proto, result.model, plan=result.plan, data=feeds).ok
    wrong: list[tuple[object, str]] = [(x, "takes a list of arrays"), ([x[:3]], "axis 0 is 3 and must be 4")]
    proto = sequence_input()
    result = onnxprune.prune(proto, ratio=0.5, verify=False)
    for value, message in wrong:
        with pytest.raises(onnxprune.OnnxPruneError, match=message):
            onnxprune.verify(proto, result.model, plan=result.plan, data=[{"xs": value}])
