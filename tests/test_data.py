"""Data sources: every form is read, and every misfit is named."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto as T
from onnx import helper, numpy_helper

from onnxprune.data import files, input_specs, load_data, random_feeds
from onnxprune.errors import DataError, ModelError, OptionError
from onnxprune.graph.model import Model


def model_of(*inputs: tuple[str, int, list[int | str | None] | None], nodes=(), initializers=()) -> Model:
    values = [helper.make_tensor_value_info(*i) for i in inputs]
    graph = helper.make_graph(list(nodes), "g", values, [], list(initializers))
    return Model(helper.make_model(graph, ir_version=10, opset_imports=[helper.make_opsetid("", 17)]))


@pytest.fixture
def two() -> Model:
    return model_of(("image", T.FLOAT, ["n", 3]), ("ids", T.INT64, ["n", 5]))


def samples(n: int = 11) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {"image": rng.standard_normal((n, 3)).astype(np.float32), "ids": rng.integers(0, 9, (n, 5))}


def test_npz_is_cut_into_batches_that_hold_every_sample(tmp_path: Path, two: Model) -> None:
    np.savez(tmp_path / "d.npz", **samples())
    data = load_data(tmp_path / "d.npz", two, batch_size=4)
    assert len(data) == 3
    for _ in range(2):
        feeds = list(data)
        assert [f["image"].shape[0] for f in feeds] == [4, 4, 3]
        assert np.array_equal(np.concatenate([f["ids"] for f in feeds]), samples()["ids"])


def test_a_fixed_batch_of_one_is_fed_one_sample_at_a_time(tmp_path: Path) -> None:
    model = model_of(("x", T.FLOAT, [1, 3]))
    np.save(tmp_path / "d.npy", np.ones((7, 3), np.float32))
    feeds = list(load_data(tmp_path / "d.npy", model))
    assert [f["x"].shape for f in feeds] == [(1, 3)] * 7


def test_a_fixed_batch_leaves_out_the_rest_and_refuses_too_few() -> None:
    model = model_of(("x", T.FLOAT, [4, 3]))
    assert [f["x"].shape for f in load_data(np.ones((10, 3), np.float32), model)] == [(4, 3), (4, 3)]
    with pytest.raises(DataError, match="holds 2 samples, the model takes 4"):
        list(load_data(np.ones((2, 3), np.float32), model))


def test_samples_without_the_models_batch_axis_are_fed_whole() -> None:
    model = model_of(("x", T.FLOAT, [2, 3]))
    assert [f["x"].shape for f in load_data(np.ones((5, 2, 3), np.float32), model)] == [(2, 3)] * 5


def test_scalars_are_the_same_for_every_sample() -> None:
    model = model_of(("x", T.FLOAT, ["n", 3]), ("rate", T.INT64, []))
    feeds = list(load_data({"x": np.ones((6, 3), np.float32), "rate": np.int64(8000)}, model, batch_size=4))
    assert [(f["x"].shape[0], int(f["rate"])) for f in feeds] == [(4, 8000), (2, 8000)]


def test_folder_of_npy_takes_single_samples(tmp_path: Path) -> None:
    model = model_of(("x", T.FLOAT, ["n", 3]))
    for k in range(3):
        np.save(tmp_path / f"{k}.npy", np.full(3, k, np.float64))
    feeds = list(load_data(tmp_path, model))
    assert [float(f["x"][0, 0]) for f in feeds] == [0, 1, 2]
    assert {f["x"].dtype for f in feeds} == {np.dtype(np.float32)}


def test_model_zoo_folders_are_read_in_input_order(tmp_path: Path, two: Model) -> None:
    for k in range(2):
        folder = tmp_path / f"test_data_set_{k}"
        folder.mkdir()
        for i, name in enumerate(("image", "ids")):
            tensor = numpy_helper.from_array(samples(k + 2)[name])
            (folder / f"input_{i}.pb").write_bytes(tensor.SerializeToString())
    assert [f["ids"].shape for f in load_data(tmp_path, two)] == [(2, 5), (3, 5)]
    assert [f["ids"].shape for f in load_data(tmp_path / "test_data_set_1", two)] == [(3, 5)]


def test_a_pb_that_refers_to_another_file_is_refused(tmp_path: Path) -> None:
    tensor = numpy_helper.from_array(np.ones((1, 3), np.float32))
    tensor.ClearField("raw_data")
    tensor.data_location = T.EXTERNAL
    tensor.external_data.add(key="location", value="/etc/passwd")
    (tmp_path / "input_0.pb").write_bytes(tensor.SerializeToString())
    with pytest.raises(DataError, match="data inside"):
        list(load_data(tmp_path, model_of(("x", T.FLOAT, [1, 3]))))


READERS = """
import numpy as np
from neighbour import WIDTH
class Reader:
    def __init__(self): self.k = 0
    def get_next(self):
        self.k += 1
        return {"x": np.full((1, WIDTH), self.k, np.float32)} if self.k < 4 else None
reader = Reader()
def generate():
    for k in range(1, 4): yield {"x": np.full((1, WIDTH), k, np.float32)}
def listed(): return list(generate())
feeds = listed()
generator = generate()
def stale(it=generate()): return it
def broken(): raise RuntimeError("no disk")
number = 3
"""


@pytest.fixture
def code(tmp_path: Path) -> Callable[[str], str]:
    (tmp_path / "neighbour.py").write_text("WIDTH = 3\n")
    (tmp_path / "own.py").write_text(READERS)
    return lambda name: f"{tmp_path / 'own.py'}:{name}"


@pytest.mark.parametrize("name", ["reader", "Reader", "generate", "listed", "feeds", "generator"])
def test_the_users_code_can_be_iterated_again(code: Callable[[str], str], name: str) -> None:
    data = load_data(code(name), model_of(("x", T.FLOAT, ["n", 3])))
    for _ in range(3):
        assert [float(f["x"][0, 0]) for f in data] == [1, 2, 3]
    assert len(data) == 3


def test_a_callable_that_gives_the_same_iterator_twice_is_caught(code: Callable[[str], str]) -> None:
    data = load_data(code("stale"), model_of(("x", T.FLOAT, ["n", 3])))
    assert len(list(data)) == 3
    with pytest.raises(DataError, match=r"no samples|later pass"):
        list(data)


def test_two_files_of_one_name_are_two_modules(tmp_path: Path) -> None:
    model = model_of(("x", T.FLOAT, ["n", 3]))
    for k in (1, 2):
        (tmp_path / str(k)).mkdir()
        (tmp_path / str(k) / "d.py").write_text(f"import numpy as np\nf = [{{'x': np.full((1, 3), {k}.0)}}]\n")
    found = [next(iter(load_data(f"{tmp_path / str(k) / 'd.py'}:f", model)))["x"][0, 0] for k in (1, 2)]
    assert found == [1, 2]


def test_a_module_of_the_working_folder_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "samples_of_mine.py").write_text("import numpy as np\nf = [{'x': np.zeros((1, 3), 'f4')}]\n")
    monkeypatch.chdir(tmp_path)
    assert len(list(load_data("samples_of_mine:f", model_of(("x", T.FLOAT, ["n", 3]))))) == 1


def test_feeds_are_split_where_the_model_takes_one_sample() -> None:
    model = model_of(("x", T.FLOAT, [1, 3]), ("state", T.FLOAT, [2, 1]))
    feeds = list(load_data([{"x": np.arange(12.0).reshape(4, 3), "state": np.zeros((2, 1))}], model))
    assert [(f["x"].shape, f["state"].shape) for f in feeds] == [((1, 3), (2, 1))] * 4


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ({"imagee": np.ones((2, 3)), "ids": np.ones((2, 5), int)}, r"no input 'imagee'. Did you mean 'image'\?"),
        ({"image": np.ones((2, 3))}, "nothing for input 'ids'"),
        ({"image": np.ones((2, 3), np.uint8), "ids": np.ones((2, 5), int)}, "type uint8, input 'image'"),
        ({"image": np.ones((2, 4)), "ids": np.ones((2, 5), int)}, "axis 1 is 4 and must be 3"),
        ({"image": np.ones((2, 3)), "ids": np.ones((3, 5), int)}, "different numbers of samples .* 'image' 2, 'ids' 3"),
        ([{"image": np.ones(3), "ids": np.ones((1, 5), int)}], "feed 0.* has 1 axes"),
        ([np.ones((2, 3))], "expected a dictionary"),
        ([], "holds no samples"),
        (5, "is a int; expected feeds"),
        ("no/such/place", "no such file"),
        ("random:zero", "random:N"),
    ],
)
def test_misfits_are_named(two: Model, source: object, message: str) -> None:
    with pytest.raises(DataError, match=message):
        list(load_data(source, two))


@pytest.mark.parametrize(
    ("name", "message"), [("reeder", "Did you mean 'reader'"), ("broken", "no disk"), ("number", "is a int")]
)
def test_faults_of_the_users_code_are_named(code: Callable[[str], str], name: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        list(load_data(code(name), model_of(("x", T.FLOAT, ["n", 3]))))


def test_integers_are_converted_only_if_they_fit() -> None:
    model = model_of(("ids", T.INT32, ["n", 2]))
    assert next(iter(load_data([{"ids": np.array([[3, 4]])}], model)))["ids"].dtype == np.int32
    with pytest.raises(DataError, match="do not fit int32"):
        list(load_data([{"ids": np.array([[3, 2**40]])}], model))


def test_objects_are_never_unpickled(tmp_path: Path) -> None:
    model = model_of(("x", T.FLOAT, ["n", 3]))
    np.savez(tmp_path / "d.npz", x=np.array([object()]))
    with pytest.raises(DataError, match="never unpickled"):
        load_data(tmp_path / "d.npz", model)


def npz_with(path: Path, shape: tuple[int, ...], n_bytes: int) -> None:
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "<f4", "fortran_order": False, "shape": shape})
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x.npy", header.getvalue() + bytes(n_bytes))


def test_a_header_that_declares_more_than_there_is_allocates_nothing(tmp_path: Path) -> None:
    npz_with(tmp_path / "d.npz", (2**40, 3), 12)
    with pytest.raises(DataError, match="declares 13194139533312 bytes"):
        load_data(tmp_path / "d.npz", model_of(("x", T.FLOAT, ["n", 3])))


def test_a_zip_bomb_is_refused_before_unpacking(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    npz_with(tmp_path / "d.npz", (4000, 3), 48_000)
    monkeypatch.setattr(files, "UNPACKED_LIMIT_BYTES", 40_000)
    with pytest.raises(DataError, match="unpacks to"):
        load_data(tmp_path / "d.npz", model_of(("x", T.FLOAT, ["n", 3])))


@pytest.mark.parametrize("name", ["d.npz", "d.npy"])
def test_broken_files_are_named(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"\x93NUMPY\x01\x00garbage")
    with pytest.raises(DataError, match=name):
        load_data(tmp_path / name, model_of(("x", T.FLOAT, ["n", 3])))


def test_initializers_that_are_inputs_are_not_fed() -> None:
    weight = numpy_helper.from_array(np.ones((3, 2), np.float32), "w")
    model = model_of(("x", T.FLOAT, ["n", 3]), ("w", T.FLOAT, [3, 2]), initializers=[weight])
    assert [s.name for s in input_specs(model)] == ["x"]


def test_a_sequence_input_is_a_list_of_tensors_and_a_map_is_refused() -> None:
    proto = model_of(("x", T.FLOAT, [1])).proto
    proto.graph.input[0].CopyFrom(helper.make_tensor_sequence_value_info("x", T.FLOAT, [3, "n"]))
    (spec,) = input_specs(Model(proto))
    assert (spec.name, spec.dtype, spec.shape, spec.of) == ("x", np.float32, (3, "n"), "sequence")
    (feed,) = random_feeds(Model(proto), 1)
    assert [array.shape for array in feed["x"]] == [(3, 16), (3, 16)]
    kind = helper.make_map_type_proto(T.INT64, helper.make_tensor_type_proto(T.FLOAT, []))
    proto.graph.input[0].CopyFrom(helper.make_value_info("x", kind))
    with pytest.raises(ModelError, match="'x' is a map"):
        input_specs(Model(proto))


def test_random_feeds_are_bounded_by_their_bytes() -> None:
    with pytest.raises(DataError, match=r"a random sample would take 134 MB \('ids' \[1, 16777217\]\)"):
        random_feeds(model_of(("ids", T.INT64, [1, (1 << 24) + 1])), 1)


def test_random_feeds_follow_the_seed() -> None:
    model = model_of(("x", T.FLOAT, ["n", 3]))
    first, again, other = (random_feeds(model, 2, seed=s) for s in (3, 3, 4))
    assert np.array_equal(first[1]["x"], again[1]["x"])
    assert not np.array_equal(first[0]["x"], other[0]["x"])
    assert not np.array_equal(first[0]["x"], first[1]["x"])


def test_random_sizes_follow_symbols_and_what_axes_mean() -> None:
    model = model_of(
        ("image", T.FLOAT, ["batch", 3, "h", "w"]),
        ("nhwc", T.FLOAT, ["batch", None, None, 3]),
        ("ids", T.INT64, ["batch", "sequence_length"]),
        ("attention_mask", T.INT64, ["batch", "past_sequence_length + sequence_length"]),
        ("past_key_values.0.key", T.FLOAT, ["batch", 4, "past_sequence_length", 8]),
    )
    shapes = {name: array.shape for name, array in random_feeds(model, 1)[0].items()}
    assert shapes["image"] == (2, 3, 64, 64)
    assert shapes["nhwc"] == (2, 64, 64, 3)
    assert shapes["ids"] == shapes["attention_mask"] == (2, 16)
    assert shapes["past_key_values.0.key"] == (2, 4, 0, 8)
    given = random_feeds(model, 1, input_shapes={"ids": [5, 7]})[0]
    assert given["attention_mask"].shape == (5, 7)
    assert given["image"].shape == (5, 3, 64, 64)


def test_random_integers_stay_inside_the_smallest_table() -> None:
    table = numpy_helper.from_array(np.ones((6, 2), np.float32), "table")
    small = numpy_helper.from_array(np.ones((2, 4), np.float32), "small")
    nodes = [
        helper.make_node("Cast", ["ids"], ["wide"], to=T.INT64),
        helper.make_node("Gather", ["table", "wide"], ["e"]),
        helper.make_node("Gather", ["small", "wide"], ["f"], axis=1),
    ]
    model = model_of(("ids", T.INT32, ["n", 50]), ("lens", T.INT32, ["n"]), nodes=nodes, initializers=[table, small])
    feed = random_feeds(model, 1)[0]
    assert set(np.unique(feed["ids"])) == {0, 1, 2, 3}
    assert feed["lens"].tolist() == [50, 50]


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        ({"y": [1, 3]}, "unknown input 'y'"),
        ({"x": [1, 4]}, "axis 1 is 3 in the model"),
        ({"x": [1, 3, 5]}, "has 3 axes"),
    ],
)
def test_input_shapes_that_contradict_the_model_are_refused(shapes: dict[str, list[int]], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        random_feeds(model_of(("x", T.FLOAT, ["n", 3])), 1, input_shapes=shapes)


def test_an_input_without_a_shape_needs_one() -> None:
    model = model_of(("x", T.FLOAT, None))
    with pytest.raises(OptionError, match="--input-shape x="):
        random_feeds(model, 1)
    assert random_feeds(model, 1, input_shapes={"x": [2, 5]})[0]["x"].shape == (2, 5)
