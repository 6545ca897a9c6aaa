"""Models in onnxruntime, on the CPU, with its refusals as typed errors.

Everything that runs a model passes through `open_session` and `run`, and whoever watches this process is told of both.
"""

from __future__ import annotations

import tempfile
import weakref
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from google.protobuf.message import EncodeError

from ..errors import ModelError, OptionError
from ..watch import watched
from .model import SINGLE_FILE_LIMIT, Model, save, serialize
from .sizes import bodies_of, tensors_of
from .store import TAKEN_FROM, whole_bytes
from .writing import bring_in

Array = np.ndarray[Any, Any]
_SPINNING = "session.intra_op.allow_spinning"
_SILENT = 4
# Bytes; where arrays of numpy begin, which onnxruntime takes as feeds.
ALIGNMENT = 16
# onnxruntime ends the process where one of these gets a tensor without elements.
_ABORTING = frozenset({"LSTM", "GRU", "DynamicQuantizeLSTM"})
_aborting: weakref.WeakSet[ort.InferenceSession] = weakref.WeakSet()


def open_session(
    model: Model, *, threads: int | None = None, spinning: bool = True, deterministic: bool = False
) -> ort.InferenceSession:
    """Load a model into onnxruntime; `threads` None leaves their number to it.

    With `deterministic` and one thread the same feed gives the same bits on every run.
    Weights that are not in the proto are handed over as arrays, which are neither serialized nor parsed. A proto too
    large for a single buffer goes through a temporary file. Raises `ModelError` with what onnxruntime says when it
    refuses the model.
    """
    if threads is not None and threads < 1:
        raise OptionError(f"threads must be at least 1, not {threads}")
    options = ort.SessionOptions()
    options.log_severity_level = _SILENT
    if threads is not None:
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
    options.use_deterministic_compute = deterministic
    if not spinning:
        options.add_session_config_entry(_SPINNING, "0")
    try:
        session = _opened(model, options)
    except ModelError:
        raise
    except Exception as error:
        raise ModelError(f"{model.label}: onnxruntime does not load it: {one_line(error)}") from error
    if any(node.op_type in _ABORTING for body, _ in bodies_of(model.skeleton) for node in body.node):
        _aborting.add(session)
    return session


def _opened(model: Model, options: ort.SessionOptions) -> ort.InferenceSession:
    if model.is_hollow or model.has_external_data:
        return _create_from_arrays(model, options)
    content = _content(model)
    if content is not None:
        return _create(content, options, model.label)
    with tempfile.TemporaryDirectory(prefix="onnxprune-") as folder:
        path = Path(folder, "model.onnx")
        save(model, path, external_data=True)
        return _create(str(path), options, model.label)


def _create_from_arrays(model: Model, options: ort.SessionOptions) -> ort.InferenceSession:
    """Load a skeleton, and give the large initializers of the main graph as arrays; small ones may be sizes."""
    proto = onnx.ModelProto()
    proto.CopyFrom(model.skeleton)
    outer = len(proto.graph.initializer)
    values = {}
    for k, tensor in enumerate(tensors_of(proto.graph)):
        payload = model.payload(tensor)
        if payload is None:
            continue
        if k < outer and len(payload) >= TAKEN_FROM and whole_bytes(tensor.data_type) is not None:
            array = _aligned(model.store.array(tensor, payload))
            values[tensor.name] = ort.OrtValue.ortvalue_from_numpy_with_onnx_type(array, tensor.data_type)
        else:
            bring_in(tensor, payload)
    options.add_external_initializers(list(values), list(values.values()))
    session = _create(serialize(proto), options, model.label)
    # onnxruntime computes with these very arrays, and does not keep them itself.
    weakref.finalize(session, values.clear).atexit = False
    return session


def _aligned(array: Array) -> Array:
    """Give an array that begins at such a place, itself where it does: data in a file may begin anywhere."""
    if array.ctypes.data % ALIGNMENT == 0:
        return array
    room = np.empty(array.nbytes + ALIGNMENT, np.uint8)
    start = -room.ctypes.data % ALIGNMENT
    placed: Array = room[start : start + array.nbytes].view(array.dtype).reshape(array.shape)
    np.copyto(placed, array)
    return placed


def _content(model: Model) -> bytes | None:
    """Serialize a model that fits in one buffer."""
    inline = sum(len(tensor.raw_data) for tensor in model.tensors.values())
    if inline >= SINGLE_FILE_LIMIT:
        return None
    try:
        return serialize(model.proto)
    except (EncodeError, ValueError):
        return None


def _create(content: bytes | str, options: ort.SessionOptions, label: str) -> ort.InferenceSession:
    with watched(f"onnxruntime has been loading {label}"):
        return ort.InferenceSession(content, options, providers=["CPUExecutionProvider"])


def run(
    session: ort.InferenceSession, feed: Mapping[str, Any], label: str, names: Sequence[str] | None = None
) -> Sequence[Any]:
    """Run a session on one feed and give the outputs `names`, by default all.

    Raises `ModelError` with what onnxruntime says.
    """
    empty = [name for name, value in feed.items() if isinstance(value, np.ndarray) and not value.size]
    if empty and session in _aborting:
        raise ModelError(f"{label}: input {empty[0]!r} is empty, and onnxruntime runs no recurrent layer on nothing")
    try:
        with watched(f"onnxruntime has been running {label}"):
            outputs: Sequence[Any] = session.run(None if names is None else list(names), dict(feed))
    except Exception as error:
        shapes = ", ".join(f"{name} {_shape(value)}" for name, value in feed.items())
        raise ModelError(f"{label}: onnxruntime does not run it on {shapes}: {one_line(error)}") from error
    return outputs


def _shape(value: Any) -> str:
    """Spell the shape of an array, or of each in a list."""
    if isinstance(value, list):
        return f"[{', '.join(map(_shape, value))}]"
    return "nothing" if value is None else str(list(value.shape))


def output_names(session: ort.InferenceSession) -> list[str]:
    """Give the names of the outputs in the order `run` gives their values."""
    return [value.name for value in session.get_outputs()]


def one_line(error: Exception) -> str:
    """Give the first line of an onnxruntime message, without its prefix."""
    text = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
    parts = text.split(" : ", 3)
    text = parts[3] if len(parts) == 4 and parts[0].startswith("[ONNXRuntimeError]") else text
    return text if len(text) <= 300 else f"{text[:297]}..."
