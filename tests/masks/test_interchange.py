"""Masks in files and state dicts: there and back, and nothing unpickled. Torch's own dicts are in test_torch."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import onnxprune
from onnxprune.masks import load_masks, masks_from_state_dict, masks_to_state_dict, save_masks

RNG = np.random.default_rng(21)
MASKS = {"layer/1.weight": RNG.random((5, 7)) > 0.5, "b": RNG.random((3, 2, 3, 3)) > 0.2}
SHAPES = {"layer/1.weight": (5, 7), "b": (3, 2, 3, 3), "unmasked": (4,)}


def test_npz_there_and_back_in_the_same_bytes(tmp_path: Path) -> None:
    first, second = tmp_path / "a.npz", tmp_path / "b.npz"
    save_masks(first, MASKS)
    save_masks(second, dict(reversed(MASKS.items())))
    assert first.read_bytes() == second.read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.npz", "b.npz"]
    found = load_masks(first, SHAPES)
    assert found.keys() == MASKS.keys()
    for name, mask in MASKS.items():
        np.testing.assert_array_equal(found[name], mask)
    with np.load(first, allow_pickle=False) as file:
        np.testing.assert_array_equal(file["b"], MASKS["b"])


def test_zeros_and_ones_are_masks_too(tmp_path: Path) -> None:
    path = tmp_path / "m.npz"
    np.savez(path, a=MASKS["b"].astype(np.float32), b=MASKS["b"].astype(np.int8))
    for mask in load_masks(path).values():
        assert mask.dtype == np.bool_
        np.testing.assert_array_equal(mask, MASKS["b"])


def test_files_that_are_no_masks(tmp_path: Path) -> None:
    path = tmp_path / "m.npz"
    np.savez(path, a=np.array([object()], dtype=object))
    with pytest.raises(onnxprune.DataError, match="cannot be read"):
        load_masks(path)
    np.savez(path, a=np.array([0.0, 0.5]))
    with pytest.raises(onnxprune.DataError, match="zeros and ones"):
        load_masks(path)
    path.write_bytes(b"no zip")
    with pytest.raises(onnxprune.DataError, match="cannot be read"):
        load_masks(path)
    with pytest.raises(onnxprune.DataError, match="cannot be read"):
        load_masks(tmp_path / "absent.npz")
    save_masks(path, MASKS)
    with pytest.raises(onnxprune.DataError, match="shape"):
        load_masks(path, {**SHAPES, "b": (3, 3)})
    with pytest.raises(onnxprune.DataError, match="unknown weight 'b'"):
        load_masks(path, {"layer/1.weight": (5, 7)})


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "m.npz"
    save_masks(path, MASKS)
    before = path.read_bytes()
    with pytest.raises(onnxprune.OptionError, match="zeros and ones"):
        save_masks(path, {"a": np.array([0.0, 2.0])})
    assert path.read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["m.npz"]


@pytest.mark.parametrize("style", ["prune", "ao"])
def test_state_dicts_of_arrays(style: str) -> None:
    state = {"a.weight": RNG.standard_normal((4, 6)).astype(np.float32), "a.bias": np.zeros(4), "top": np.ones((2, 3))}
    masks = {"a.weight": state["a.weight"] > 0, "top": np.array([[True, False, True], [False, True, True]])}
    made = masks_to_state_dict(state, masks, style)  # type: ignore[arg-type]
    assert set(state) == {"a.weight", "a.bias", "top"}
    want = {
        "prune": {"a.bias", "a.weight_orig", "a.weight_mask", "top_orig", "top_mask"},
        "ao": {
            "a.bias",
            "a.parametrizations.weight.original",
            "a.parametrizations.weight.0.mask",
            "parametrizations.top.original",
            "parametrizations.top.0.mask",
        },
    }
    assert set(made) == want[style]
    before = dict(made)
    for _ in range(2):
        found = masks_from_state_dict(made, {"a.weight": (4, 6), "top": (2, 3)})
        for name, mask in masks.items():
            np.testing.assert_array_equal(found[name], mask)
    assert made.keys() == before.keys()
    with pytest.raises(onnxprune.UnknownNameError, match=r"Did you mean 'a\.weight'"):
        masks_to_state_dict(state, {"a.weigth": masks["top"]})
    with pytest.raises(onnxprune.OptionError, match="has shape"):
        masks_to_state_dict(state, {"top": masks["a.weight"]})
    with pytest.raises(onnxprune.UnknownNameError, match="style"):
        masks_to_state_dict(state, masks, "torch")  # type: ignore[arg-type]
