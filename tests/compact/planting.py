"""Dead units planted in models: rows of weights written as zero, their biases left as they are."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx
from onnx import numpy_helper

from onnxprune.axes.analysis import Analysis
from onnxprune.axes.groups import Group
from onnxprune.graph.flatten import flatten
from onnxprune.graph.model import Model


def has_rows(group: Group) -> bool:
    """Say whether weights produce the units of a group, and do not only go along with it."""
    return any(member.role == "output" for member in group.members)


def zero_code(analysis: Analysis, name: str, dtype: np.dtype) -> int:
    """Give what stands for zero in a weight: its zero point where it holds codes of one for all."""
    codes = analysis.collection.codes.get(name)
    if dtype.kind == "f" or codes is None or not codes.zero_point:
        return 0 if codes is None else codes.default
    point = analysis.model.array(codes.zero_point)
    assert (point == point.ravel()[0]).all(), "one zero point for all"
    return int(point.ravel()[0])


def choose_units(group: Group, fraction: float, rng: np.random.Generator) -> list[int]:
    """Draw equally many units from every block of a group, never all of one."""
    n = min(round(fraction * group.width), group.width - 1)
    chosen: list[int] = []
    for block in range(group.blocks):
        members = np.flatnonzero(group.block == block)
        chosen += sorted(rng.choice(members, n, replace=False).tolist())
    return sorted(chosen)


def zero_rows(analysis: Analysis, dead: dict[str, Sequence[int]], *, parameters: bool = False) -> Model:
    """Write the rows that produce units as zero: all weights with the role output, and `parameters` with them."""
    proto = onnx.ModelProto()
    proto.CopyFrom(analysis.model.proto)
    held = flatten(proto).tensors
    for group in analysis.groups:
        for member in group.members:
            if member.role != "output" and not (parameters and member.role == "parameter"):
                continue
            rows = np.flatnonzero(np.isin(member.unit, list(dead.get(group.id, ()))))
            tensor = held.get(member.initializer)
            if tensor is None or not len(rows):
                continue
            array = numpy_helper.to_array(tensor).copy()
            np.moveaxis(array, member.axis, 0)[rows] = zero_code(analysis, member.initializer, array.dtype)
            tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
    return Model(proto)
