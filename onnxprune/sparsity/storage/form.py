"""A form: the nodes and tensors that stand for a weight in the file, before anything is edited."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper

from .bits import Array

_FRAME_BYTES = 4  # tag and length around a message


@dataclass(frozen=True)
class Form:
    """`nodes` compute the weight from `tensors`, both in the body that holds it; the last node's output is the weight.

    `stored` replaces the content of the tensor itself, where that stays. `data_bytes` are its data in tensors of
    another form, which counts them as less than none.
    """

    nodes: tuple[onnx.NodeProto, ...]
    tensors: tuple[TensorProto, ...]
    stored: Array | None = None
    data_bytes: int = 0

    @property
    def bytes(self) -> int:
        """Bytes that nodes and tensors take in the file."""
        sizes = [n.ByteSize() for n in self.nodes] + [t.ByteSize() for t in self.tensors]
        return int(sum(sizes)) + _FRAME_BYTES * len(sizes) + self.data_bytes

    @property
    def output(self) -> str:
        """Name of what the last node gives."""
        return str(self.nodes[-1].output[0])

    @property
    def carrier(self) -> TensorProto:
        """The tensor that holds the kept elements: it carries the doc string and the metadata of the weight."""
        return self.tensors[0] if self.tensors else self.nodes[0].attribute[0].sparse_tensor.values


def tensor(name: str, array: Array) -> TensorProto:
    """Make a tensor from an array in row-major order."""
    return numpy_helper.from_array(np.asarray(array, order="C"), name)


def dense_bytes(name: str, kind: int, shape: tuple[int, ...], n_bytes: int) -> int:
    """Count the bytes that a dense tensor takes in the file, its name and dimensions with it."""
    head = TensorProto(name=name, data_type=kind, dims=shape)
    return int(head.ByteSize()) + n_bytes + 2 * _FRAME_BYTES
