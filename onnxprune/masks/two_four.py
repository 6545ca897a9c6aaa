"""2:4 on real hardware: which weights a target can use, and the compressed form that CUTLASS reads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..errors import OptionError
from ..registry import Registry
from .groups import NofM

_SMALL = 256


@dataclass(frozen=True)
class Eligibility:
    """Whether a target can use 2:4 in a weight, and why or why not."""

    eligible: bool
    reason: str

    def __bool__(self) -> bool:
        return self.eligible


@dataclass(frozen=True)
class Target:
    """What a consumer of 2:4 weights asks: multiples of (output, input) by dtype, and how many axes it takes.

    `small`: below so many input channels dense kernels are usually faster.
    """

    multiples: dict[str, tuple[int, int]]
    max_rank: int
    small: int = 0


_HALF = ("float16", "bfloat16")
_FLOAT8 = ("float8_e4m3fn", "float8_e5m2")

targets: Registry[Target] = Registry("2:4 target")
# Source: NVIDIA apex, contrib/sparsity/asp.py.
targets.register("asp")(Target(dict.fromkeys(("float32", *_HALF), (8, 16)), max_rank=5))
# Source: torch.sparse.semi_structured, the constraints of its two backends.
targets.register("cutlass")(
    Target({"int8": (16, 128), **dict.fromkeys(_HALF, (32, 64)), "float32": (32, 32)}, max_rank=2)
)
targets.register("cusparselt")(
    Target({**dict.fromkeys(("int8", *_FLOAT8), (32, 32)), **dict.fromkeys(_HALF, (16, 16))}, max_rank=2)
)
# Source: NVIDIA's "Accelerating Inference with Sparsity Using Ampere and TensorRT": groups of 4 input channels.
targets.register("tensorrt")(
    Target(dict.fromkeys(("float32", *_HALF, "int8", *_FLOAT8), (1, 4)), max_rank=5, small=_SMALL)
)


def eligible_2_4(shape: Sequence[int], dtype: Any, target: str, *, groups: int = 1) -> Eligibility:
    """Tell whether `target` can use 2:4 sparsity in a weight (output, input, *kernel) of `dtype`, and the reason.

    `dtype` is a name, a numpy or a torch dtype; `groups` the groups of a convolution. Targets: asp, cutlass,
    cusparselt, tensorrt. Raises `UnknownNameError` for another.
    """
    asked = targets[target]
    name = _dtype_name(dtype)
    size = tuple(int(n) for n in shape)
    if not 2 <= len(size) <= asked.max_rank:
        axes = "2" if asked.max_rank == 2 else f"2 to {asked.max_rank}"
        return Eligibility(False, f"{target} takes weights of {axes} axes, not {len(size)}")
    if name not in asked.multiples:
        return Eligibility(False, f"{target} takes {', '.join(asked.multiples)}, not {name}")
    if groups != 1:
        return Eligibility(False, f"{target} has no sparse kernel for a convolution of {groups} groups")
    for axis, extent, multiple in zip(("output", "input"), size, asked.multiples[name], strict=False):
        if extent < 1 or extent % multiple:
            return Eligibility(False, f"the {axis} size {extent} is no multiple of {multiple}, which {target} asks")
    if size[1] < asked.small:
        return Eligibility(
            True, f"fits {target}; with {size[1]} input channels, fewer than {asked.small}, dense is often as fast"
        )
    return Eligibility(True, f"fits {target}")


def _dtype_name(dtype: Any) -> str:
    text = str(dtype)
    if text.startswith("torch."):
        return text.removeprefix("torch.")
    try:
        return str(np.dtype(dtype).name)
    except TypeError:
        return text


@dataclass(frozen=True)
class Packed:
    """A 2:4 weight as CUTLASS stores it: `values` (out, in / 2) and `metadata` of two bits per value."""

    values: np.ndarray[Any, Any]
    metadata: np.ndarray[Any, Any]


def pack_2_4(weight: np.ndarray[Any, Any], mask: np.ndarray[Any, Any] | None = None) -> Packed:
    """Compress a 2:4 weight (out, in) into its kept values and CUTLASS's reordered metadata.

    float16 and bfloat16 give int16 metadata (out, in / 16), int8 gives int32 (out, in / 32). `mask` (bool, True
    survives) is where weights are kept; without it, where they are not zero. Raises `OptionError` for a shape or dtype
    that cutlass cannot take, and for a mask with more than 2 of 4. Source: cutlass/util/host_reorder.h,
    `reorder_meta`, and the 2:4 format of the PTX instruction mma.sp.
    """
    fits = eligible_2_4(weight.shape, weight.dtype, "cutlass")
    if not fits:
        raise OptionError(f"a weight of shape {weight.shape} and dtype {weight.dtype} cannot be packed: {fits.reason}")
    if weight.dtype == np.float32:
        raise OptionError("float32 weights are sparse 1:2 in CUTLASS; convert the weight to float16 or bfloat16")
    keep = weight != 0 if mask is None else mask
    if keep.shape != weight.shape or keep.dtype != np.bool_:
        raise OptionError(f"the mask is {keep.dtype} of shape {keep.shape}; give booleans of shape {weight.shape}")
    if not NofM(2, 4).complete(~keep).all():
        raise OptionError("the weight keeps more than 2 of 4 somewhere; mask it with the pattern 2:4 first")
    out, into = weight.shape
    groups = keep.reshape(out, -1, 4)
    is0, is1, is3 = (groups[:, :, j] for j in (0, 1, 3))
    # Where fewer than two are kept, pruned positions fill up: the last ones that go with what is kept.
    first = np.where(is0, 0, np.where(is1, 1, 2))
    second = np.where(is0 & is1, 1, np.where(is3 | ~(is0 | is1), 3, 2))
    places = np.stack((first, second), axis=2)
    picked = np.take_along_axis(np.where(keep, weight, weight.dtype.type(0)).reshape(groups.shape), places, axis=2)
    nibbles = (places[:, :, 0] | places[:, :, 1] << 2).astype(np.int64)
    bits = 32 if weight.dtype == np.int8 else 16
    per_word = bits // 4
    shifts = 4 * np.arange(per_word, dtype=np.int64)
    words = (nibbles.reshape(out, -1, per_word) << shifts).sum(axis=2)
    words = words.astype(np.uint32 if bits == 32 else np.uint16).view(np.int32 if bits == 32 else np.int16)
    metadata = np.empty(words.size, dtype=words.dtype)
    metadata[_reordered(out, words.shape[1], bits)] = words.reshape(-1)
    return Packed(picked.reshape(out, into // 2), metadata.reshape(words.shape))


def _reordered(rows: int, columns: int, bits: int) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Give the place of each metadata word: rows woven, 2x2 blocks turned, pairs of columns stored row by row."""
    row, column = np.indices((rows, columns))
    group, woven = (32, 4) if bits == 16 else (16, 2)
    moved = row // group * group + row % 8 * woven + row % group // 8
    upper_right = (moved % 2 == 0) & (column % 2 == 1)
    lower_left = (moved % 2 == 1) & (column % 2 == 0)
    step = upper_right.astype(np.int64) - lower_left
    moved, column = moved + step, column - step
    return np.asarray((column // 2 * rows * 2 + moved * 2 + column % 2).reshape(-1))
