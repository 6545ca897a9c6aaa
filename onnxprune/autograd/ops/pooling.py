"""Pooling. Windows are cut from explicitly padded tensors, so that every pad, ceil_mode and count is ONNX's."""

from __future__ import annotations

import torch
from torch.nn import functional

from ..call import Call, Tensor, UnsupportedError, torch_op
from .convolution import padded, windows

_MAX = {1: functional.max_pool1d, 2: functional.max_pool2d, 3: functional.max_pool3d}
_AVERAGE = {1: functional.avg_pool1d, 2: functional.avg_pool2d, 3: functional.avg_pool3d}


def _frame(call: Call, x: Tensor) -> tuple[list[int], list[int], list[int], list[int], list[int]]:
    """Give kernel, strides, dilations, pads, and what ceil_mode adds at the ends."""
    kernel = list(call.get("kernel_shape"))
    rank = len(kernel)
    strides, dilations, pads = windows(call, x.shape[2:], kernel)
    more = [0] * rank
    if call.get("ceil_mode", 0):
        for k, size in enumerate(x.shape[2:]):
            left = size + pads[k] + pads[k + rank] - dilations[k] * (kernel[k] - 1) - 1
            n = -(-left // strides[k]) + 1
            # A window that would begin in the pad at the end is none.
            n -= (n - 1) * strides[k] >= size + pads[k]
            more[k] = max(0, (n - 1) * strides[k] - left)
    return kernel, strides, dilations, pads, more


@torch_op("MaxPool")
def max_pool(call: Call, x: Tensor) -> Tensor:
    """Largest of each window; indices are not given."""
    if call.n_outputs > 1:
        raise UnsupportedError("the indices of MaxPool")
    kernel, strides, dilations, pads, more = _frame(call, x)
    rank = len(kernel)
    ends = [e + m for e, m in zip(pads[rank:], more, strict=True)]
    y = padded(x, [*pads[:rank], *ends], float("-inf"))
    return _MAX[rank](y, kernel, strides, 0, dilations)


@torch_op("AveragePool")
def average_pool(call: Call, x: Tensor) -> Tensor:
    """Mean of each window, over the pads as well with count_include_pad, never over what ceil_mode adds."""
    kernel, strides, dilations, pads, more = _frame(call, x)
    rank = len(kernel)
    if any(d != 1 for d in dilations):
        raise UnsupportedError("AveragePool with dilations")
    ends = [e + m for e, m in zip(pads[rank:], more, strict=True)]
    sums = _AVERAGE[rank](padded(x, [*pads[:rank], *ends]), kernel, strides)
    if not any(pads) and not any(more):
        return sums
    counted = padded(torch.ones_like(x[:1, :1]), pads, 1.0 if call.get("count_include_pad", 0) else 0.0)
    return sums / _AVERAGE[rank](padded(counted, [*[0] * rank, *more]), kernel, strides)


@torch_op("GlobalAveragePool")
def global_average_pool(_: Call, x: Tensor) -> Tensor:
    """Mean over all pixels."""
    return x.mean(dim=tuple(range(2, x.dim())), keepdim=True)


@torch_op("GlobalMaxPool")
def global_max_pool(_: Call, x: Tensor) -> Tensor:
    """Largest of all pixels."""
    return x.amax(dim=tuple(range(2, x.dim())), keepdim=True)


@torch_op("LpPool")
def lp_pool(call: Call, x: Tensor) -> Tensor:
    """The p-norm of each window."""
    kernel, strides, dilations, pads, more = _frame(call, x)
    if any(d != 1 for d in dilations) or any(more):
        raise UnsupportedError("LpPool with dilations or ceil_mode")
    p, rank = call.get("p", 2), len(kernel)
    size = float(torch.tensor(kernel).prod())
    return (_AVERAGE[rank](padded(x.abs() ** p, pads), kernel, strides) * size) ** (1 / p)
