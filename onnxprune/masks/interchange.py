"""Masks in other people's files: `.npz`, and the state dicts of torch's two pruning interfaces."""

from __future__ import annotations

import os
import tempfile
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np

from ..errors import DataError, OptionError, unknown_name

UNPACKED_LIMIT_BYTES = 16 << 30
Mask: TypeAlias = np.ndarray[Any, np.dtype[np.bool_]]
Style: TypeAlias = Literal["prune", "ao"]

# torch.nn.utils.prune: weight_orig, weight_mask. torch.ao.pruning: parametrizations.weight.original, ...weight.0.mask.
_PRUNE_MASK, _PRUNE_DENSE = "_mask", "_orig"
_AO_ROOT, _AO_MASK, _AO_DENSE = "parametrizations.", ".0.mask", ".original"


def save_masks(path: str | os.PathLike[str], masks: Mapping[str, Any]) -> None:
    """Write keep masks (bool, numpy or torch) to an `.npz`, whole or not at all; the same masks give the same bytes."""
    target = Path(path)
    arrays = {name: _boolean(name, mask) for name, mask in masks.items()}
    handle, part = tempfile.mkstemp(prefix=f".{target.name}.", dir=target.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
                for name in sorted(arrays):
                    with archive.open(zipfile.ZipInfo(f"{name}.npy"), "w", force_zip64=True) as entry:
                        np.lib.format.write_array(entry, arrays[name], allow_pickle=False)
            file.flush()
            os.fsync(file.fileno())
        Path(part).replace(target)
    except BaseException:
        Path(part).unlink(missing_ok=True)
        raise


def load_masks(path: str | os.PathLike[str], shapes: Mapping[str, tuple[int, ...]] | None = None) -> dict[str, Mask]:
    """Read keep masks from an `.npz`, never unpickling; `shapes` are those of the weights they are for.

    Raises `DataError` for a file that cannot be read, holds other than booleans (or zeros and ones), or does not fit
    the shapes; names that are no weight's too.
    """
    masks: dict[str, Mask] = {}
    try:
        with zipfile.ZipFile(path) as archive:
            unpacked = sum(member.file_size for member in archive.infolist())
        if unpacked > UNPACKED_LIMIT_BYTES:
            raise DataError(f"{os.fspath(path)}: unpacks to {unpacked} bytes, more than {UNPACKED_LIMIT_BYTES}")
        with np.load(path, allow_pickle=False) as file:
            for name in file.files:
                masks[name] = _boolean(name, file[name])
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise DataError(f"{os.fspath(path)}: masks cannot be read from it: {error}") from error
    except OptionError as error:
        raise DataError(f"{os.fspath(path)}: {error}") from error
    _check_shapes(masks, shapes)
    return masks


def masks_from_state_dict(
    state: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]] | None = None
) -> dict[str, Mask]:
    """Find the keep masks in a torch state dict, by parameter name; the dict is only read.

    Knows `NAME_orig` with `NAME_mask` (torch.nn.utils.prune) and `MODULE.parametrizations.NAME.0.mask`
    (torch.ao.pruning). Raises `DataError` for a mask that is not of zeros and ones or does not fit its weight.
    """
    masks: dict[str, Mask] = {}
    for key in state:
        if key.endswith(_PRUNE_MASK) and key.removesuffix(_PRUNE_MASK) + _PRUNE_DENSE in state:
            name, dense = key.removesuffix(_PRUNE_MASK), key.removesuffix(_PRUNE_MASK) + _PRUNE_DENSE
        elif key.endswith(_AO_MASK) and _AO_ROOT in key:
            name = "".join(key.removesuffix(_AO_MASK).rsplit(_AO_ROOT, 1))
            dense = key.removesuffix(_AO_MASK) + _AO_DENSE
        else:
            continue
        try:
            masks[name] = _boolean(name, state[key])
        except OptionError as error:
            raise DataError(f"state dict entry {key!r}: {error}") from error
        if dense in state and tuple(state[dense].shape) != masks[name].shape:
            raise DataError(
                f"state dict entry {key!r} has shape {masks[name].shape}, but {dense!r} has {tuple(state[dense].shape)}"
            )
    _check_shapes(masks, shapes)
    return masks


def masks_to_state_dict(state: Mapping[str, Any], masks: Mapping[str, Any], style: Style = "prune") -> dict[str, Any]:
    """Give a new state dict in which each masked parameter is a dense weight and its mask, as `style` spells them.

    `state` is a plain state dict of numpy arrays or torch tensors and is left as it is; weights are not copied. "prune"
    writes masks in the weight's dtype, "ao" booleans. Raises `OptionError` for masks of no weight or another shape.
    """
    if style not in ("prune", "ao"):
        raise unknown_name("state dict style", str(style), ("prune", "ao"))
    result = dict(state)
    for name, given in masks.items():
        if name not in state:
            raise unknown_name("parameter", name, state)
        weight, mask = state[name], _boolean(name, given)
        if tuple(weight.shape) != mask.shape:
            raise OptionError(f"mask {name!r} has shape {mask.shape}, its weight {tuple(weight.shape)}")
        del result[name]
        module, _, parameter = name.rpartition(".")
        dense, place = name + _PRUNE_DENSE, name + _PRUNE_MASK
        if style == "ao":
            root = f"{module + '.' if module else ''}{_AO_ROOT}{parameter}"
            dense, place = root + _AO_DENSE, root + _AO_MASK
        result[dense] = weight
        result[place] = _like(mask, weight, numeric=style == "prune")
    return result


def _like(mask: Mask, weight: Any, *, numeric: bool) -> Any:
    if isinstance(weight, np.ndarray):
        return mask.astype(weight.dtype) if numeric else mask
    import torch

    tensor = torch.from_numpy(mask).to(weight.device)
    return tensor.to(weight.dtype) if numeric else tensor


def _boolean(name: str, mask: Any) -> Mask:
    """Bring a mask to booleans; zeros and ones of any dtype pass, anything else is refused."""
    array = mask.detach().cpu() if hasattr(mask, "detach") else mask
    if hasattr(array, "numpy"):
        array = (array.float() if array.is_floating_point() else array).numpy()
    array = np.asarray(array)
    if array.dtype == np.bool_:
        return np.array(array, dtype=bool)
    if array.dtype.kind not in "iufV" or not np.isin(array.astype(np.float64), (0.0, 1.0)).all():
        raise OptionError(f"mask {name!r} of dtype {array.dtype} holds more than zeros and ones; True is what survives")
    return np.asarray(array.astype(np.float64) == 1)


def _check_shapes(masks: Mapping[str, Mask], shapes: Mapping[str, tuple[int, ...]] | None) -> None:
    if shapes is None:
        return
    for name, mask in masks.items():
        if name not in shapes:
            raise DataError(str(unknown_name("weight", name, shapes)))
        if tuple(shapes[name]) != mask.shape:
            raise DataError(f"mask {name!r} has shape {mask.shape}, its weight {tuple(shapes[name])}")
