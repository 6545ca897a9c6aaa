"""Shapes as data, and tensors made from them."""

from __future__ import annotations

import torch
from onnx import TensorProto, numpy_helper

from ..call import Call, Tensor, UnsupportedError, torch_op
from ..tensors import dtype_of, integers, to_tensor


@torch_op("Constant")
def constant(call: Call) -> Tensor:
    """A tensor or numbers kept in the node."""
    if (tensor := call.get("value")) is not None:
        return to_tensor(numpy_helper.to_array(tensor))
    for kind, dtype in (("float", torch.float32), ("int", torch.int64)):
        for key in (f"value_{kind}", f"value_{kind}s"):
            if key in call.attributes:
                return torch.tensor(call.attributes[key], dtype=dtype)
    raise UnsupportedError("a Constant of this kind")


@torch_op("ConstantOfShape")
def constant_of_shape(call: Call, shape: Tensor) -> Tensor:
    """One value everywhere, float zero when unsaid."""
    value = call.get("value")
    fill = torch.zeros(1) if value is None else to_tensor(numpy_helper.to_array(value))
    return fill.reshape(()).expand(integers(shape)).clone()


@torch_op("Shape")
def shape(call: Call, x: Tensor) -> Tensor:
    """Sizes, of a range of axes from opset 15 on."""
    return torch.tensor(list(x.shape)[call.get("start", 0) : call.get("end")], dtype=torch.int64)


@torch_op("Size")
def size(_: Call, x: Tensor) -> Tensor:
    """Number of elements."""
    return torch.tensor(x.numel(), dtype=torch.int64)


@torch_op("Range")
def arange(_: Call, start: Tensor, limit: Tensor, delta: Tensor) -> Tensor:
    """Numbers in steps."""
    return torch.arange(start.item(), limit.item(), delta.item(), dtype=start.dtype)


@torch_op("EyeLike")
def eye_like(call: Call, x: Tensor) -> Tensor:
    """Ones on a diagonal."""
    dtype = dtype_of(call.get("dtype")) if "dtype" in call.attributes else x.dtype
    return torch.diag_embed(torch.ones(max(x.shape), dtype=dtype), call.get("k", 0))[: x.shape[0], : x.shape[1]]


@torch_op("OneHot")
def one_hot(call: Call, indices: Tensor, depth: Tensor, values: Tensor) -> Tensor:
    """The second value where the index stands, else the first."""
    n = int(depth.item())
    at = torch.where(indices < 0, indices + n, indices)
    hot = at.unsqueeze(-1) == torch.arange(n)
    axis = call.get("axis", -1) % (indices.dim() + 1)
    return torch.where(hot, values[1], values[0]).movedim(-1, axis)


@torch_op("HannWindow", "HammingWindow")
def window(call: Call, length: Tensor) -> Tensor:
    """A raised cosine."""
    n, periodic = int(length.item()), bool(call.get("periodic", 1))
    if call.get("output_datatype", TensorProto.FLOAT) != TensorProto.FLOAT:
        raise UnsupportedError("a window that is not of 32-bit floats")
    hamming = (25 / 46, 21 / 46)
    return torch.hann_window(n, periodic) if call.op == "HannWindow" else torch.hamming_window(n, periodic, *hamming)
