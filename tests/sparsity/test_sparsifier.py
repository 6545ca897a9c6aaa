"""`Sparsifier`: masks between somebody's own training steps."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

import onnxprune
from onnxprune import Sparsifier
from onnxprune.errors import DataError, ModelError, OptionError, UnknownNameError

SHAPES = {"one.weight": (8, 12), "two.weight": (5, 8, 3, 3), "bias": (8,)}


@pytest.fixture
def weights():
    rng = np.random.default_rng(4)
    return {name: rng.normal(size=shape).astype(np.float32) for name, shape in SHAPES.items()}


def counts(masks):
    return {name: int(np.count_nonzero(~np.asarray(mask))) for name, mask in masks.items()}


def test_masks_keep_everything_until_the_first_step(weights):
    sparsifier = Sparsifier(weights, sparsity=0.25)
    assert counts(sparsifier.masks) == {"one.weight": 0, "two.weight": 0}
    assert sparsifier.level == 0
    masks = sparsifier.step()
    assert counts(masks) == {"one.weight": 24, "two.weight": 90}
    for name, mask in masks.items():
        np.testing.assert_array_equal(mask, onnxprune.keep_mask(weights[name], sparsity=0.25))


def test_levels_follow_the_schedule_and_then_stay(weights):
    sparsifier = Sparsifier(weights, sparsity=0.5, steps=4, schedule="cubic", include=["one.*"])
    zeros = [counts(sparsifier.step())["one.weight"] for _ in range(6)]
    expected = [round(96 * 0.5 * (1 - (1 - k / 4) ** 3)) for k in (1, 2, 3, 4, 4, 4)]
    assert zeros == expected
    assert sparsifier.sparsity == pytest.approx(0.5)


def test_a_step_sees_the_weights_as_they_are_now(weights):
    """What was pruned can come back: masks come from the dense weights, not from masked ones."""
    sparsifier = Sparsifier(weights, sparsity=0.5, steps=2, include=["one.*"])
    first = sparsifier.step()["one.weight"]
    weights["one.weight"][~first] += 100
    second = sparsifier.step()["one.weight"]
    assert second[~first].all()
    held = Sparsifier(weights, sparsity=0.5, steps=2, include=["one.*"], keep_previous=True)
    first = held.step()["one.weight"]
    weights["one.weight"][~first] += 1000
    second = held.step()["one.weight"]
    assert not second[~first].any()
    assert np.count_nonzero(~second) == 48


def test_new_arrays_can_be_given_instead(weights):
    sparsifier = Sparsifier(weights, pattern="2:4")
    fresh = {name: -2 * weights[name][..., ::-1].copy() for name in ("one.weight", "two.weight")}
    masks = sparsifier.step(fresh)
    np.testing.assert_array_equal(masks["one.weight"], onnxprune.keep_mask(fresh["one.weight"], "2:4"))
    with pytest.raises(OptionError, match=r"'two\.weight'"):
        sparsifier.step({"one.weight": fresh["one.weight"]})
    with pytest.raises(OptionError, match="has shape"):
        sparsifier.step({**fresh, "one.weight": fresh["one.weight"].T})
    with pytest.raises(UnknownNameError, match=r"Did you mean 'one\.weight'"):
        sparsifier.step({**fresh, "on.weight": fresh["one.weight"]})


def test_squash_gives_true_zeros_and_leaves_the_weights(weights):
    weights["one.weight"][0] = np.nan_to_num(-np.abs(weights["one.weight"][0]))
    before = {name: w.copy() for name, w in weights.items()}
    sparsifier = Sparsifier(weights, sparsity=0.75)
    masks = sparsifier.step()
    for name, sparse in sparsifier.squash().items():
        np.testing.assert_array_equal(sparse[masks[name]], before[name][masks[name]])
        assert not np.signbit(sparse[~masks[name]]).any()
        np.testing.assert_array_equal(weights[name], before[name])
    sparsifier.apply_()
    for name, mask in masks.items():
        np.testing.assert_array_equal(weights[name], np.where(mask, before[name], 0))


def test_scope_and_settings_by_layer(weights):
    both = Sparsifier(weights, sparsity=0.5, scope="global", max_ratio=0.6)
    assert sum(counts(both.step()).values()) == 228
    own = Sparsifier(weights, sparsity=0.5, layers={"two.*": {"pattern": "2:4"}, "one.weight": {"sparsity": 0.25}})
    assert counts(own.step()) == {"one.weight": 24, "two.weight": 180}
    assert own.measure()["two.weight"].complete_fraction == 1
    skipped = Sparsifier(weights, layers={"two.*": {"skip": True}})
    assert list(skipped.step()) == ["one.weight"]


def test_state_goes_there_and_back_and_is_only_read(weights):
    sparsifier = Sparsifier(weights, sparsity=0.5, steps=3)
    sparsifier.step()
    state = sparsifier.state_dict()
    kept = {name: mask.copy() for name, mask in state["masks"].items()}
    other = Sparsifier(weights, sparsity=0.5, steps=3)
    other.load_state_dict(state)
    other.step()
    sparsifier.step()
    assert other.n_done == sparsifier.n_done == 2
    for name, mask in kept.items():
        np.testing.assert_array_equal(other.masks[name], sparsifier.masks[name])
        # Neither the dictionary nor its masks changed, and a second load finds them.
        np.testing.assert_array_equal(state["masks"][name], mask)
    other.load_state_dict(state)
    assert other.n_done == 1


def test_states_that_do_not_fit_change_nothing(weights):
    sparsifier = Sparsifier(weights, sparsity=0.5)
    state = sparsifier.state_dict()
    wrong = {**state, "masks": {**state["masks"], "one.weight": np.ones((12, 8), dtype=bool)}}
    sparsifier.step()
    before = counts(sparsifier.masks)
    for bad, error, message in [
        ({}, DataError, "no state"),
        (wrong, OptionError, "has shape"),
        ({**state, "masks": {"one.weight": state["masks"]["one.weight"]}}, OptionError, "no mask for"),
        ({**state, "masks": {**state["masks"], "three": np.ones(3, dtype=bool)}}, UnknownNameError, "three"),
    ]:
        with pytest.raises(error, match=message):
            sparsifier.load_state_dict(bad)
    assert counts(sparsifier.masks) == before


def test_masks_come_and_go_as_files_and_state_dicts(weights, tmp_path):
    sparsifier = Sparsifier(weights, sparsity=0.5)
    masks = sparsifier.step()
    sparsifier.export_masks(tmp_path / "masks.npz")
    other = Sparsifier(weights)
    other.import_masks(tmp_path / "masks.npz")
    np.testing.assert_array_equal(other.masks["two.weight"], masks["two.weight"])
    torch_like = {
        "one.weight_orig": weights["one.weight"],
        "one.weight_mask": masks["one.weight"].astype(np.float32),
        "two.parametrizations.weight.original": weights["two.weight"],
        "two.parametrizations.weight.0.mask": masks["two.weight"],
    }
    third = Sparsifier(weights, keep_previous=True, sparsity=0.6)
    third.import_masks(torch_like)
    assert len(torch_like) == 4
    for name, mask in third.step().items():
        assert not (mask & ~masks[name]).any()
    with pytest.raises(OptionError, match="more than zeros and ones"):
        third.import_masks({"one.weight": np.full((8, 12), 2)})


def test_an_onnx_model_gives_an_onnx_model():
    rng = np.random.default_rng(6)
    table, fc = (rng.normal(size=s).astype(np.float32) for s in ((9, 6), (6, 5)))
    nodes = [helper.make_node("Gather", ["table", "i"], ["h"]), helper.make_node("MatMul", ["h", "fc"], ["y"])]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("i", TensorProto.INT64, [2])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [2, 5])],
        [numpy_helper.from_array(table, "table"), numpy_helper.from_array(fc, "fc")],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    sparsifier = Sparsifier(proto, pattern="2:4")
    masks = sparsifier.step()
    assert {name: mask.shape for name, mask in masks.items()} == {"fc": (5, 6)}
    np.testing.assert_array_equal(sparsifier.squash().array("fc"), np.where(masks["fc"].T, fc, 0))
    # Weights trained elsewhere go into the model with their zeros.
    trained = {"fc": fc.T + 1}
    masks = sparsifier.step(trained)
    np.testing.assert_array_equal(sparsifier.squash(store_as="mask").array("fc").shape, (6, 5))
    np.testing.assert_array_equal(sparsifier.squash().array("fc"), np.where(masks["fc"], trained["fc"], 0).T)


def test_refusals(weights):
    for options, message in [
        ({"sparsity": 1.2}, "from 0 to 1"),
        ({"scope": "all"}, "scope"),
        ({"include": ["three"]}, "three"),
        ({"layers": {"three": {"sparsity": 0.1}}}, "three"),
        ({"schedule": "cubik"}, "Did you mean 'cubic'"),
        ({"exclude": ["*"]}, "no weight of two axes"),
        ({"layers": {"one.*": {"criterion": "wanda"}}}, "needs samples"),
    ]:
        with pytest.raises(OptionError, match=message):
            Sparsifier(weights, **options)
    with pytest.raises(OptionError, match="level is a share"):
        Sparsifier(weights).step(level=2)
    weights["one.weight"][2, 3] = np.nan
    with pytest.raises(ModelError, match=r"'one\.weight' holds values that are not finite"):
        Sparsifier(weights).step()


def test_torch_tensors_and_modules():
    torch = pytest.importorskip("torch")
    module = torch.nn.Sequential(torch.nn.Linear(12, 8), torch.nn.Conv2d(3, 4, 3))
    sparsifier = Sparsifier(module, pattern="2:4", layers={"1.*": {"pattern": "unstructured"}})
    masks = sparsifier.step()
    assert {name: (mask.dtype, tuple(mask.shape)) for name, mask in masks.items()} == {
        "0.weight": (torch.bool, (8, 12)),
        "1.weight": (torch.bool, (4, 3, 3, 3)),
    }
    dense = module[0].weight.detach().numpy().copy()
    np.testing.assert_array_equal(masks["0.weight"].numpy(), onnxprune.keep_mask(dense, "2:4"))
    np.testing.assert_array_equal(sparsifier.squash()["0.weight"].numpy(), np.where(masks["0.weight"], dense, 0))
    np.testing.assert_array_equal(module[0].weight.detach().numpy(), dense)
    sparsifier.apply_()
    np.testing.assert_array_equal(module[0].weight.detach().numpy(), np.where(masks["0.weight"], dense, 0))
    state = sparsifier.state_dict()
    Sparsifier(module).load_state_dict(state)
    assert isinstance(state["masks"]["0.weight"], torch.Tensor)
