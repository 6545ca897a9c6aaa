"""From a model to a sparse one: counts, patterns in every layout, codes, stores, bounds, and refusals."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

import onnxprune
from onnxprune.errors import ModelError, NotMetError, OptionError, TargetError, UnknownNameError

FLOAT = TensorProto.FLOAT
ZOO = os.environ.get("ONNXPRUNE_ZOO")


def build(nodes, inputs, outputs, tensors, *, opset=18, metadata=None):
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info(n, kind, shape) for n, (kind, shape) in inputs.items()],
        [helper.make_tensor_value_info(n, FLOAT, shape) for n, shape in outputs.items()],
        [numpy_helper.from_array(a, n) for n, a in tensors.items()],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=9)
    for key, value in (metadata or {}).items():
        proto.metadata_props.add(key=key, value=value)
    return proto


def floats(rng, *shape):
    return rng.normal(size=shape).astype(np.float32)


def cnn():
    """Build Conv 3 to 16, grouped Conv 16 to 24, ConvTranspose 24 to 12, mean, Gemm 12 to 20, MatMul 20 to 5."""
    rng = np.random.default_rng(5)
    nodes = [
        helper.make_node("Conv", ["x", "stem", "stem.bias"], ["a"], name="stem"),
        helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node("Conv", ["b", "grouped"], ["c"], name="grouped", group=2),
        helper.make_node("ConvTranspose", ["c", "up"], ["d"], name="up"),
        helper.make_node("GlobalAveragePool", ["d"], ["e"]),
        helper.make_node("Flatten", ["e"], ["f"]),
        helper.make_node("Gemm", ["f", "fc"], ["g"], name="fc", transB=1),
        helper.make_node("Relu", ["g"], ["h"]),
        helper.make_node("MatMul", ["h", "head"], ["y"], name="head"),
    ]
    tensors = {
        "stem": floats(rng, 16, 3, 3, 3), "stem.bias": floats(rng, 16), "grouped": floats(rng, 24, 8, 3, 3),
        "up": floats(rng, 24, 12, 2, 2), "fc": floats(rng, 20, 12), "head": floats(rng, 20, 5),
    }  # fmt: skip
    return build(
        nodes,
        {"x": (FLOAT, [2, 3, 9, 10])},
        {"y": [2, 5]},
        tensors,
        metadata={"author": "me", "onnxprune.version": "0"},
    )


LOGICAL = {
    "stem": lambda w: w, "grouped": lambda w: w, "up": lambda w: w.swapaxes(0, 1), "fc": lambda w: w,
    "head": lambda w: w.T,
}  # fmt: skip


def tensors_of(model):
    return {name: model.array(name) for name in model.tensors}


def session(proto):
    options = ort.SessionOptions()
    options.log_severity_level = 4
    return ort.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])


def outputs(model, feed):
    return session(model.proto).run(None, feed)


def test_unstructured_counts_are_exact_and_survivors_untouched():
    proto = cnn()
    before = tensors_of(onnxprune.load(proto))
    result = onnxprune.sparsify(proto, sparsity=0.5)
    after = tensors_of(result.model)
    assert [layer.name for layer in result.layers] == list(LOGICAL)
    for layer in result.layers:
        new, old = after[layer.name], before[layer.name]
        zero = new == 0
        assert layer.zeros == np.count_nonzero(zero) == round(0.5 * old.size)
        assert not np.signbit(new[zero]).any()
        np.testing.assert_array_equal(new[~zero], old[~zero])
        assert np.abs(old[zero]).max() <= np.abs(new[~zero]).min()
    np.testing.assert_array_equal(after["stem.bias"], before["stem.bias"])
    assert result.proof is not None
    assert result.proof.ok
    assert result.sparsity == pytest.approx(0.5)


def test_two_four_groups_run_along_the_inputs_in_every_layout():
    result = onnxprune.sparsify(cnn(), pattern="2:4")
    after = tensors_of(result.model)
    for layer in result.layers:
        view = LOGICAL[layer.name](after[layer.name])
        assert view.shape == layer.shape
        n_out, n_in = view.shape[:2]
        pixels = view.reshape(n_out, n_in, -1)
        for start in range(0, n_in, 4):
            group = pixels[:, start : start + 4]
            padding = 4 - group.shape[1]
            zeros = np.count_nonzero(group == 0, axis=1)
            assert (zeros == max(0, 2 - padding)).all(), layer.name
        assert layer.valid == 1.0


def test_blocks_of_outputs_by_inputs():
    result = onnxprune.sparsify(cnn(), pattern="4x1", sparsity=0.8, include=["grouped", "up", "fc"])
    after = tensors_of(result.model)
    for layer in result.layers:
        view = LOGICAL[layer.name](after[layer.name])
        blocks = (view == 0).reshape(view.shape[0] // 4, 4, *view.shape[1:])
        whole = blocks.all(axis=1)
        assert (blocks.any(axis=1) == whole).all()
        assert np.count_nonzero(whole) == round(0.8 * whole.size)


def test_scope_global_hits_the_total_and_respects_bounds():
    result = onnxprune.sparsify(cnn(), sparsity=0.6, scope="global")
    assert result.zeros == round(0.6 * result.size)
    assert len({round(layer.sparsity, 3) for layer in result.layers}) > 3
    bounded = onnxprune.sparsify(cnn(), sparsity=0.6, scope="global", max_ratio=0.65, min_ratio=0.5)
    assert bounded.zeros == round(0.6 * bounded.size)
    assert all(0.5 - 1 / layer.size <= layer.sparsity <= 0.65 for layer in bounded.layers)
    with pytest.raises(TargetError, match=r"at most 0\.3"):
        onnxprune.sparsify(cnn(), sparsity=0.6, scope="global", max_ratio=0.3)


def test_n_of_m_below_its_own_level_zeroes_that_many_groups():
    (layer,) = onnxprune.sparsify(cnn(), pattern="2:4", sparsity=0.2, include=["grouped"]).layers
    groups = 24 * 2 * 9
    assert layer.zeros == 2 * round(0.4 * groups)
    assert layer.valid == pytest.approx(round(0.4 * groups) / groups)


def test_settings_of_single_layers():
    result = onnxprune.sparsify(
        cnn(), pattern="2:4", layers={"*": {"sparsity": 0.25}, "head": {"pattern": "unstructured", "sparsity": 0.9}}
    )
    by_name = {layer.name: layer for layer in result.layers}
    assert by_name["head"].sparsity == pytest.approx(0.9)
    assert by_name["fc"].sparsity == pytest.approx(0.25, abs=1 / 240)
    assert (by_name["head"].pattern, by_name["fc"].pattern) == ("unstructured", "2:4")


@pytest.mark.parametrize("store", ["packed", "sparse", "coo", "mask"])
def test_every_store_computes_the_same(store):
    proto, feed = cnn(), {"x": floats(np.random.default_rng(9), 2, 3, 9, 10)}
    dense = onnxprune.sparsify(proto, sparsity=0.8)
    stored = onnxprune.sparsify(proto, sparsity=0.8, store=store)
    expected = outputs(dense.model, feed)
    for a, b in zip(expected, outputs(stored.model, feed), strict=True):
        np.testing.assert_array_equal(a, b)
    assert np.abs(expected[0] - outputs(onnxprune.load(proto), feed)[0]).max() > 1e-2
    assert stored.proof is not None
    assert (stored.proof.same, stored.proof.max_abs) == (True, 0)


def test_the_result_is_stamped_and_the_source_left_alone():
    proto = cnn()
    bytes_before = proto.SerializeToString(deterministic=True)
    result = onnxprune.sparsify(proto)
    again = onnxprune.sparsify(proto)
    assert proto.SerializeToString(deterministic=True) == bytes_before
    entries = {p.key: p.value for p in result.model.proto.metadata_props}
    assert entries["author"] == "me"
    assert entries["onnxprune.version"] == onnxprune.__version__
    assert entries["onnxprune.source_sha256"] == onnxprune.load(proto).sha256
    assert len(entries["onnxprune.plan_sha256"]) == 64
    assert result.model.proto.SerializeToString(deterministic=True) == again.model.proto.SerializeToString(
        deterministic=True
    )


def quantized(rng):
    """Build a product with int8 codes per column, zero points that are not 0, and its float input."""
    codes = rng.integers(-128, 128, size=(12, 7)).astype(np.int8)
    scale = rng.uniform(0.01, 0.1, size=7).astype(np.float32)
    point = rng.integers(-30, 30, size=7).astype(np.int8)
    nodes = [
        helper.make_node("DequantizeLinear", ["w", "s", "z"], ["d"], axis=1),
        helper.make_node("MatMul", ["x", "d"], ["y"]),
    ]
    tensors = {"w": codes, "s": scale, "z": point}
    return build(nodes, {"x": (FLOAT, [3, 12])}, {"y": [3, 7]}, tensors), codes, scale, point


def test_codes_go_to_their_zero_point():
    proto, codes, scale, point = quantized(np.random.default_rng(2))
    (layer,) = (result := onnxprune.sparsify(proto, sparsity=0.5)).layers
    new = result.model.array("w")
    assert new.dtype == np.int8
    keep = result.masks["w"].T
    assert np.count_nonzero(~keep) == 42
    np.testing.assert_array_equal(new, np.where(keep, codes, point))
    values = np.abs((codes.astype(np.float64) - point) * scale)
    assert values[~keep].max() <= values[keep].min()
    assert layer.dtype == "int8"
    assert layer.sparsity >= layer.pruned == 0.5


def test_zeros_that_are_there_stay_and_count():
    proto = cnn()
    tensor = next(t for t in proto.graph.initializer if t.name == "fc")
    array = numpy_helper.to_array(tensor).copy()
    # Scores that speak against it: what is zero has a high one.
    array[:, :3] = 0
    tensor.CopyFrom(numpy_helper.from_array(array, "fc"))
    norm = {"include": ["fc"], "sparsity": 0.5, "norm": lambda w: (w == 0).astype(np.float32)}
    free = onnxprune.sparsify(proto, **norm)
    held = onnxprune.sparsify(proto, keep_zeros=True, **norm)
    assert not (~free.masks["fc"][:, :3]).any()
    assert (~held.masks["fc"][:, :3]).all()
    assert np.count_nonzero(~held.masks["fc"]) == 120


def test_steps_keep_the_zeros_of_the_step_before():
    whole = onnxprune.sparsify(cnn(), pattern="1x4", sparsity=0.75)
    steps = onnxprune.sparsify(cnn(), pattern="1x4", sparsity=0.75, steps=4, schedule="cubic")
    np.testing.assert_allclose(steps.steps, [1 - (1 - k / 4) ** 3 for k in (1, 2, 3)] + [1], rtol=1e-12)
    for name, mask in whole.masks.items():
        np.testing.assert_array_equal(mask, steps.masks[name])


def test_masks_made_elsewhere_are_kept_to(tmp_path):
    proto = cnn()
    first = onnxprune.sparsify(proto, sparsity=0.3, norm=lambda w: -np.abs(w))
    path = tmp_path / "masks.npz"
    onnxprune.api.save_masks(first.masks, path)
    second = onnxprune.sparsify(proto, sparsity=0.6, masks=path)
    for name, mask in first.masks.items():
        assert not (second.masks[name] & ~mask).any()
        assert np.count_nonzero(~second.masks[name]) == round(0.6 * mask.size)
    # A mask in the stored layout is as good as one in the logical layout.
    stored = {"head": first.masks["head"].T}
    third = onnxprune.sparsify(proto, sparsity=0.3, include=["head"], masks=stored)
    np.testing.assert_array_equal(third.masks["head"], first.masks["head"])
    with pytest.raises(UnknownNameError, match="Did you mean 'head'"):
        onnxprune.sparsify(proto, masks={"haed": stored["head"]})
    with pytest.raises(OptionError, match="has shape"):
        onnxprune.sparsify(proto, masks={"head": np.ones((3, 3), dtype=bool)})


def test_nothing_that_is_not_finite_is_ranked():
    proto = cnn()
    tensor = next(t for t in proto.graph.initializer if t.name == "fc")
    array = numpy_helper.to_array(tensor).copy()
    array[3, 4] = np.inf
    tensor.CopyFrom(numpy_helper.from_array(array, "fc"))
    with pytest.raises(ModelError, match=r"'fc' at 'fc' holds 1 values that are not finite"):
        onnxprune.sparsify(proto)
    result = onnxprune.sparsify(proto, allow_nonfinite=True, sparsity=0.9)
    assert result.masks["fc"][3, 4]
    assert np.count_nonzero(~result.masks["fc"]) == round(0.9 * 240)
    assert onnxprune.sparsify(proto, exclude=["fc"]).layers


def test_a_pattern_that_takes_nothing_leaves_a_layer_or_is_refused_by_name():
    rng = np.random.default_rng(1)
    nodes = [
        helper.make_node("Conv", ["x", "depthwise"], ["a"], name="depthwise", group=6),
        helper.make_node("Conv", ["a", "point"], ["y"], name="point"),
    ]
    tensors = {"depthwise": floats(rng, 6, 1, 3, 3), "point": floats(rng, 10, 6, 1, 1)}
    proto = build(nodes, {"x": (FLOAT, [1, 6, 5, 7])}, {"y": [1, 10, 3, 5]}, tensors)
    result = onnxprune.sparsify(proto, pattern="2:4")
    assert [layer.name for layer in result.layers] == ["point"]
    assert [(row.name, row.reason) for row in result.left] == [
        ("depthwise", "the pattern takes nothing from a weight of shape 6x1x3x3")
    ]
    with pytest.raises(OptionError, match="6x1x3x3"):
        onnxprune.sparsify(proto, pattern="2:4", include=["depthwise"])


def test_refusals_name_what_is_wrong():
    proto = cnn()
    for options, message in [
        ({"scope": "globl"}, "Did you mean 'global'"),
        ({"store": "dens"}, "Did you mean 'dense'"),
        ({"schedule": "cubik"}, "Did you mean 'cubic'"),
        ({"steps": 0}, "at least 1"),
        ({"criterion": "wanda"}, "needs samples"),
        ({"recover": "lstsq"}, "give data"),
        ({"recover": "bias"}, "unknown way to recover"),
        ({"criterion": "sparsegpt", "scope": "global", "data": "random:1"}, "layer by layer"),
        ({"scope": "global", "layers": {"head": {"norm": "l2"}}}, "one norm"),
        ({"pattern": "nearly_diagonal(99)", "include": ["head"]}, r"'head' \(5x20\)"),
    ]:
        with pytest.raises(OptionError, match=message):
            onnxprune.sparsify(proto, **options)


def test_a_model_without_weights():
    proto = build([helper.make_node("Relu", ["x"], ["y"])], {"x": (FLOAT, [2, 3])}, {"y": [2, 3]}, {})
    with pytest.raises(NotMetError, match="it has none"):
        onnxprune.sparsify(proto)


def test_wanda_weighs_inputs_and_ranks_row_by_row():
    rng = np.random.default_rng(8)
    w, x = floats(rng, 12, 7), floats(rng, 40, 12) * np.geomspace(0.01, 10, 12, dtype=np.float32)
    proto = build([helper.make_node("MatMul", ["x", "w"], ["y"])], {"x": (FLOAT, ["n", 12])}, {"y": ["n", 7]}, {"w": w})
    result = onnxprune.sparsify(proto, criterion="wanda", data={"x": x}, sparsity=0.5)
    scores = np.abs(w.T.astype(np.float64)) * np.sqrt(np.square(x.astype(np.float64)).mean(axis=0))
    expected = np.ones((7, 12), dtype=bool)
    np.put_along_axis(expected, np.argsort(scores, axis=1)[:, :6], values=False, axis=1)
    np.testing.assert_array_equal(result.masks["w"], expected)
    assert result.layers[0].criterion == "wanda"


@pytest.mark.parametrize("pattern", ["unstructured", "2:4"])
def test_what_is_left_is_repaired_from_samples(pattern):
    rng = np.random.default_rng(8)
    mix = floats(rng, 16, 16)
    x = floats(rng, 200, 16) @ mix
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["h"], name="one"),
        helper.make_node("Relu", ["h"], ["r"]),
        helper.make_node("MatMul", ["r", "v"], ["y"], name="two"),
    ]
    proto = build(
        nodes, {"x": (FLOAT, ["n", 16])}, {"y": ["n", 5]}, {"w": floats(rng, 16, 24), "v": floats(rng, 24, 5)}
    )
    feed = {"x": x[:50]}
    dense = outputs(onnxprune.load(proto), feed)[0]
    error, masks = {}, {}
    for criterion, recover in [
        ("l1", None),
        ("l1", "lstsq"),
        ("sparsegpt", "none"),
        ("sparsegpt", None),
        ("wanda", None),
    ]:
        result = onnxprune.sparsify(
            proto, pattern=pattern, sparsity=0.5, criterion=criterion, recover=recover, data={"x": x}
        )
        difference = outputs(result.model, feed)[0] - dense
        error[criterion, recover] = np.linalg.norm(difference) / np.linalg.norm(dense)
        masks[criterion, recover] = result.masks
        assert [layer.zeros for layer in result.layers] == [192, 60]
    assert error["sparsegpt", "none"] < 0.8 * error["l1", None]
    assert error["sparsegpt", None] < error["sparsegpt", "none"]
    assert error["wanda", None] < 0.8 * error["l1", None]
    assert error["l1", "lstsq"] < 0.8 * error["l1", None]
    for name, mask in masks["l1", None].items():
        np.testing.assert_array_equal(mask, masks["l1", "lstsq"][name])


def test_permuted_channels_keep_more_and_compute_the_same():
    rng = np.random.default_rng(3)
    w, v = floats(rng, 10, 16), floats(rng, 16, 7)
    # Large weights side by side: any other order keeps more.
    v[:8] *= 10
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["h"], name="one"),
        helper.make_node("Relu", ["h"], ["r"]),
        helper.make_node("MatMul", ["r", "v"], ["y"], name="two"),
    ]
    proto = build(nodes, {"x": (FLOAT, [9, 10])}, {"y": [9, 7]}, {"w": w, "v": v})
    plain = onnxprune.sparsify(proto, pattern="2:4", include=["v"])
    better = onnxprune.sparsify(proto, pattern="2:4", include=["v"], permute=True)
    assert better.layers[0].kept_magnitude > 1.1 * plain.layers[0].kept_magnitude
    assert better.permuted[0]["after"] > better.permuted[0]["before"]
    assert better.proof is not None
    assert better.proof.ok
    feed = {"x": floats(rng, 9, 10)}
    dense = outputs(onnxprune.load(proto), feed)[0]
    errors = [np.linalg.norm(outputs(r.model, feed)[0] - dense) for r in (plain, better)]
    assert errors[1] < errors[0]
    with pytest.raises(OptionError, match="either masks or permute"):
        onnxprune.sparsify(proto, pattern="2:4", permute=True, masks={"v": np.ones((7, 16), dtype=bool)})
    with pytest.raises(OptionError, match="N:M"):
        onnxprune.sparsify(proto, permute=True)


def test_weights_without_samples_are_ranked_by_magnitude_and_say_so():
    rng = np.random.default_rng(7)
    body = helper.make_graph(
        [
            helper.make_node("MatMul", ["state", "inner"], ["next"], name="inside"),
            helper.make_node("Identity", ["go"], ["on"]),
        ],
        "body",
        [
            helper.make_tensor_value_info("i", TensorProto.INT64, []),
            helper.make_tensor_value_info("go", TensorProto.BOOL, []),
            helper.make_tensor_value_info("state", FLOAT, [4, 6]),
        ],
        [
            helper.make_tensor_value_info("on", TensorProto.BOOL, []),
            helper.make_tensor_value_info("next", FLOAT, [4, 6]),
        ],
    )
    nodes = [
        helper.make_node("MatMul", ["x", "outer"], ["h"], name="outside"),
        helper.make_node("Loop", ["n", "", "h"], ["y"], body=body, name="loop"),
    ]
    tensors = {"outer": floats(rng, 8, 6), "inner": floats(rng, 6, 6) / 3, "n": np.array(3, dtype=np.int64)}
    proto = build(nodes, {"x": (FLOAT, [4, 8])}, {"y": [4, 6]}, tensors)
    for criterion in ("wanda", "sparsegpt"):
        result = onnxprune.sparsify(proto, criterion=criterion, data={"x": floats(rng, 40, 8)}, sparsity=0.5)
        rows = {layer.name: layer for layer in result.layers}
        assert (rows["outer"].criterion, rows["inner"].criterion) == (criterion, "l1")
        assert "ranked by magnitude: it lies in the body of a Loop; not repaired" in rows["inner"].note
        before = onnxprune.load(proto).array("inner")
        np.testing.assert_array_equal(result.model.array("inner"), np.where(result.masks["inner"].T, before, 0))


def test_eligibility_says_who_could_use_it():
    rows = {row["name"]: row for row in onnxprune.sparsify(cnn(), pattern="2:4").eligibility}
    assert set(rows) == set(LOGICAL)
    assert rows["fc"]["tensorrt"] is None
    assert "no multiple of 4" in rows["stem"]["tensorrt"]
    assert "groups" in rows["grouped"]["tensorrt"]
    assert "ConvTranspose" in rows["up"]["tensorrt"]
    assert "int8" in rows["fc"]["openvino"]
    assert rows["fc"]["two_four"] == 1.0


def test_output_is_written_only_when_all_is_well(tmp_path):
    out = tmp_path / "out.onnx"
    with pytest.raises(OptionError):
        onnxprune.sparsify(cnn(), out, sparsity=2)
    assert not out.exists()
    result = onnxprune.sparsify(cnn(), out, pattern="2:4")
    assert onnx.load(out).SerializeToString(deterministic=True) == result.model.proto.SerializeToString(
        deterministic=True
    )


@pytest.mark.slow
@pytest.mark.skipif(not ZOO, reason="ONNXPRUNE_ZOO names no folder")
@pytest.mark.parametrize("store", ["dense", "packed"])
def test_real_models(store):
    folder = Path(str(ZOO)) / "real" / "models"
    paths = [folder / f"{name}.onnx" for name in ("fmnist_vit", "g2p_en_gru", "silero_vad")]
    if not all(path.exists() for path in paths):
        pytest.skip("the folder lacks the models")
    for path in paths:
        result = onnxprune.sparsify(path, pattern="2:4", store=store)
        assert result.proof is not None
        assert result.proof.ok, path.name
        for layer in result.layers:
            assert layer.valid == 1.0


def test_data_takes_no_output_row_as_a_whole() -> None:
    """Small rows cost little in the layer's own error, and may be all that tells a rare class."""
    rng = np.random.default_rng(3)
    weight = rng.standard_normal((12, 10)).astype(np.float32)
    weight[:4] *= 0.01
    model = onnx.parser.parse_model(
        '<ir_version: 9, opset_import: ["" : 17]> g (float[b, 10] x) => (float[b, 12] y) <float[12, 10] w> '
        "{ y = Gemm<transB = 1>(x, w) }"
    )
    del model.graph.initializer[:]
    model.graph.initializer.append(numpy_helper.from_array(weight, "w"))
    feeds = [{"x": rng.standard_normal((8, 10)).astype(np.float32)} for _ in range(8)]
    for criterion in ("wanda", "sparsegpt"):
        result = onnxprune.sparsify(model, criterion=criterion, sparsity=0.5, data=feeds)
        zeros = (result.model.array("w") == 0).sum(axis=1)
        np.testing.assert_array_equal(zeros, 5)
