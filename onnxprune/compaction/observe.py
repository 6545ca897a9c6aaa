"""Observe: what is constant on every sample, though nothing in the model says so, such as a ReLU that never fires."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
import onnx
from onnx import helper

from ..calibration.session import Session
from ..data import Feed
from ..graph.model import Model
from .facts import Facts
from .known import Array, Known
from .readers import readers


def observe(facts: Facts, feeds: Iterable[Feed]) -> None:
    """Run the model on feeds and add what is constant on all of them to the facts, at the data of every reader."""
    axes: dict[str, int] = {}
    for reader in readers(facts):
        place = facts.analysis.collection.view.places[reader.op.index]
        at = next((k for k, a in enumerate(reader.data.axes) if a.id == reader.axis.id), None)
        if not reader.data.constant and at is not None and place is not None and place[0] == 0:
            axes.setdefault(reader.data.name, at)
    made = {name for node in facts.analysis.model.skeleton.graph.node for name in node.output}
    names = [name for name in axes if name in made]
    if not names:
        return
    low: dict[str, Array] = {}
    high: dict[str, Array] = {}
    session = Session(_with_outputs(facts, names), facts.analysis.model.label, None)
    for values in session.each(names, feeds):
        for name, value in zip(names, values, strict=True):
            if not value.size:
                continue
            others = tuple(k for k in range(value.ndim) if k != axes[name])
            smallest, largest = value.min(axis=others), value.max(axis=others)
            low[name] = np.minimum(low.get(name, smallest), smallest)
            high[name] = np.maximum(high.get(name, largest), largest)
    for name in names:
        if name in low:
            _add(facts, name, axes[name], low[name], high[name])


def _with_outputs(facts: Facts, names: list[str]) -> Model:
    model = facts.analysis.model
    proto = onnx.ModelProto()
    proto.CopyFrom(model.proto)
    given = {v.name for v in proto.graph.output}
    types: Mapping[str, int] = facts.analysis.collection.shapes.types
    for name in names:
        if name not in given:
            proto.graph.output.append(helper.make_tensor_value_info(name, types[name], None))
    return Model(proto, model.path)


def _add(facts: Facts, name: str, axis: int, low: Array, high: Array) -> None:
    """Take what was the same on every sample for known, beside what is known for certain."""
    rank = len(facts.analysis.collection.shapes.sizes[name] or ())
    shape = [-1 if k == axis else 1 for k in range(rank)]
    mask, value = (low == high).reshape(shape), low.reshape(shape)
    known = facts.known(name)
    if known is not None:
        value = np.where(known.mask, known.value, value)
        mask = mask | known.mask
    facts.assume(name, Known(*map(np.asarray, np.broadcast_arrays(mask, value))))
