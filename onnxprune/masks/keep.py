"""Masks on plain arrays: weights in, keep mask out."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import Any, Literal, TypeAlias

import numpy as np

from ..errors import OptionError, unknown_name
from .pattern import Array, Custom, Pattern, logical_shape
from .patterns import parse_pattern
from .rule import Reduce, Rounding, Rule

Norm: TypeAlias = str | int | Callable[[Any], Any]
Kernel: TypeAlias = Literal["auto", "numpy", "torch"]

_POWERS: dict[str, Literal[1, 2]] = {"l1": 1, "1": 1, "l2": 2, "2": 2}


@dataclass(frozen=True)
class _Given:
    """A caller's array in float32 or float64 of its own library, and the way to the kernels and back."""

    values: Array
    enter: Callable[[Array], Array]
    give_back: Callable[[Array], Array]


def keep_mask(  # noqa: PLR0913  a public face
    weight: Any,
    pattern: str | Pattern | Any = "unstructured",
    sparsity: float | None = None,
    zeros_per_block: int | None = None,
    norm: Norm = "l1",
    keep_zeros: bool = False,  # noqa: FBT002  a promised position
    *,
    locked: Any = None,
    rounding: Rounding = "nearest",
    min_keep: int = 1,
    reduce: Reduce = "mean",
    allow_nonfinite: bool = False,
    kernel: Kernel = "auto",
) -> Any:
    """Choose which weights survive: a boolean array of the weight's shape, True = survives.

    `weight` is (output, input, *kernel), a numpy array or a torch tensor of any floating dtype; the mask is of the
    same library and on the same device. Scores are formed in float32, or float64 for float64.

    - `pattern`: see `parse_pattern`. N:M groups and block columns run along the input axis.
    - `sparsity`: the fraction of units to zero, 0.5 without one; for N:M the fraction of zeros, at most the pattern's
      own, which is what it is without one. 0 and below keeps everything, 1 and above nothing.
    - `zeros_per_block`: so many zeros in each chosen block, instead of the whole block.
    - `norm`: "l1" scores |w|, a block by their mean; "l2" w**2, a block by the mean of squares; a callable maps the
      weight to elementwise scores, higher = keep, which may be signed.
    - `keep_zeros`: zeros that make up the pattern already stay zero and count towards the sparsity.
    - `locked`: boolean array of what must be zero in any case, such as the complement of an earlier mask.
    - `rounding`, `min_keep`, `reduce`: see `Rule`. Counts are exact; of equal scores the lower flat index survives.
    - `allow_nonfinite`: keep infinities and NaN as if they were the largest weights, instead of refusing them.
    - `kernel`: "torch" computes on the tensor's device, "numpy" on this processor; "auto" is torch for a tensor on
      another device. The mask is the same.

    Raises `OptionError` for a pattern, a sparsity or a dtype that does not fit, and for weights that are not finite.
    """
    chosen = parse_pattern(pattern, zeros_per_block)
    power: Literal[1, 2] = 1 if callable(norm) else norm_power(norm)
    rule = Rule(rounding, min_keep, reduce, power)
    given = _receive(weight, kernel, own=isinstance(chosen, Custom))
    logical_shape(tuple(given.values.shape))
    values = given.enter(given.values)
    raw = given.enter(_checked(norm(given.values), given.values)) if callable(norm) else abs(values)
    scores = _finite(raw, values, signed=callable(norm), allow_nonfinite=allow_nonfinite)
    held = None if locked is None else _held(locked, values)
    if keep_zeros:
        zeros = chosen.lock(values == 0)
        held = zeros if held is None else held | zeros
    return given.give_back(_make(chosen, scores, sparsity, held, rule))


def _make(chosen: Pattern, scores: Array, sparsity: float | None, held: Array | None, rule: Rule) -> Array:
    if sparsity is not None and sparsity <= 0 and not isinstance(chosen, Custom):
        sparsity = 0.0
    return chosen.keep(scores, sparsity, held, rule=rule)


def norm_power(norm: Any) -> Literal[1, 2]:
    """Read "l1" or "l2" (1, 2) as the power that scores are raised to; raises `UnknownNameError` for another."""
    name = str(norm).lower()
    if isinstance(norm, bool) or name not in _POWERS:
        raise unknown_name("norm", str(norm), ("l1", "l2"))
    return _POWERS[name]


def _receive(weight: Any, kernel: str, *, own: bool) -> _Given:
    """Bring a caller's array to float32 or float64; `own`: for a user's pattern, which gets the caller's library."""
    if kernel not in ("auto", "numpy", "torch"):
        raise unknown_name("kernel", str(kernel), ("auto", "numpy", "torch"))
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(weight, torch.Tensor):
        return _receive_tensor(weight, "torch" if own and kernel == "auto" else kernel)
    array = np.asarray(weight)
    if not _is_float(array.dtype):
        raise OptionError(
            f"the weight's dtype is {array.dtype}; masks are made from floating weights. Convert it, or multiply "
            "quantized codes by their scale first"
        )
    if not array.dtype.isnative:
        array = array.astype(array.dtype.newbyteorder("="))
    values = array if array.dtype in (np.float32, np.float64) else array.astype(np.float32)
    values = np.ascontiguousarray(values).reshape(array.shape)
    if kernel == "torch":
        try:
            library = import_module("torch")
        except ImportError as error:
            raise OptionError("kernel 'torch' needs torch: pip install onnxprune[torch]") from error
        return _Given(values, lambda part: library.from_numpy(np.array(part)), lambda mask: mask.cpu().numpy())
    return _Given(values, lambda part: part, np.ascontiguousarray)


def _is_float(dtype: np.dtype[Any]) -> bool:
    """Tell floating dtypes, the small ones of ml_dtypes too, from the rest."""
    if dtype.kind == "f":
        return dtype.itemsize <= 8
    if dtype.kind != "V" or dtype.names is not None:
        return False
    import ml_dtypes

    try:
        ml_dtypes.finfo(dtype)  # type: ignore[no-untyped-call]
    except ValueError:
        return False
    return True


def _receive_tensor(weight: Any, kernel: str) -> _Given:
    import torch

    if not weight.is_floating_point():
        raise OptionError(
            f"the weight's dtype is {weight.dtype}; masks are made from floating weights. Convert it, or multiply "
            "quantized codes by their scale first"
        )
    values = weight.detach()
    values = (values if values.dtype in (torch.float32, torch.float64) else values.float()).contiguous()
    device = values.device
    if kernel == "torch" or (kernel == "auto" and device.type != "cpu"):
        return _Given(values, lambda part: part, lambda mask: mask.contiguous())
    return _Given(
        values,
        lambda part: part.detach().cpu().numpy(),
        lambda mask: torch.from_numpy(np.ascontiguousarray(mask)).to(device),
    )


def _finite(scores: Array, values: Array, *, signed: bool, allow_nonfinite: bool) -> Array:
    """Refuse scores that are not finite, or rank them highest.

    Named norms score |w| and leave squares to the blocks' mean: single squares rank alike, and may not hold.
    """
    if 0 in scores.shape:
        return scores
    # The largest tells: NaN spreads, and an infinity is no finite number.
    if np.isfinite(float((abs(scores) if signed else scores).max())):
        return scores
    xp: Any = np if isinstance(scores, np.ndarray) else sys.modules["torch"]
    bad = ~xp.isfinite(scores)
    if not allow_nonfinite:
        what = "scores" if bool(xp.isfinite(values).all()) else "weight"
        raise OptionError(
            f"the {what} of shape {tuple(scores.shape)} holds {int(bad.sum())} values that are not finite; their rank "
            "means nothing. Mend them, or pass allow_nonfinite=True to keep them as if they were the largest"
        )
    if isinstance(scores, np.ndarray):
        return np.where(bad, scores.dtype.type(np.inf), scores)
    return scores.masked_fill(bad, float("inf"))


def _checked(scores: Any, values: Array) -> Array:
    """Check what a user's norm gave."""
    shape = tuple(getattr(scores, "shape", ()))
    if shape != tuple(values.shape) or type(scores) is not type(values):
        raise OptionError(
            f"the norm gave {type(scores).__name__} of shape {shape} for a weight of shape {tuple(values.shape)}; it "
            "must give one score per weight, in the same library"
        )
    if isinstance(scores, np.ndarray):
        return scores if scores.dtype in (np.float32, np.float64) else scores.astype(np.float64)
    torch = sys.modules["torch"]
    return scores if scores.dtype in (torch.float32, torch.float64) else scores.double()


def _held(locked: Any, values: Array) -> Array:
    """Bring the caller's locked positions beside the values."""
    if isinstance(values, np.ndarray):
        array = locked.detach().cpu().numpy() if hasattr(locked, "detach") else np.asarray(locked)
        name = str(array.dtype)
    else:
        torch = sys.modules["torch"]
        array = torch.as_tensor(locked, device=values.device)
        name = str(array.dtype)
    if tuple(array.shape) != tuple(values.shape) or "bool" not in name:
        raise OptionError(
            f"locked is {name} of shape {tuple(array.shape)}; give booleans of the weight's shape "
            f"{tuple(values.shape)}, True where it must be zero"
        )
    return array
