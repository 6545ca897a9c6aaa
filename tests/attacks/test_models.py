"""Every hostile model is refused by every command with exit code 3 and its reason; what is merely unusual loads."""

from __future__ import annotations

import os
import time
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper, parser

import onnxprune
from tests.fuzz.trial import arguments, run

from .cases import CASES, linear, outside, with_data, written

COMMANDS = ("inspect", "prune", "compact", "sparsify", "verify")
LONGEST_SECONDS = 20


@pytest.mark.parametrize("name", CASES)
def test_a_hostile_model_is_refused(name: str, tmp_path: Path) -> None:
    folder = tmp_path / "models"
    folder.mkdir()
    case, reason = CASES[name]
    path = case(folder)
    before = sorted(p.name for p in folder.rglob("*"))
    with pytest.raises(onnxprune.OnnxPruneError, match=reason):
        onnxprune.analyze(path)
    for command in COMMANDS:
        start = time.perf_counter()
        outcome = run(arguments(command, path, 0))
        assert outcome.trace is None, outcome.trace
        assert outcome.code == 3, f"{command}: {outcome}"
        assert time.perf_counter() - start < LONGEST_SECONDS
    assert sorted(p.name for p in folder.rglob("*")) == before


# --- what is unusual and loads ---


def hub_cache(folder: Path) -> Path:
    """Lay a model out as a hub does: links in a snapshot, to files named by their digests elsewhere."""
    blobs, snapshot = folder / "blobs", folder / "snapshots" / "main"
    blobs.mkdir()
    snapshot.mkdir(parents=True)
    with_data(blobs, outside("w.bin"))
    (blobs / "w.bin").rename(blobs / ("b" * 40))
    (blobs / "m.onnx").rename(blobs / ("a" * 40))
    (snapshot / "m.onnx").symlink_to(Path("../../blobs") / ("a" * 40))
    (snapshot / "w.bin").symlink_to(Path("../../blobs") / ("b" * 40))
    return snapshot / "m.onnx"


def hard_links(folder: Path) -> Path:
    store = folder / "store"
    store.mkdir()
    with_data(store, outside("w.bin"))
    (folder / "run").mkdir()
    for name in ("m.onnx", "w.bin"):
        os.link(store / name, folder / "run" / name)
    return folder / "run" / "m.onnx"


def link_beside(folder: Path) -> Path:
    path = with_data(folder, outside("link.bin"))
    (folder / "link.bin").symlink_to("w.bin")
    return path


def folder_below(folder: Path) -> Path:
    path = with_data(folder, outside("data/w.bin"))
    (folder / "data").mkdir()
    (folder / "w.bin").rename(folder / "data" / "w.bin")
    return path


@pytest.mark.parametrize("layout", [hub_cache, hard_links, link_beside, folder_below])
def test_layouts_of_real_stores_load_and_are_pruned(layout: object, tmp_path: Path) -> None:
    folder = tmp_path / "models"
    folder.mkdir()
    path = layout(folder)  # type: ignore[operator]
    weight = onnxprune.load(path).array("w")
    assert weight.shape == (5, 7)
    out = tmp_path / "out.onnx"
    outcome = run(["prune", str(path), "-o", str(out), "--ratio", "0.4", "--no-verify"])
    assert outcome.code == 0, outcome
    assert onnxprune.load(out).array("w").shape == (5, 5)
    assert (path.parent / "w.bin").exists() or (path.parent / "data").exists()


def test_nodes_in_another_order_load(tmp_path: Path) -> None:
    model = linear()
    nodes = [onnx.NodeProto.FromString(n.SerializeToString()) for n in reversed(model.graph.node)]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    onnxprune.load(written(tmp_path, model))


def test_operators_that_only_onnxruntime_knows_load(tmp_path: Path) -> None:
    model = parser.parse_model(
        """<ir_version: 9, opset_import: ["" : 14]>
        g (float[n, 5] x) => (float[n, 5] y) { y = SimplifiedLayerNormalization (x, s) }"""
    )
    model.graph.initializer.append(numpy_helper.from_array(np.ones(5, np.float32), "s"))
    onnxprune.load(written(tmp_path, model))


def test_a_model_of_version_3_need_not_list_its_weights_as_inputs(tmp_path: Path) -> None:
    model = linear()
    model.ir_version = 3
    del model.opset_import[:]
    model.opset_import.add(domain="", version=9)
    onnxprune.load(written(tmp_path, model))


# --- bombs that are let in, and do not go off ---


def sizes_that_double(folder: Path) -> Path:
    """A size added to itself 60 times over: an expression of 2^60 terms, when written out."""
    nodes = [helper.make_node("Shape", ["x"], ["s0"])]
    nodes += [helper.make_node("Max", [f"s{k}", f"s{k}"], [f"s{k + 1}"]) for k in range(60)]
    nodes.append(helper.make_node("Reshape", ["h", "s60"], ["y"]))
    model = linear()
    model.graph.node.extend(nodes)
    model.graph.output[0].name = "y2"
    del model.graph.node[2]
    model.graph.node[-1].output[0] = "y1"
    model.graph.node[-1].input[0] = "x"
    model.graph.node.append(helper.make_node("MatMul", ["y1", "w"], ["h2"]))
    model.graph.node.append(helper.make_node("MatMul", ["h2", "v"], ["y2"]))
    return written(folder, model)


def numbers_that_square(folder: Path) -> Path:
    """A number squared 60 times over has 2^60 digits."""
    nodes = [helper.make_node("Shape", ["x"], ["s0"])]
    nodes += [helper.make_node("Mul", [f"s{k}", f"s{k}"], [f"s{k + 1}"]) for k in range(60)]
    nodes += [helper.make_node("ReduceMin", ["s60"], ["least"], keepdims=0)]
    model = linear()
    model.graph.node.extend(nodes)
    model.graph.output.append(helper.make_tensor_value_info("least", TensorProto.INT64, []))
    return written(folder, model)


def fill_without_end(folder: Path) -> Path:
    """ConstantOfShape, Expand, Range and Tile to 2^50 elements, which nothing reads."""
    text = """<ir_version: 9, opset_import: ["" : 18]>
        g (float[n, 5] x) => (float[n, 3] y) {
          big = Constant <value = int64[2] {1125899906842624, 3}> ()
          top = Constant <value = int64 {1125899906842624}> ()
          one = Constant <value = int64 {1}> ()
          row = Constant <value = int64[2] {1, 1}> ()
          a = ConstantOfShape (big)
          b = Expand (one, big)
          c = Range (one, top, one)
          t = Tile (row, big)
          h = MatMul (x, w)
          r = Relu (h)
          y = MatMul (r, v)
        }"""
    model = parser.parse_model(text.replace("t = Tile (row, big)", ""))
    model.graph.initializer.extend(linear().graph.initializer)
    return written(folder, model)


def chain_of_nodes(folder: Path) -> Path:
    """Nothing here walks a graph by recursion."""
    model = linear()
    model.graph.output[0].name = "z3000"
    nodes = [helper.make_node("Relu", ["y"], ["z0"])]
    nodes += [helper.make_node("Relu", [f"z{k}"], [f"z{k + 1}"]) for k in range(3000)]
    model.graph.node.extend(nodes)
    return written(folder, model)


@pytest.mark.parametrize("bomb", [sizes_that_double, numbers_that_square, fill_without_end, chain_of_nodes])
def test_a_bomb_that_is_let_in_does_not_go_off(bomb: object, tmp_path: Path) -> None:
    path = bomb(tmp_path)  # type: ignore[operator]
    for command in ("inspect", "prune", "compact"):
        start = time.perf_counter()
        outcome = run(arguments(command, path, 0))
        assert outcome.trace is None, outcome.trace
        assert outcome.code in (0, 1, 3), outcome
        assert time.perf_counter() - start < LONGEST_SECONDS
