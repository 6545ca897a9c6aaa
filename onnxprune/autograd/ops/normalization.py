"""Normalizations, with the statistics of inference."""

from __future__ import annotations

import torch
from torch.nn import functional

from ..call import Call, Tensor, UnsupportedError, torch_op
from ..tensors import integers


@torch_op("BatchNormalization")
def batch_norm(call: Call, x: Tensor, scale: Tensor, bias: Tensor, mean: Tensor, variance: Tensor) -> Tensor:
    """Normalize by given statistics."""
    if call.get("training_mode", 0):
        raise UnsupportedError("BatchNormalization in training mode")
    return functional.batch_norm(x, mean, variance, scale, bias, training=False, eps=call.get("epsilon", 1e-5))


@torch_op("InstanceNormalization")
def instance_norm(call: Call, x: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    """Normalize every channel of every sample."""
    return functional.instance_norm(x, weight=scale, bias=bias, eps=call.get("epsilon", 1e-5))


@torch_op("GroupNormalization")
def group_norm(call: Call, x: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    """Normalize groups of channels; before opset 21 scale and bias are per group."""
    n = call.get("num_groups")
    if call.opset < 21:
        scale, bias = (v.repeat_interleave(x.shape[1] // n) for v in (scale, bias))
    return functional.group_norm(x, n, scale, bias, call.get("epsilon", 1e-5))


@torch_op("LayerNormalization")
def layer_norm(call: Call, x: Tensor, scale: Tensor, bias: Tensor | None = None) -> Tensor:
    """Normalize over the axes from `axis` on; also gives mean and 1 / deviation."""
    dims = tuple(range(call.get("axis", -1) % x.dim(), x.dim()))
    mean = x.mean(dim=dims, keepdim=True)
    inverse = torch.rsqrt(x.var(dim=dims, keepdim=True, unbiased=False) + call.get("epsilon", 1e-5))
    y = (x - mean) * inverse * scale
    return (y if bias is None else y + bias), mean, inverse


@torch_op("SimplifiedLayerNormalization")
@torch_op("RMSNormalization")
def rms_norm(call: Call, x: Tensor, scale: Tensor) -> Tensor:
    """Divide by the root of the mean square."""
    dims = tuple(range(call.get("axis", -1) % x.dim(), x.dim()))
    return x * torch.rsqrt(x.square().mean(dim=dims, keepdim=True) + call.get("epsilon", 1e-5)) * scale


@torch_op("LpNormalization")
def lp_norm(call: Call, x: Tensor) -> Tensor:
    """Divide by the p-norm along one axis."""
    norm = torch.linalg.vector_norm(x, call.get("p", 2), dim=call.get("axis", -1), keepdim=True)
    return x / torch.where(norm == 0, torch.ones_like(norm), norm)


@torch_op("MeanVarianceNormalization")
def mean_variance_norm(call: Call, x: Tensor) -> Tensor:
    """Normalize over given axes."""
    dims = tuple(integers(call.get("axes", [0, 2, 3])))
    mean = x.mean(dim=dims, keepdim=True)
    return (x - mean) / (x.var(dim=dims, keepdim=True, unbiased=False).sqrt() + 1e-9)


@torch_op("LRN")
def local_response_norm(call: Call, x: Tensor) -> Tensor:
    """Divide by the energy of the channels around."""
    return functional.local_response_norm(
        x, call.get("size"), call.get("alpha", 1e-4), call.get("beta", 0.75), call.get("bias", 1.0)
    )


@torch_op("Softmax", "LogSoftmax")
def softmax(call: Call, x: Tensor) -> Tensor:
    """Over one axis; before opset 13 over all axes from `axis` on."""
    function = torch.softmax if call.op == "Softmax" else torch.log_softmax
    if call.opset >= 13:
        return function(x, call.get("axis", -1))
    axis = call.get("axis", 1) % max(1, x.dim())
    return function(x.flatten(axis), axis).reshape(x.shape)
