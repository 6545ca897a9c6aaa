"""Large models: opened without their weights, cut and written tensor by tensor, with the bytes that small ones get."""

from __future__ import annotations

import hashlib
import itertools
import tracemalloc
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

import onnxprune
from onnxprune.criteria import units
from onnxprune.errors import ModelError
from onnxprune.graph import model as models
from onnxprune.graph import payload, store
from onnxprune.graph.model import Model
from onnxprune.graph.session import open_session
from onnxprune.rewrite import edited

SAMPLES = Path(__file__).parent.parent / "samples"
NAMES = ("digits_cnn", "digits_transformer", "digits_masked_prune")


@pytest.fixture
def hollow(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have every file opened as a large one, and nearly every tensor left in it."""
    monkeypatch.setattr(models, "READ_BELOW", 0)
    for module in (store, edited):
        monkeypatch.setattr(module, "TAKEN_FROM", 600)


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def written(model: onnxprune.Model, folder: Path, **options: bool) -> list[str]:
    """Save a model and give the digests of its files."""
    folder.mkdir(parents=True)
    onnxprune.save(model, folder / "out.onnx", **options)
    return [digest(path) for path in sorted(folder.iterdir())]


@pytest.mark.parametrize("name", NAMES)
def test_a_large_file_gives_the_bytes_that_a_small_one_gives(
    name: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    path = SAMPLES / f"{name}.onnx"

    def everything(folder: Path) -> list[object]:
        model = onnxprune.load(path)
        plan = onnxprune.plan(model, ratio=0.4)
        pruned = onnxprune.apply(model, plan)
        twin = onnxprune.mask(model, plan)
        files = [written(m, folder / f"{k}{o}", external_data=o) for k, m in enumerate((pruned, twin)) for o in (0, 1)]
        return [plan.dumps(), files, pruned.proto.SerializeToString(deterministic=True)]

    expected = everything(tmp_path / "small")
    request.getfixturevalue("hollow")
    model = onnxprune.load(path)
    assert model.is_hollow
    held = sum(t.ByteSize() for t in model.skeleton.graph.initializer)
    assert held < path.stat().st_size / 4
    assert everything(tmp_path / "large") == expected


@pytest.mark.usefixtures("hollow")
@pytest.mark.parametrize("name", NAMES)
def test_a_large_file_is_written_back_byte_for_byte(name: str, tmp_path: Path) -> None:
    path, out = SAMPLES / f"{name}.onnx", tmp_path / "out.onnx"
    model = onnxprune.load(path)
    onnxprune.save(onnxprune.apply(model, onnxprune.plan(model, ratio=0.0)), out)
    assert out.read_bytes() == path.read_bytes()
    assert model.sha256 == digest(path)
    assert model.is_hollow
    assert model.proto.SerializeToString() == onnx.load(path).SerializeToString()
    assert not model.is_hollow


@pytest.mark.usefixtures("hollow")
def test_a_large_file_and_what_is_cut_from_it_run() -> None:
    model = onnxprune.load(SAMPLES / "digits_cnn.onnx")
    plan = onnxprune.plan(model, ratio=0.4)
    pruned = onnxprune.apply(model, plan)
    x = {
        i.name: np.random.default_rng(0).random((2, *i.shape[1:]), np.float32) for i in open_session(model).get_inputs()
    }
    found = open_session(pruned).run(None, x)[0]
    assert pruned.is_hollow
    expected = open_session(onnxprune.Model(pruned.proto)).run(None, x)[0]
    assert np.ptp(found) > 0.1
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-6)
    assert onnxprune.verify(model, pruned, plan=plan).ok


def mixed_types(path: Path) -> onnx.ModelProto:
    """Make a model with tensors of several types in the graph, a Constant node and a branch."""
    rng = np.random.default_rng(0)
    arrays = {
        "half": rng.random((40, 24)).astype(np.float16),
        "codes": rng.integers(-100, 100, (40, 24), np.int8),
        "wide": rng.random((40, 24)),
    }
    graph = onnx.helper.make_graph(
        [
            onnx.helper.make_node(
                "Constant", [], ["held"], value=numpy_helper.from_array(rng.random((40, 24)), "inner"), name="constant"
            ),
            onnx.helper.make_node("Add", ["held", "wide"], ["y"]),
        ],
        "mixed",
        [],
        [onnx.helper.make_tensor_value_info("y", onnx.TensorProto.DOUBLE, [40, 24])],
        [numpy_helper.from_array(a, n) for n, a in arrays.items()],
    )
    nibbles = onnx.helper.make_tensor("nibbles", onnx.TensorProto.INT4, [40, 32], rng.integers(-8, 7, 1280))
    graph.initializer.append(nibbles)
    graph.initializer[0].doc_string = "kept"
    graph.initializer[1].metadata_props.add(key="why", value="kept as well")
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 21)], ir_version=10)
    model.metadata_props.add(key="who", value="x" * 5000)
    onnx.save(model, path)
    return model


@pytest.mark.usefixtures("hollow")
def test_every_type_and_place_of_a_tensor_is_read_from_the_file(tmp_path: Path) -> None:
    proto = mixed_types(tmp_path / "mixed.onnx")
    model = onnxprune.load(tmp_path / "mixed.onnx")
    assert len(model.skeleton.SerializeToString()) < 7000
    assert set(model.tensors) == {"half", "codes", "wide", "nibbles", "held"}
    expected = {t.name: numpy_helper.to_array(t) for t in proto.graph.initializer}
    expected["held"] = numpy_helper.to_array(proto.graph.node[0].attribute[0].t)
    for name, array in expected.items():
        assert model.array(name).dtype == array.dtype
        assert np.array_equal(model.array(name), array)
    assert model.proto.SerializeToString(deterministic=True) == proto.SerializeToString(deterministic=True)


@pytest.mark.usefixtures("hollow")
def test_a_large_file_cut_short_is_refused(tmp_path: Path) -> None:
    mixed_types(tmp_path / "mixed.onnx")
    whole = (tmp_path / "mixed.onnx").read_bytes()
    for length in (len(whole) - 1, len(whole) // 2, 100):
        (tmp_path / "cut.onnx").write_bytes(whole[:length])
        with pytest.raises(ModelError, match="cut short"):
            onnxprune.load(tmp_path / "cut.onnx")


def test_a_file_cannot_pass_for_a_reference_of_this_process(tmp_path: Path) -> None:
    proto = mixed_types(tmp_path / "mixed.onnx")
    tensor = proto.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="\0" + "0" * 32)
    tensor.external_data.add(key="offset", value="0")
    (tmp_path / "forged.onnx").write_bytes(proto.SerializeToString())
    with pytest.raises(ModelError, match="relative path inside"):
        onnxprune.load(tmp_path / "forged.onnx")


@pytest.mark.parametrize("most_in_a_row", [1, 10, 40, 1000])
@pytest.mark.parametrize(("power", "criterion"), [(1, "l1"), (2, "l2")])
@pytest.mark.parametrize("dims", [(9, 5, 7), (13,), (3, 0, 2), (4, 6, 3, 5)])
def test_norms_are_added_up_a_few_rows_at_a_time(
    dims: tuple[int, ...], power: int, criterion: str, most_in_a_row: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    array = np.random.default_rng(0).standard_normal(dims).astype(np.float32)
    monkeypatch.setattr(units, "MOST_IN_A_ROW", most_in_a_row)
    model = Model(
        onnx.helper.make_model(onnx.helper.make_graph([], "g", [], [], [numpy_helper.from_array(array, "w")]))
    )
    axes = range(array.ndim)
    sums = units.power_sums(dims, lambda split: model.rows("w", split, 80), axes, power)
    for axis in axes:
        expected = onnxprune.unit_scores(array, criterion, axis)
        assert sums[axis].shape == expected.shape
        np.testing.assert_allclose(sums[axis] ** (1 / power), expected, rtol=1e-14, atol=0)


@pytest.mark.parametrize("window", [8, 64, 200, 1 << 20])
@pytest.mark.parametrize("dims", [(9, 5, 7), (13,), (4, 6, 3, 5), (1, 2, 40)])
def test_a_cut_is_the_same_whole_and_in_windows(
    dims: tuple[int, ...], window: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(1)
    array = rng.standard_normal(dims).astype(np.float32)
    (tmp_path / "data").write_bytes(b"before" + array.tobytes() + b"after")
    monkeypatch.setattr(payload, "WINDOW", window)
    for axes in itertools.chain.from_iterable(itertools.combinations(range(array.ndim), n) for n in (1, 2, 3)):
        keeps = {axis: np.arange(dims[axis]) != rng.integers(dims[axis]) for axis in axes}
        expected = array
        for axis, keep in keeps.items():
            expected = np.compress(keep, expected, axis=axis)
        cut = payload.Cut(payload.Span(tmp_path / "data", 6, array.nbytes), 4, dims, keeps)
        assert (cut.shape, len(cut), bytes(cut.read())) == (expected.shape, expected.nbytes, expected.tobytes())
        with open(tmp_path / "out", "wb") as sink:
            cut.copy_to(sink.fileno(), 3)
        assert (tmp_path / "out").read_bytes() == b"\0\0\0" * bool(expected.size) + expected.tobytes()


def test_a_data_file_cut_short_while_it_is_read_is_named(tmp_path: Path) -> None:
    (tmp_path / "data").write_bytes(b"1234")
    with pytest.raises(OSError, match="ends before byte 12"):
        list(payload.Span(tmp_path / "data", 2, 10).windows(4))


def test_looking_for_stored_weights_reads_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from onnxprune.api import stored_weights

    monkeypatch.setattr(models, "READ_BELOW", 0)
    weight = numpy_helper.from_array(np.ones((160, 128), np.float32), "w")
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("MatMul", ["x", "w"], ["y"])],
        "product",
        [onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [1, 160])],
        [onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [1, 128])],
        [weight],
    )
    path = tmp_path / "product.onnx"
    onnx.save(onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=10), path)
    model = onnxprune.load(path)
    assert model.is_hollow
    assert stored_weights(model) == ()
    assert model.is_hollow


@pytest.mark.slow
def test_memory_depends_on_the_largest_tensor_alone(tmp_path: Path) -> None:
    layers, width = 40, 1024
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("MatMul", [f"x{k}", f"w{k}"], [f"x{k + 1}"]) for k in range(layers)],
        "chain",
        [onnx.helper.make_tensor_value_info("x0", onnx.TensorProto.FLOAT, [1, width])],
        [onnx.helper.make_tensor_value_info(f"x{layers}", onnx.TensorProto.FLOAT, [1, width])],
    )
    rng = np.random.default_rng(0)
    for k in range(layers):
        graph.initializer.append(numpy_helper.from_array(rng.random((width, width), np.float32), f"w{k}"))
    path = tmp_path / "chain.onnx"
    onnx.save(onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=10), path)
    del graph
    assert path.stat().st_size > models.READ_BELOW
    tracemalloc.start()
    onnxprune.prune(path, tmp_path / "out.onnx", ratio=0.25, verify=False)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < path.stat().st_size / 4
    assert (tmp_path / "out.onnx").stat().st_size < path.stat().st_size * 0.65
