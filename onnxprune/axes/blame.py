"""Whose fault a contradiction is: that of the model, which onnxruntime then refuses as well, or that of a rule."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import onnx

from ..errors import ModelError, RuleDefect
from ..graph.model import Model
from ..graph.shapes import MAX_ELEMENTS, concrete_shapes
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

    onnxruntime is the judge: it loads the model and runs it at the sizes of the analysis.
    """
    from ..graph.session import open_session, run

    session = open_session(model, threads=1)
    shapes = concrete_shapes(model.flat, skeleton(model.skeleton, model.flat), input_shapes)
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
