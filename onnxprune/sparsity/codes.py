"""Integer codes that stand for weights: (code - zero point) * scale."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from ..graph.model import Model
from .layout import Layout

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Codes:
    """How the integers in a tensor are read.

    `scale` and `zero_point` name tensors, None stands for 1 and 0. A vector of them runs along `axis` of the shape at
    the end of `layout`, which is where the codes are read; parameters of the same rank count in blocks of `block`.
    """

    scale: str | None
    zero_point: str | None
    axis: int
    block: int
    layout: Layout

    def values(self, model: Model, codes: Array) -> Array:
        """Give what codes of the stored shape stand for, in float32."""
        read = self.layout.view(codes).astype(np.float32) - self._spread(model, self.zero_point, 0)
        return self.layout.back(read * self._spread(model, self.scale, 1))

    def zero(self, model: Model, codes: Array) -> Array:
        """Give the code that stands for 0, in the codes' type; broadcastable to the stored shape."""
        point = self._spread(model, self.zero_point, 0)
        if point.size > 1:
            point = self.layout.back(np.broadcast_to(point, self.layout.shape))
        return point.astype(codes.dtype)

    def encoded(self, model: Model, values: Array, codes: Array) -> Array:
        """Give the nearest codes for values of the stored shape, within the range of the codes' type."""
        scale = self._spread(model, self.scale, 1)
        read = self.layout.view(values) / np.where(scale == 0, 1, scale) + self._spread(model, self.zero_point, 0)
        least, most = _range(codes.dtype)
        return self.layout.back(np.clip(np.rint(read), least, most)).astype(codes.dtype)

    def _spread(self, model: Model, name: str | None, default: float) -> Array:
        """Bring a parameter to the shape where the codes are read, or to one that broadcasts to it."""
        shape = self.layout.shape
        parameter = np.full((), default) if name is None else model.array(name)
        parameter = parameter.astype(np.float32)
        if parameter.size == 1:
            return parameter.reshape(())
        if parameter.ndim == 1:
            axis = self.axis % len(shape)
            return parameter.reshape([-1 if k == axis else 1 for k in range(len(shape))])
        if parameter.ndim == 2 and len(shape) == 3:
            # One row of numbers for each direction of a recurrent layer.
            return parameter[:, None, :]
        for axis, (n, size) in enumerate(zip(parameter.shape, shape, strict=True)):
            if n not in (1, size):
                block = self.block or -(-size // n)
                parameter = np.repeat(parameter, block, axis=axis).take(range(size), axis=axis)
        return parameter


def _range(dtype: np.dtype[Any]) -> tuple[float, float]:
    """Give the least and the largest code of a type, those of few bits too."""
    if dtype.kind in "iu":
        info = np.iinfo(dtype)
        return info.min, info.max
    import ml_dtypes

    is_integer = dtype.name.startswith(("int", "uint"))
    limits: Any = (ml_dtypes.iinfo if is_integer else ml_dtypes.finfo)(dtype)
    return float(limits.min), float(limits.max)
