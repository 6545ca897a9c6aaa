"""Nothing is lost but what was pruned: an empty plan gives the file back, and a cut leaves everything else alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from click.testing import CliRunner
from onnx import TensorProto as T
from onnx import helper, numpy_helper

import onnxprune
from onnxprune.cli import main
from onnxprune.graph.model import serialize
from onnxprune.planfile import Plan
from tests.test_control_flow import YES, body, function, info, model_of, node, random, tensor

OPSETS = {"": 21, "ai.onnx.ml": 3, "custom": 1, "unused.domain": 5}
Edit = Callable[[onnx.ModelProto], None]


def mlp(edit: Edit = lambda _: None, *, ir_version: int = 10) -> onnx.ModelProto:
    """x (5, 40) -> MatMul w1 (40, 24) -> Relu -> MatMul w2 (24, 7) -> y; `edit` adds what must survive."""
    nodes = [node("MatMul", "x w1", "h"), node("Relu", "h", "r"), node("MatMul", "r w2", "y")]
    graph = body("g", nodes, [info("y", 5, 7)], [tensor("w1", 40, 24), tensor("w2", 24, 7)], [info("x", 5, 40)])
    opsets = [helper.make_opsetid(d, v) for d, v in OPSETS.items()]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=ir_version)
    edit(model)
    return model


def prune(model: onnx.ModelProto) -> onnx.ModelProto:
    """Remove 12 of the 24 units."""
    before = serialize(model)
    analysis = onnxprune.analyze(model)
    assert [g.size for g in analysis.groups] == [24]
    plan = onnxprune.plan(analysis, ratio=0.5)
    pruned = onnxprune.apply(analysis, plan).proto
    assert serialize(model) == before
    return pruned


def without_cut(model: onnx.ModelProto) -> onnx.ModelProto:
    """Copy a model without what the cut and the stamp may change: w1, w2 and the stamp's keys."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    for t in copy.graph.initializer:
        if t.name in ("w1", "w2"):
            t.ClearField("raw_data")
            del t.dims[:]
        if t.data_location == T.DEFAULT:
            t.ClearField("data_location")  # `onnx.load` writes the default out
    for v in [*copy.graph.value_info, *copy.graph.input]:
        if v.name in ("w1", "w2", "h", "r"):
            for d in v.type.tensor_type.shape.dim:
                d.ClearField("dim_value")
    kept = [(p.key, p.value) for p in copy.metadata_props if not p.key.startswith("onnxprune.")]
    del copy.metadata_props[:]
    for key, value in kept:
        copy.metadata_props.add(key=key, value=value)
    return copy


def lines_of(model: onnx.ModelProto) -> list[str]:
    """Give what `without_cut` keeps, as text: what differs then shows in a failure."""
    return str(without_cut(model)).splitlines()


def attribute(model: onnx.ModelProto, name: str, **fields: object) -> onnx.AttributeProto:
    """Hang an attribute on a custom node beside the layers, which reads `x` and feeds an output of its own."""
    nodes = [n for n in model.graph.node if n.domain == "custom"]
    if not nodes:
        model.graph.node.append(helper.make_node("Mystery", ["x"], ["extra"], "n_extra", domain="custom"))
        model.graph.output.append(info("extra", 2, 3))
        nodes = [model.graph.node[-1]]
    made = nodes[0].attribute.add(name=name)
    for key, value in fields.items():
        setattr(made, key, value)
    return made


def documentation(model: onnx.ModelProto) -> None:
    model.producer_name, model.producer_version = "producer", "1.2"
    model.domain, model.model_version, model.doc_string = "org.example", 41, "a model"
    model.graph.doc_string = "a graph"
    for holder in (model, model.graph, *model.graph.node, *model.graph.initializer, *model.graph.input):
        holder.metadata_props.add(key="names", value="{0: 'cat'}")
    for holder in (*model.graph.node, *model.graph.initializer, *model.graph.input, *model.graph.output):
        holder.doc_string = f"about {holder.name}"


def value_info(model: onnx.ModelProto) -> None:
    h = info("h", 5, 24)
    h.doc_string = "hidden"
    h.type.denotation = "TENSOR"
    h.type.tensor_type.shape.dim[1].denotation = "DATA_FEATURE"
    h.metadata_props.add(key="k", value="v")
    model.graph.value_info.append(h)
    model.graph.input[0].type.denotation = "IMAGE"
    model.graph.input[0].type.tensor_type.shape.dim[0].denotation = "DATA_BATCH"


def quantization_annotation(model: onnx.ModelProto) -> None:
    row = model.graph.quantization_annotation.add(tensor_name="r")
    row.quant_parameter_tensor_names.add(key="SCALE_TENSOR", value="s")
    model.graph.initializer.append(numpy_helper.from_array(np.array(0.5, np.float32), "s"))


def training_info(model: onnx.ModelProto) -> None:
    step = model.training_info.add()
    step.algorithm.CopyFrom(body("step", [node("Identity", "w1", "w1_next")], [info("w1_next")]))
    step.update_binding.add(key="w1", value="w1_next")


def attributes(model: onnx.ModelProto) -> None:
    kinds = onnx.AttributeProto
    dense = helper.make_sparse_tensor(tensor("v", 2), numpy_helper.from_array(np.array([1, 4]), "i"), [9])
    attribute(model, "sparse", type=kinds.SPARSE_TENSOR).sparse_tensor.CopyFrom(dense)
    attribute(model, "sparses", type=kinds.SPARSE_TENSORS).sparse_tensors.append(dense)
    kind = helper.make_tensor_type_proto(T.FLOAT, [2, "n"])
    attribute(model, "kind", type=kinds.TYPE_PROTO).tp.CopyFrom(kind)
    attribute(model, "kinds", type=kinds.TYPE_PROTOS).type_protos.append(kind)
    attribute(model, "tensors", type=kinds.TENSORS).tensors.append(tensor("t", 3))
    attribute(model, "graphs", type=kinds.GRAPHS).graphs.append(body("inner", [], [info("x", 5, 40)]))
    attribute(model, "pads", type=kinds.INTS)
    attribute(model, "blob", type=kinds.STRING, s=b"\xff\xfe\x00\x80")
    attribute(model, "blobs", type=kinds.STRINGS).strings.append(b"\xff\xfe")
    attribute(model, "noted", type=kinds.FLOAT, f=1.5, doc_string="a note")


def optional_type_attribute(model: onnx.ModelProto) -> None:
    kind = helper.make_tensor_type_proto(T.FLOAT, [5, 7])
    model.graph.node.append(helper.make_node("Optional", ["y"], ["maybe"], "n_maybe"))
    out = helper.make_value_info("maybe", helper.make_optional_type_proto(kind))
    model.graph.output.append(out)


def sequence_output(model: onnx.ModelProto) -> None:
    model.graph.node.append(helper.make_node("SequenceConstruct", ["y", "x"], ["many"], "n_many"))
    model.graph.output.append(helper.make_tensor_sequence_value_info("many", T.FLOAT, None))


def optional_input(model: onnx.ModelProto) -> None:
    kind = helper.make_optional_type_proto(helper.make_tensor_type_proto(T.FLOAT, [2]))
    model.graph.input.append(helper.make_value_info("perhaps", kind))
    model.graph.node.append(helper.make_node("OptionalHasElement", ["perhaps"], ["has"], "n_has"))
    model.graph.output.append(info("has", kind=T.BOOL))


def sequence_input(model: onnx.ModelProto) -> None:
    model.graph.input.append(helper.make_tensor_sequence_value_info("several", T.FLOAT, [2]))
    model.graph.node.append(helper.make_node("SequenceLength", ["several"], ["count"], "n_count"))
    model.graph.output.append(info("count", kind=T.INT64))


def functions(model: onnx.ModelProto) -> None:
    opsets = [helper.make_opsetid("", OPSETS[""])]
    for overload in ("", "other"):
        f = helper.make_function("custom", "Twice", ["a"], ["b"], [node("Add", "a a", "b")], opsets)
        f.overload, f.doc_string = overload, f"twice {overload}"
        f.value_info.append(info("b", 5, 40))
        f.metadata_props.add(key="k", value="v")
        model.functions.append(f)
    call = helper.make_node("Twice", ["x"], ["twice"], "n_twice", domain="custom", overload="other")
    model.graph.node.append(call)
    model.graph.output.append(info("twice", 5, 40))


def sparse_initializer(model: onnx.ModelProto) -> None:
    values = numpy_helper.from_array(np.array([1.5, 2.5], np.float32), "sparse_w")
    indices = numpy_helper.from_array(np.array([3, 30]), "indices")
    model.graph.sparse_initializer.append(helper.make_sparse_tensor(values, indices, [5, 40]))
    model.graph.node.append(node("Add", "x sparse_w", "added"))
    model.graph.output.append(info("added", 5, 40))


SMALL_TYPES = [
    getattr(T, name)
    for name in (
        "FLOAT16", "BFLOAT16", "FLOAT8E4M3FN", "FLOAT8E4M3FNUZ", "FLOAT8E5M2", "FLOAT8E5M2FNUZ", "INT4", "UINT4",
        "FLOAT4E2M1", "FLOAT8E8M0", "INT2", "UINT2", "COMPLEX64", "BOOL",
    )
    if hasattr(T, name)
]  # fmt: skip


def small_types(model: onnx.ModelProto) -> None:
    for kind in SMALL_TYPES:
        name = T.DataType.Name(kind).lower()
        model.graph.initializer.append(helper.make_tensor(name, kind, [3, 5], [0, 1, 1] * 5))
        model.graph.node.append(node("Identity", name, f"{name}_out"))
        model.graph.output.append(info(f"{name}_out", 3, 5, kind=kind))


def strings(model: onnx.ModelProto) -> None:
    model.graph.initializer.append(helper.make_tensor("words", T.STRING, [2], [b"a", b"b"]))
    model.graph.node.append(node("Identity", "words", "words_out"))
    model.graph.output.append(info("words_out", 2, kind=T.STRING))


def symbolic_dims(model: onnx.ModelProto) -> None:
    for value in (model.graph.input[0], model.graph.output[0]):
        value.type.tensor_type.shape.dim[0].dim_param = "batch size"


def unknown_rank(model: onnx.ModelProto) -> None:
    model.graph.node.append(node("Identity", "x", "same"))
    model.graph.output.append(helper.make_tensor_value_info("same", T.FLOAT, None))


def overridable(model: onnx.ModelProto) -> None:
    """An initializer that is an input too has a default, and a caller's interface."""
    model.graph.input.append(info("offset", 7))
    model.graph.initializer.append(tensor("offset", 7))
    model.graph.node.append(node("Add", "y offset", "moved"))
    model.graph.output.append(info("moved", 5, 7))


def unused(model: onnx.ModelProto) -> None:
    model.graph.initializer.append(tensor("nobody", 4, 3))
    model.graph.node.append(node("Relu", "x", "dead"))


def configurations(model: onnx.ModelProto) -> None:
    model.ir_version = 11
    model.configuration.add(name="two", num_devices=2)
    model.graph.node[0].device_configurations.add(configuration_id="two")


def unknown_fields(model: onnx.ModelProto) -> None:
    """A field of a later ONNX: number 999, wire type varint."""
    model.graph.node[1].MergeFromString(b"\xb8\x3e\x05")


FEATURES: list[Edit] = [
    documentation, value_info, quantization_annotation, training_info, attributes, optional_type_attribute,
    sequence_output, optional_input, sequence_input, functions, sparse_initializer, small_types, strings, symbolic_dims,
    unknown_rank, overridable, unused, configurations, unknown_fields,
]  # fmt: skip
by_name = pytest.mark.parametrize("feature", FEATURES, ids=lambda f: f.__name__)


@by_name
def test_a_cut_leaves_everything_else(feature: Edit) -> None:
    model = mlp(feature)
    pruned = prune(model)
    assert {t.name: list(t.dims) for t in pruned.graph.initializer if t.name in ("w1", "w2")} == {
        "w1": [40, 12],
        "w2": [12, 7],
    }
    assert lines_of(pruned) == lines_of(model)
    assert serialize(without_cut(pruned)) == serialize(without_cut(model))
    for info_ in pruned.graph.value_info:
        if info_.name == "h":
            assert [d.dim_value for d in info_.type.tensor_type.shape.dim] == [5, 12]


RUNNABLE = [f for f in FEATURES if f not in (attributes, small_types, configurations, unknown_fields)]


@pytest.mark.parametrize("feature", RUNNABLE, ids=lambda f: f.__name__)
def test_the_result_verifies(feature: Edit) -> None:
    model = mlp(feature)
    try:
        ort.InferenceSession(serialize(model), providers=["CPUExecutionProvider"])
    except Exception as error:  # noqa: BLE001  several types
        pytest.skip(f"onnxruntime does not take the original: {str(error)[:80]}")
    plan = onnxprune.plan(model, ratio=0.5)
    pruned = onnxprune.apply(model, plan)
    verdict = onnxprune.verify(model, pruned, plan=plan)
    assert verdict.ok, [c for c in verdict.checks if not c.ok]
    assert verdict.exact


@pytest.mark.parametrize(
    "feature",
    FEATURES,
    ids=lambda f: f.__name__,
)
def test_an_empty_plan_gives_the_file_back(feature: Edit, tmp_path: Path) -> None:
    source = tmp_path / "model.onnx"
    # Not the order that `serialize` would choose: the bytes must be the file's own.
    model = mlp(feature)
    head = onnx.ModelProto(ir_version=model.ir_version)
    tail = onnx.ModelProto()
    tail.CopyFrom(model)
    tail.ClearField("ir_version")
    source.write_bytes(tail.SerializeToString() + head.SerializeToString())
    loaded = onnxprune.load(source)
    plan = Plan(loaded.sha256, (), ())
    assert plan.empty
    onnxprune.save(onnxprune.apply(loaded, plan), tmp_path / "same.onnx")
    assert (tmp_path / "same.onnx").read_bytes() == source.read_bytes()
    said = CliRunner().invoke(main, ["prune", str(source), "--ratio", "0", "-o", str(tmp_path / "again.onnx")])
    assert said.exit_code == 0, said.output
    assert (tmp_path / "again.onnx").read_bytes() == source.read_bytes()
    assert {p.name for p in tmp_path.iterdir()} == {"model.onnx", "same.onnx", "again.onnx"}


# --- what a cut tensor keeps ---


@pytest.mark.parametrize("kind", [T.FLOAT16, T.BFLOAT16, T.DOUBLE, T.FLOAT])
@pytest.mark.parametrize("raw", [True, False])
def test_cut_tensors_keep_type_and_documentation(kind: int, raw: bool) -> None:
    nodes = [node("MatMul", "x w1", "h"), node("Relu", "h", "r"), node("MatMul", "r w2", "y")]
    tensors = []
    for name, shape in (("w1", (40, 24)), ("w2", (24, 7))):
        flat = random(*shape).ravel()
        t = helper.make_tensor(name, kind, list(shape), flat)
        if raw:
            t = numpy_helper.from_array(numpy_helper.to_array(t), name)
        t.doc_string = f"about {name}"
        t.metadata_props.add(key="k", value=name)
        tensors.append(t)
    graph = body("g", nodes, [info("y", 5, 7, kind=kind)], tensors, [info("x", 5, 40, kind=kind)])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    plan = onnxprune.plan(model, ratio=0.5)
    pruned = onnxprune.apply(model, plan).proto
    kept = {row.initializer: row for row in plan.slices}
    for old, new in zip(model.graph.initializer, pruned.graph.initializer, strict=True):
        assert (new.name, new.data_type, new.doc_string) == (old.name, kind, old.doc_string)
        assert list(new.metadata_props) == list(old.metadata_props)
        row = kept[old.name]
        expected = np.delete(numpy_helper.to_array(old), row.removed, axis=row.axis)
        assert numpy_helper.to_array(new).tobytes() == expected.tobytes()


@pytest.mark.parametrize("kind", [T.INT8, T.UINT8, T.INT4, T.UINT4, T.FLOAT8E4M3FN, T.FLOAT8E4M3FNUZ, T.FLOAT8E5M2])
def test_codes_are_cut_as_they_are(kind: int) -> None:
    """Weights behind DequantizeLinear; packed 4-bit codes of odd counts included."""
    nodes = [
        node("DequantizeLinear", "q1 s1 z1", "w1", axis=1),
        node("MatMul", "x w1", "h"),
        node("Relu", "h", "r"),
        node("DequantizeLinear", "q2 s2 z2", "w2", axis=1),
        node("MatMul", "r w2", "y"),
    ]
    rng = np.random.default_rng(3)
    tensors = []
    for k, shape in ((1, (9, 10)), (2, (10, 3))):
        values = rng.integers(0, 7, shape).ravel().astype(np.float32)
        tensors.append(helper.make_tensor(f"q{k}", kind, shape, values))
        tensors.append(numpy_helper.from_array(rng.random(shape[1], np.float32), f"s{k}"))
        tensors.append(helper.make_tensor(f"z{k}", kind, [shape[1]], [0] * shape[1]))
    graph = body("g", nodes, [info("y", 5, 3)], tensors, [info("x", 5, 9)])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    plan = onnxprune.plan(model, ratio=0.5)
    pruned = onnxprune.apply(model, plan)
    after = {t.name: t for t in pruned.proto.graph.initializer}
    assert {n: list(t.dims) for n, t in after.items()} == {
        "q1": [9, 5], "s1": [5], "z1": [5], "q2": [5, 3], "s2": [3], "z2": [3],
    }  # fmt: skip
    before = {t.name: t for t in model.graph.initializer}
    for row in plan.slices:
        assert after[row.initializer].data_type == before[row.initializer].data_type
        expected = np.delete(numpy_helper.to_array(before[row.initializer]), row.removed, axis=row.axis)
        np.testing.assert_array_equal(numpy_helper.to_array(after[row.initializer]), expected)
    verdict = onnxprune.verify(model, pruned, plan=plan)
    assert verdict.ok, [c for c in verdict.checks if not c.ok]


# --- interfaces ---


def test_ir3_initializers_stay_inputs() -> None:
    model = mlp(ir_version=3)
    model.graph.input.extend([info("w1", 40, 24), info("w2", 24, 7)])
    pruned = prune(model)
    assert {v.name: [d.dim_value for d in v.type.tensor_type.shape.dim] for v in pruned.graph.input} == {
        "x": [5, 40],
        "w1": [40, 12],
        "w2": [12, 7],
    }
    assert lines_of(pruned) == lines_of(model)
    assert serialize(without_cut(pruned)) == serialize(without_cut(model))


def zip_map() -> onnx.ModelProto:
    """A classifier as sklearn converters write it: an MLP, then LinearClassifier and ZipMap."""
    nodes = [node("MatMul", "x w1", "h"), node("Relu", "h", "r"), node("MatMul", "r w2", "scores")]
    nodes += [
        helper.make_node(
            "LinearClassifier",
            ["scores"],
            ["label", "raw"],
            "n_label",
            domain="ai.onnx.ml",
            coefficients=np.eye(3, 7, dtype=np.float32).ravel().tolist(),
            intercepts=[0.0, 0.1, 0.2],
            classlabels_ints=[0, 1, 2],
            multi_class=1,
            post_transform="SOFTMAX",
        ),
        helper.make_node("ZipMap", ["raw"], ["chances"], "n_zip", domain="ai.onnx.ml", classlabels_int64s=[0, 1, 2]),
    ]
    value = helper.make_map_type_proto(T.INT64, helper.make_tensor_type_proto(T.FLOAT, []))
    outputs = [
        info("label", 5, kind=T.INT64),
        helper.make_value_info("chances", helper.make_sequence_type_proto(value)),
    ]
    graph = body("g", nodes, outputs, [tensor("w1", 40, 24), tensor("w2", 24, 7)], [info("x", 5, 40)])
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("ai.onnx.ml", 3)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=8)


def test_zip_map() -> None:
    model = zip_map()
    pruned = prune(model)
    assert lines_of(pruned) == lines_of(model)
    assert serialize(without_cut(pruned)) == serialize(without_cut(model))
    plan = onnxprune.plan(model, ratio=0.5)
    verdict = onnxprune.verify(model, onnxprune.apply(model, plan), plan=plan)
    assert verdict.ok, [c for c in verdict.checks if not c.ok]
    assert verdict.exact
    session = ort.InferenceSession(serialize(pruned), providers=["CPUExecutionProvider"])
    chances = session.run(["chances"], {"x": random(5, 40)})[0]
    assert [sorted(row) for row in chances] == [[0, 1, 2]] * 5


# --- external data ---


def outside(folder: Path) -> Path:
    folder.mkdir()
    model = mlp(documentation)
    onnx.save(model, folder / "model.onnx", save_as_external_data=True, location="weights.bin", size_threshold=0)
    return folder / "model.onnx"


def test_external_data_moves_with_the_result(tmp_path: Path) -> None:
    source = outside(tmp_path / "in")
    before = {p.name: p.read_bytes() for p in source.parent.iterdir()}
    target = tmp_path / "out"
    target.mkdir()
    result = onnxprune.prune(source, target / "small.onnx", ratio=0.5)
    assert result.report.ok
    assert {p.name: p.read_bytes() for p in source.parent.iterdir()} == before
    assert {p.name for p in target.iterdir()} == {"small.onnx", "small.onnx.data"}
    written = onnx.load(target / "small.onnx", load_external_data=False)
    locations = {e.value for t in written.graph.initializer for e in t.external_data if e.key == "location"}
    assert locations == {"small.onnx.data"}, "the location is relative"
    moved = target.rename(tmp_path / "elsewhere")
    assert serialize(without_cut(onnx.load(moved / "small.onnx"))) == serialize(without_cut(onnx.load(source)))
    x = {"x": random(5, 40)}
    session = ort.InferenceSession(str(moved / "small.onnx"), providers=["CPUExecutionProvider"])
    memory = ort.InferenceSession(serialize(onnx.load(moved / "small.onnx")), providers=["CPUExecutionProvider"])
    np.testing.assert_array_equal(session.run(None, x)[0], memory.run(None, x)[0])
    again = onnxprune.prune(moved / "small.onnx", moved / "smaller.onnx", ratio=0.5)
    assert again.report.ok


def test_an_empty_plan_keeps_external_data_whole(tmp_path: Path) -> None:
    source = outside(tmp_path / "in")
    loaded = onnxprune.load(source)
    onnxprune.save(onnxprune.apply(loaded, Plan(loaded.sha256, (), ())), tmp_path / "same.onnx")
    copies = [without_cut(onnx.load(path)) for path in (tmp_path / "same.onnx", source)]
    assert serialize(copies[0]) == serialize(copies[1])


def test_external_data_can_be_brought_inside(tmp_path: Path) -> None:
    source = outside(tmp_path / "in")
    plan = onnxprune.plan(source, ratio=0.5)
    onnxprune.save(onnxprune.apply(source, plan), tmp_path / "one.onnx", external_data=False)
    assert {p.name for p in tmp_path.iterdir()} == {"in", "one.onnx"}
    assert onnxprune.verify(source, tmp_path / "one.onnx", plan=plan).ok


# --- bodies ---


def test_bodies_keep_their_documentation() -> None:
    """Graphs inside nodes and functions: only widths change, even where a function is edited."""
    then = body("then", [node("Relu", "h", "t0"), node("MatMul", "t0 w2", "t1")], [info("t1", 3, 7)])
    other = body("else", [node("MatMul", "h w2", "e1")], [info("e1", 3, 7)])
    block = function("Block", "a u", "h", [node("MatMul", "a u", "h")])
    block.doc_string = "a block"
    block.value_info.append(info("h", 3, 24))
    block.node[0].metadata_props.add(key="k", value="v")
    for part in (then, other):
        part.doc_string = f"about {part.name}"
        part.metadata_props.add(key="k", value=part.name)
        part.node[0].doc_string = "a node"
        part.output[0].doc_string = "an output"
    then.value_info.append(info("t0", 3, 24))
    nodes = [
        node("Block", "x w1", "h", "local"),
        helper.make_node("If", ["cond"], ["y"], "n_y", then_branch=then, else_branch=other),
    ]
    inputs = [info("cond", kind=T.BOOL), info("x", 3, 40)]
    tensors = [tensor("w1", 40, 24), tensor("w2", 24, 7)]
    model = model_of(body("g", nodes, [info("y", 3, 7)], tensors, inputs), [block])
    plan = onnxprune.plan(model, ratio=0.5)
    pruned = onnxprune.apply(model, plan)
    assert onnxprune.verify(model, pruned, plan=plan, data=[YES]).ok
    copies = [without_cut(m) for m in (model, pruned.proto)]
    for copy in copies:
        for values in (copy.functions[0].value_info, _branch(copy).value_info):
            assert [d.dim_value for d in values[0].type.tensor_type.shape.dim][1] in (24, 12)
            values[0].type.tensor_type.shape.dim[1].ClearField("dim_value")
    assert serialize(copies[0]) == serialize(copies[1])


def _branch(model: onnx.ModelProto) -> onnx.GraphProto:
    found: Sequence[onnx.AttributeProto] = model.graph.node[1].attribute
    return next(a.g for a in found if a.name == "then_branch")
