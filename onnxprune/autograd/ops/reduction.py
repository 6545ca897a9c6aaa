"""Reductions; axes are attributes in older opsets and inputs in newer ones."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from ..call import Call, Tensor, torch_op
from ..tensors import axes_of

_REDUCE: dict[str, Callable[..., Any]] = {
    "ReduceSum": torch.sum,
    "ReduceMean": torch.mean,
    "ReduceMax": torch.amax,
    "ReduceMin": torch.amin,
    "ReduceL1": lambda x, **how: x.abs().sum(**how),
    "ReduceL2": lambda x, **how: x.square().sum(**how).sqrt(),
    "ReduceSumSquare": lambda x, **how: x.square().sum(**how),
    "ReduceLogSum": lambda x, **how: x.sum(**how).log(),
    "ReduceLogSumExp": torch.logsumexp,
}


@torch_op(*_REDUCE)
def reduce(call: Call, x: Tensor, axes: Tensor | None = None) -> Tensor:
    """Over the named axes; over all when none are named, unless noop_with_empty_axes."""
    dims = axes_of(call, axes, x.dim())
    if not dims and call.get("noop_with_empty_axes", 0):
        return x
    dims = dims or list(range(x.dim()))
    return _REDUCE[call.op](x, dim=dims, keepdim=bool(call.get("keepdims", 1))).to(x.dtype) if dims else x


@torch_op("ReduceProd")
def reduce_prod(call: Call, x: Tensor, axes: Tensor | None = None) -> Tensor:
    """Products, one axis after another."""
    dims = axes_of(call, axes, x.dim()) or list(range(x.dim()))
    for dim in sorted(dims, reverse=True):
        x = x.prod(dim=dim, keepdim=bool(call.get("keepdims", 1))).to(x.dtype)
    return x


@torch_op("ArgMax", "ArgMin")
def arg_extreme(call: Call, x: Tensor) -> Tensor:
    """Where the largest or smallest stands: the first, or the last with select_last_index."""
    axis, function = call.get("axis", 0), torch.argmax if call.op == "ArgMax" else torch.argmin
    keep = bool(call.get("keepdims", 1))
    if call.get("select_last_index", 0):
        return x.shape[axis] - 1 - function(x.flip(axis), dim=axis, keepdim=keep)
    return function(x, dim=axis, keepdim=keep)


@torch_op("TopK")
def topk(call: Call, x: Tensor, k: Tensor | None = None) -> Any:
    """The k largest or smallest with their indices."""
    n = call.get("k") if k is None else int(k.item())
    axis = call.get("axis", -1)
    # Of equal elements the first counts, which torch.topk does not promise.
    values, indices = torch.sort(x, dim=axis, descending=bool(call.get("largest", 1)), stable=True)
    return values.narrow(axis, 0, n), indices.narrow(axis, 0, n)
