"""Matrix products."""

from __future__ import annotations

import torch

from ..call import Call, Tensor, torch_op


@torch_op("MatMul")
def matmul(_: Call, a: Tensor, b: Tensor) -> Tensor:
    """As numpy's matmul."""
    return torch.matmul(a, b)


@torch_op("Gemm")
def gemm(call: Call, a: Tensor, b: Tensor, c: Tensor | None = None) -> Tensor:
    """Give alpha A B + beta C."""
    a = a.transpose(0, 1) if call.get("transA", 0) else a
    b = b.transpose(0, 1) if call.get("transB", 0) else b
    y = call.get("alpha", 1.0) * (a @ b)
    return y if c is None else y + call.get("beta", 1.0) * c


@torch_op("Einsum")
def einsum(call: Call, *inputs: Tensor) -> Tensor:
    """Spaces in the equation mean nothing."""
    return torch.einsum(call.get("equation").replace(" ", ""), *inputs)
