"""Operators that move elements about and leave their values."""

from __future__ import annotations

import itertools
from typing import Any

import torch
from torch.nn import functional

from ..call import Call, Tensor, torch_op
from ..tensors import axes_of, integers


@torch_op("Reshape")
def reshape(call: Call, x: Tensor, shape: Tensor | None = None) -> Tensor:
    """A zero stands for the size that is there, unless allowzero."""
    sizes = integers(call.get("shape") if shape is None else shape)
    if not call.get("allowzero", 0):
        sizes = [x.shape[k] if n == 0 else n for k, n in enumerate(sizes)]
    return x.reshape(sizes)


@torch_op("Flatten")
def flatten(call: Call, x: Tensor) -> Tensor:
    """Two axes: those before `axis`, and those from it on."""
    axis = call.get("axis", 1)
    axis = axis + x.dim() if axis < 0 else axis
    rows = 1
    for n in x.shape[:axis]:
        rows *= n
    return x.reshape(rows, x.numel() // rows if rows else 0)


@torch_op("Transpose")
def transpose(call: Call, x: Tensor) -> Tensor:
    """Axes in another order, by default reversed."""
    return x.permute(list(call.get("perm") or range(x.dim())[::-1]))


@torch_op("Squeeze")
def squeeze(call: Call, x: Tensor, axes: Tensor | None = None) -> Tensor:
    """Drop the named axes, or all of size 1."""
    dims = axes_of(call, axes, x.dim())
    return x.squeeze(tuple(dims)) if dims else x.squeeze()


@torch_op("Unsqueeze")
def unsqueeze(call: Call, x: Tensor, axes: Tensor | None = None) -> Tensor:
    """New axes of size 1, counted in the result."""
    n = len(integers(call.get("axes") if axes is None else axes))
    for dim in sorted(axes_of(call, axes, x.dim() + n)):
        x = x.unsqueeze(dim)
    return x


@torch_op("Concat")
def concat(call: Call, *inputs: Tensor) -> Tensor:
    """Side by side along one axis."""
    return torch.cat(inputs, dim=call.get("axis", 1))


@torch_op("Split")
def split(call: Call, x: Tensor, sizes: Tensor | None = None) -> Any:
    """Parts of given sizes, or equal ones of which the last may be smaller."""
    axis = call.get("axis", 0)
    given = call.get("split") if sizes is None else sizes
    if given is not None:
        return torch.split(x, integers(given), dim=axis)
    return torch.split(x, max(1, -(-x.shape[axis] // call.n_outputs)), dim=axis)


@torch_op("Expand")
def expand(_: Call, x: Tensor, shape: Tensor) -> Tensor:
    """Broadcast both ways."""
    return x.expand(torch.broadcast_shapes(x.shape, tuple(integers(shape))))


@torch_op("Tile")
def tile(_: Call, x: Tensor, repeats: Tensor) -> Tensor:
    """Copies along every axis."""
    return x.repeat(integers(repeats))


@torch_op("Pad")
def pad(call: Call, x: Tensor, pads: Tensor | None = None, value: Tensor | None = None, axes: Any = None) -> Tensor:
    """Constant, edge, reflect or wrap; negative pads cut."""
    given = integers(call.get("pads") if pads is None else pads)
    dims = [a % x.dim() for a in integers(axes)] if axes is not None else list(range(x.dim()))
    n, mode = len(dims), call.get("mode", "constant")
    ends = {d: (given[k], given[k + n]) for k, d in enumerate(dims)}
    if mode == "constant":
        fill = call.get("value", 0.0) if value is None else value.item()
        turned = list(itertools.chain.from_iterable(ends.get(d, (0, 0)) for d in reversed(range(x.dim()))))
        return functional.pad(x, turned, value=fill)
    for d, (before, after) in ends.items():
        size = x.shape[d]
        at = torch.arange(-before, size + after)
        if mode == "edge":
            at = at.clamp(0, size - 1)
        elif mode == "reflect":
            at = (size - 1 - (at.remainder(max(1, 2 * size - 2)) - (size - 1)).abs()) if size > 1 else at * 0
        else:
            at = at.remainder(size)
        if before or after:
            x = x.index_select(d, at)
    return x


@torch_op("Trilu")
def trilu(call: Call, x: Tensor, k: Tensor | None = None) -> Tensor:
    """One triangle, the other zero."""
    at = 0 if k is None else int(k.item())
    return torch.triu(x, at) if call.get("upper", 1) else torch.tril(x, at)


@torch_op("ReverseSequence")
def reverse_sequence(call: Call, x: Tensor, lengths: Tensor) -> Tensor:
    """Turn the first part of every sequence around."""
    time, batch = call.get("time_axis", 0), call.get("batch_axis", 1)
    x = x.movedim((batch, time), (0, 1))
    at = torch.arange(x.shape[1])[None].expand(x.shape[0], -1)
    last = lengths.long()[:, None]
    at = torch.where(at < last, last - 1 - at, at)
    return x[torch.arange(x.shape[0])[:, None], at].movedim((0, 1), (batch, time))
