"""Operators that pick elements by index."""

from __future__ import annotations

import torch

from ..call import Call, Tensor, UnsupportedError, torch_op
from ..tensors import integers


@torch_op("Gather")
def gather(call: Call, x: Tensor, indices: Tensor) -> Tensor:
    """Slices by index along one axis; the axes of the indices stand in its place."""
    axis = call.get("axis", 0) % x.dim()
    at = indices.long()
    at = torch.where(at < 0, at + x.shape[axis], at)
    picked = x.index_select(axis, at.reshape(-1))
    return picked.reshape([*x.shape[:axis], *at.shape, *x.shape[axis + 1 :]])


@torch_op("GatherElements")
def gather_elements(call: Call, x: Tensor, indices: Tensor) -> Tensor:
    """One element per index."""
    axis = call.get("axis", 0)
    at = indices.long()
    return torch.gather(x, axis, torch.where(at < 0, at + x.shape[axis], at))


@torch_op("GatherND")
def gather_nd(call: Call, x: Tensor, indices: Tensor) -> Tensor:
    """Slices by vectors of indices."""
    b = call.get("batch_dims", 0)
    at = indices.long()
    places = [torch.where(i < 0, i + x.shape[b + k], i) for k, i in enumerate(at.unbind(-1))]
    before = [
        torch.arange(x.shape[k]).reshape([-1 if j == k else 1 for j in range(at.dim() - 1)]).expand(at.shape[:-1])
        for k in range(b)
    ]
    at = (*before, *places)
    return x[at] if at else x


@torch_op("Slice")
def slice_(call: Call, x: Tensor, *given: Tensor | None) -> Tensor:
    """Ranges along axes, with steps that may be negative; attributes before opset 10."""
    inputs = [*given, *[None] * (4 - len(given))]
    starts, ends, axes, steps = (
        call.get(name) if t is None else t for name, t in zip(("starts", "ends", "axes", "steps"), inputs, strict=True)
    )
    begins = integers(starts)
    dims = list(range(len(begins))) if axes is None else integers(axes)
    strides = [1] * len(begins) if steps is None else integers(steps)
    for dim, start, end, step in zip(dims, begins, integers(ends), strides, strict=True):
        at = range(x.shape[dim])[start:end:step]
        if step > 0:
            x = x.narrow(dim, at.start, 0) if not len(at) else x.narrow(dim, at.start, at[-1] - at.start + 1)
            if step > 1:
                x = x.index_select(dim, torch.arange(0, x.shape[dim], step))
        else:
            x = x.index_select(dim, torch.tensor(list(at), dtype=torch.int64))
    return x


@torch_op("ScatterElements", "Scatter")
def scatter_elements(call: Call, x: Tensor, indices: Tensor, updates: Tensor) -> Tensor:
    """Write elements by index, or add and multiply them in."""
    axis, how = call.get("axis", 0), call.get("reduction", "none")
    at = torch.where(indices < 0, indices + x.shape[axis], indices).long()
    if how == "none":
        return x.scatter(axis, at, updates)
    reduction = {"add": "sum", "mul": "prod", "max": "amax", "min": "amin"}[how]
    return x.scatter_reduce(axis, at, updates, reduction)


@torch_op("ScatterND")
def scatter_nd(call: Call, x: Tensor, indices: Tensor, updates: Tensor) -> Tensor:
    """Write slices by vectors of indices, or add them in."""
    how = call.get("reduction", "none")
    if how not in ("none", "add"):
        raise UnsupportedError(f"ScatterND with reduction {how!r}")
    places = tuple(torch.where(i < 0, i + x.shape[k], i) for k, i in enumerate(indices.long().unbind(-1)))
    return x.index_put(places, updates, accumulate=how == "add")


@torch_op("NonZero")
def non_zero(_: Call, x: Tensor) -> Tensor:
    """Indices of what is not zero: (rank, count)."""
    return torch.nonzero(x).T
