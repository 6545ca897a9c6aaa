"""The numbers that an initializer stands for: quantized weights are scored by what their codes mean."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..axes.analysis import Analysis
from ..axes.relations import Codes
from .registry import Rows


def weight_values(analysis: Analysis, name: str) -> Rows:
    """Give an initializer's values as float64; of one whose codes a rule explains, (code - zero point) * scale.

    Codes of few bits are unpacked along the last axis. A scale or zero point that is computed counts as 1 or none.
    """
    array = analysis.model.array(name)
    codes = analysis.collection.codes.get(name)
    if codes is None:
        return array.astype(np.float64)
    if codes.bits < 8:
        array = _unpacked(array, codes.bits)
    values = array.astype(np.float64) - _stretched(_zero_point(analysis, codes), codes, array.shape)
    scale = _known(analysis, codes.scale)
    return values if scale is None else values * _stretched(scale.astype(np.float64), codes, array.shape)


def _known(analysis: Analysis, name: str) -> np.ndarray[Any, Any] | None:
    return analysis.model.array(name) if name in analysis.model.tensors else None


def _zero_point(analysis: Analysis, codes: Codes) -> Rows:
    point = _known(analysis, codes.zero_point)
    if point is None:
        return np.full((), codes.default, dtype=np.float64)
    if codes.bits < 8 and point.dtype == np.uint8 and codes.spread is not None:
        rows, blocks = codes.spread[:2]
        point = _unpacked(point.reshape(rows, -1), codes.bits)[:, :blocks]
    return point.astype(np.float64)


def _unpacked(array: np.ndarray[Any, Any], bits: int) -> np.ndarray[Any, Any]:
    """Spread the codes in every byte along the last axis, low bits first."""
    shifts = np.arange(0, 8, bits, dtype=np.uint8)
    parts = (array[..., None] >> shifts) & np.uint8((1 << bits) - 1)
    return np.asarray(parts.reshape(*array.shape[:-1], -1))


def _stretched(parameter: Rows, codes: Codes, shape: tuple[int, ...]) -> Rows:
    """Bring a scale or a zero point to the weight's shape: every axis repeated, a lone number as it is."""
    if parameter.size == 1 or codes.spread is None:
        return parameter.reshape(-1)[:1]
    spread = codes.spread
    if parameter.size != np.prod(spread):
        # One of the two runs along fewer axes: one number per direction beside one per row.
        spread = (parameter.shape[0], *([1] * (len(shape) - 1)))
    result = parameter.reshape(spread)
    for axis, (n, size) in enumerate(zip(spread, shape, strict=True)):
        if n > 1 and n != size:
            result = np.repeat(result, codes.block or -(-size // n), axis=axis).take(range(size), axis=axis)
    return result
