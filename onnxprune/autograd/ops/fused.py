"""What onnxruntime's optimizer fuses."""

from __future__ import annotations

from typing import Any

import torch
from torch.nn import functional

from ..call import Call, Tensor, UnsupportedError, torch_op
from .normalization import layer_norm, rms_norm

MICROSOFT = "com.microsoft"


@torch_op("Gelu", domain=MICROSOFT)
def gelu(_: Call, x: Tensor) -> Tensor:
    """Exact."""
    return functional.gelu(x)


@torch_op("BiasGelu", domain=MICROSOFT)
def bias_gelu(_: Call, x: Tensor, bias: Tensor) -> Tensor:
    """Exact, after a bias."""
    return functional.gelu(x + bias)


@torch_op("FastGelu", domain=MICROSOFT)
def fast_gelu(_: Call, x: Tensor, bias: Tensor | None = None) -> Tensor:
    """By tanh."""
    return functional.gelu(x if bias is None else x + bias, approximate="tanh")


@torch_op("QuickGelu", domain=MICROSOFT)
def quick_gelu(call: Call, x: Tensor) -> Tensor:
    """x sigmoid(alpha x)."""
    return x * torch.sigmoid(call.get("alpha", 1.702) * x)


@torch_op("FusedMatMul", domain=MICROSOFT)
def fused_matmul(call: Call, a: Tensor, b: Tensor) -> Tensor:
    """Give alpha A B, either transposed."""
    if call.get("transBatchA", 0) or call.get("transBatchB", 0):
        raise UnsupportedError("FusedMatMul with transposed batches")
    a = a.transpose(-1, -2) if call.get("transA", 0) else a
    b = b.transpose(-1, -2) if call.get("transB", 0) else b
    return call.get("alpha", 1.0) * torch.matmul(a, b)


@torch_op("SkipLayerNormalization", domain=MICROSOFT)
def skip_layer_norm(call: Call, x: Tensor, skip: Tensor, gamma: Tensor, beta: Any = None, bias: Any = None) -> Any:
    """Add, then normalize; the fourth output is the sum."""
    total = x + skip if bias is None else x + skip + bias
    y, mean, inverse = layer_norm(_last(call), total, gamma, beta)
    return y, mean, inverse, total


@torch_op("SkipSimplifiedLayerNormalization", domain=MICROSOFT)
def skip_rms_norm(call: Call, x: Tensor, skip: Tensor, gamma: Tensor, bias: Any = None) -> Any:
    """Add, then divide by the root of the mean square; the fourth output is the sum."""
    total = x + skip if bias is None else x + skip + bias
    return rms_norm(_last(call), total, gamma), None, None, total


def _last(call: Call) -> Call:
    epsilon = call.get("epsilon", 1e-5)
    return Call(call.op, "", call.name, 17, call.n_outputs, {"epsilon": epsilon, "axis": -1})
