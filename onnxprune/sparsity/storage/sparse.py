"""Sparse: a Constant node with `sparse_value`, the non-zeros with their int64 positions in row-major order.

ONNX has two places for a sparse weight. One in `sparse_initializer` has the type sparse_tensor, which no operator
takes: `onnx.checker` with `full_check` and strict shape inference fail on it, and some tools drop it. The Constant node
has the type tensor, passes both, and onnxruntime makes a dense initializer of it at load. A position costs 8 bytes, so
it takes more than two thirds of zeros to be smaller in float32, four fifths in float16 and eight ninths in int8.

Source: ONNX, operator Constant (opset 11), SparseTensorProto.
"""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper

from .bits import Array, as_bits
from .form import Form, tensor

FIRST_OPSET = 11
_KINDS = (
    "FLOAT", "DOUBLE", "FLOAT16", "BFLOAT16", "INT8", "UINT8", "INT16", "UINT16",
    "INT32", "UINT32", "INT64", "UINT64",
)  # fmt: skip
SPARSABLE = frozenset(TensorProto.DataType.Value(name) for name in _KINDS)


def why_not(kind: int, shape: tuple[int, ...], opset: int) -> str:
    """Say why a tensor of this data type and shape cannot be a sparse constant, or "" if it can."""
    if kind not in SPARSABLE:
        return f"onnxruntime reads no sparse tensors of {TensorProto.DataType.Name(kind)}"
    if kind == TensorProto.BFLOAT16 and opset < 13:
        return f"constants of BFLOAT16 need opset 13 and the model has {opset}"
    if opset < FIRST_OPSET:
        return f"sparse constants need opset {FIRST_OPSET} and the model has {opset}"
    if not shape or 0 in shape:
        return "sparse tensors have at least one dimension and one element"
    return ""


def form(name: str, array: Array) -> Form:
    """Make the Constant node for the new content of a tensor, called `name` in its body."""
    flat = np.ascontiguousarray(array).reshape(-1)
    positions = np.flatnonzero(as_bits(flat))
    value = onnx.SparseTensorProto(
        values=tensor(name, flat[positions]), indices=tensor("", positions.astype(np.int64)), dims=array.shape
    )
    return Form((helper.make_node("Constant", [], [name], sparse_value=value),), ())
