"""Whose fault a contradiction is: that of the model, which onnxruntime then refuses as well, or that of a rule."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import onnx

from ..errors import ModelError, RuleDefect
from ..graph.model import Model
from ..graph.shapes import MAX_ELEMENTS, concrete_shapes
from ..graph.sizes import bodies_of
from ..graph.view import skeleton


@contextlib.contextmanager
def blaming(model: Model, input_shapes: Mapping[str, Sequence[int]] | None = None) -> Iterator[None]:
    """Turn a `RuleDefect` into a `ModelError` where the model is at fault for it."""
    try:
        yield
    except RuleDefect as defect:
        blame(model, input_shapes, defect)
        raise


def blame(model: Model, input_shapes: Mapping[str, Sequence[int]] | None, defect: RuleDefect) -> None:
    """Raise `ModelError` where the model is at fault for `defect`; come back where the rule is.

    onnxruntime is the judge: it loads the model and runs it at the sizes of the analysis. What it does not look at are
    the shapes declared for values between nodes, which must be those that the operators give.
    """
    from ..graph.session import open_session, run

    session = open_session(model, threads=1)
    shapes = concrete_shapes(model.flat, skeleton(model.proto, model.flat), input_shapes)
    feed = {}
    for value in session.get_inputs():
        size = shapes.sizes.get(value.name)
        kind = shapes.types.get(value.name, onnx.TensorProto.UNDEFINED)
        if size is None or kind in (onnx.TensorProto.UNDEFINED, onnx.TensorProto.STRING):
            return
        if int(np.prod(size, dtype=object)) > MAX_ELEMENTS:
            raise ModelError(f"{model.label}: input {value.name!r} of {list(size)} is too large to run") from defect
        feed[value.name] = np.zeros(size, dtype=onnx.helper.tensor_dtype_to_np_dtype(kind))
    try:
        run(session, feed, model.label)
    except ModelError as error:
        raise ModelError(f"{error}. Another size may suit it: --input-shape NAME=1,3,224,224") from defect
    if _declares_otherwise(model, shapes.sizes):
        raise ModelError(
            f"{model.label}: shapes that it declares for values between its nodes are not those that its operators "
            f"give ({defect}). Remove them (onnx: del model.graph.value_info[:]), or export the model again"
        ) from defect


def _declares_otherwise(model: Model, found: Mapping[str, tuple[int, ...] | None]) -> bool:
    """Say whether any shape comes out differently when declared ones are not believed."""
    proto = onnx.ModelProto()
    proto.CopyFrom(model.proto)
    for body, _ in bodies_of(proto):
        del body.value_info[:]
    for value in proto.graph.output:
        value.type.tensor_type.ClearField("shape")
    undeclared = Model(proto, model.path)
    shapes = concrete_shapes(undeclared.flat, skeleton(proto, undeclared.flat))
    return any(size is not None and found.get(name) not in (None, size) for name, size in shapes.sizes.items())
