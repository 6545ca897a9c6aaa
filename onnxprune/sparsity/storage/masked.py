"""Masked: the dense weight as it was, a boolean mask beside it, and Where to put them together.

    NAME.masked = Where(NAME.mask, NAME, fill)

Where is exact: a product with the mask would give -0.0 for negative elements and NaN for infinite ones. Integer codes
are masked as codes, with their zero point as the fill: what they dequantize to is zero, and the DequantizeLinear stays
right in front of its reader, where onnxruntime looks for it. All of it is folded into one initializer at load.

Source: ONNX, operator Where (opset 9).
"""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper

from ...rewrite.edited import Edited
from .bits import Array, as_bits, filler_of, is_integer
from .form import Form, tensor

FIRST_OPSET = 9
_NATIVE = ("FLOAT", "DOUBLE", "UINT8", "INT32", "INT64")
# Not every onnxruntime since 1.20 has a Where of these; the wider type holds every value of theirs.
_WIDER = {
    "FLOAT16": "FLOAT",
    "BFLOAT16": "FLOAT",
    "INT8": "INT32",
    "INT16": "INT32",
    "UINT16": "INT32",
    "UINT32": "INT64",
}
MASKABLE = {
    TensorProto.DataType.Value(kind): TensorProto.DataType.Value(wide)
    for kind, wide in {**{k: k for k in _NATIVE}, **_WIDER}.items()
}


def why_not(kind: int, opset: int) -> str:
    """Say why a tensor of this data type cannot have a mask, or "" if it can."""
    if kind not in MASKABLE:
        return f"onnxruntime has no Where for {TensorProto.DataType.Name(kind)}"
    if opset < FIRST_OPSET or (kind == TensorProto.BFLOAT16 and opset < 13):
        return f"the mask needs opset {13 if kind == TensorProto.BFLOAT16 else FIRST_OPSET} and the model has {opset}"
    return ""


def form(edited: Edited, name: str, old: Array, new: Array, keep: Array) -> Form | str:
    """Put a mask on the tensor `name`: `old` where `keep` is False, `new` elsewhere; or say why that cannot be.

    `new` must hold one value per channel of some axis, at most, where `keep` is False.
    """
    fill = fill_of(new, keep)
    if fill is None:
        return "what is masked out has several values"
    kind = helper.np_dtype_to_tensor_dtype(new.dtype)
    wide = MASKABLE[kind]
    local, fresh = edited.local(name), edited.fresh
    mask, filler, masked = (fresh(f"{local}.{part}") for part in ("mask", "fill", "masked"))
    if wide != kind:
        fill = fill.astype(helper.tensor_dtype_to_np_dtype(wide))
        before, after = fresh(f"{local}.wide"), fresh(f"{masked}.wide")
        nodes: tuple[onnx.NodeProto, ...] = (
            helper.make_node("Cast", [local], [before], to=wide),
            helper.make_node("Where", [mask, before, filler], [after]),
            helper.make_node("Cast", [after], [masked], to=kind),
        )
    else:
        nodes = (helper.make_node("Where", [mask, local, filler], [masked]),)
    return Form(nodes, (tensor(mask, keep), tensor(filler, fill)), np.where(keep, new, old))


def fill_of(array: Array, keep: Array) -> Array | None:
    """Give what an array holds where `keep` is False, in a shape that broadcasts to its own; None if no row does."""
    out = ~keep
    if not out.any():
        return filler_of(array).reshape(())
    bits = as_bits(np.ascontiguousarray(array))
    if not is_integer(array.dtype):
        return None if bits[out].any() else np.zeros((), array.dtype)
    for axis in (None, *range(array.ndim)):
        kept_axes = tuple(a for a in range(array.ndim) if a != axis)
        low = np.where(out, array, np.iinfo(array.dtype).max).min(axis=kept_axes, keepdims=axis is not None)
        high = np.where(out, array, np.iinfo(array.dtype).min).max(axis=kept_axes, keepdims=axis is not None)
        if ((low == high) | (low > high)).all():
            fill: Array = np.where(low > high, filler_of(array)[0], low).astype(array.dtype)
            return fill
    return None
