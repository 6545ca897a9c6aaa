"""Run one node by itself in onnxruntime: a constant is what the model computes, not what we think it does."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper

from ..errors import ModelError
from ..graph.model import Model
from ..verification import open_session, run
from .known import Array

_RUNNABLE = frozenset({"float16", "float32", "float64", "bool", "int8", "uint8", "int16", "uint16", "int32", "int64"})


class Kernels:
    """Single nodes of one model; what onnxruntime has no kernel for is simply not known."""

    def __init__(self, model: Model) -> None:
        self._opsets = list(model.proto.opset_import)
        self._ir_version = max(model.proto.ir_version, 4)
        self._domains = {o.domain for o in self._opsets}

    def run(self, node: onnx.NodeProto, arrays: Sequence[Array | None], *, outputs: int = 1) -> list[Array] | None:
        """Compute the first `outputs` outputs of a node for its inputs, None where onnxruntime does not run it."""
        if any(a is not None and a.dtype.name not in _RUNNABLE for a in arrays):
            return None
        names = [f"x{k}" if a is not None else "" for k, a in enumerate(arrays)]
        copy = onnx.NodeProto()
        copy.CopyFrom(node)
        del copy.input[:], copy.output[:]
        copy.input.extend(names)
        copy.output.extend(f"y{k}" for k in range(outputs))
        given = [(n, a) for n, a in zip(names, arrays, strict=True) if a is not None]
        inputs = [helper.make_tensor_value_info(n, helper.np_dtype_to_tensor_dtype(a.dtype), a.shape) for n, a in given]
        results = [onnx.ValueInfoProto(name=name) for name in copy.output]
        graph = helper.make_graph([copy], "one_node", inputs, results)
        proto = helper.make_model(graph, opset_imports=self._opsets, ir_version=self._ir_version)
        if node.domain and node.domain not in self._domains:
            proto.opset_import.add(domain=node.domain, version=1)
        try:
            session = open_session(Model(proto), threads=1)
            feed = {n: np.ascontiguousarray(a) for n, a in given}
            return [np.asarray(y) for y in run(session, feed, "one node")]
        except ModelError:
            return None


def dtype_of(elem_type: int | None) -> np.dtype[Any] | None:
    """Give the numpy type of an ONNX element type, None where it has none that onnxruntime takes from numpy."""
    if elem_type in (None, TensorProto.UNDEFINED, TensorProto.STRING):
        return None
    dtype = helper.tensor_dtype_to_np_dtype(int(elem_type or 0))
    return dtype if dtype.name in _RUNNABLE else None
