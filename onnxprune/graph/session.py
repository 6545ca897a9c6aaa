"""Models in onnxruntime, on the CPU, with its refusals as typed errors.

Everything that runs a model passes through `open_session` and `run`, and whoever watches this process is told of both.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from google.protobuf.message import EncodeError

from ..errors import ModelError, OptionError
from ..watch import watched
from .model import SINGLE_FILE_LIMIT, Model, save, serialize

Array = np.ndarray[Any, Any]
_DATA_FOLDER = "session.model_external_initializers_file_folder_path"
_SPINNING = "session.intra_op.allow_spinning"
_SILENT = 4


def open_session(
    model: Model, *, threads: int | None = None, spinning: bool = True, deterministic: bool = False
) -> ort.InferenceSession:
    """Load a model into onnxruntime; `threads` None leaves their number to it.

    With `deterministic` and one thread the same feed gives the same bits on every run.
    Models with data files are read from their folder; one too large for a single buffer goes through a temporary
    file. Raises `ModelError` with what onnxruntime says when it refuses the model.
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
    if model.has_external_data and model.path is not None:
        options.add_session_config_entry(_DATA_FOLDER, str(model.path.parent.resolve()))
    try:
        content = _content(model)
        if content is not None:
            return _create(content, options, model.label)
        with tempfile.TemporaryDirectory(prefix="onnxprune-") as folder:
            path = Path(folder, "model.onnx")
            save(model, path, external_data=True)
            return _create(str(path), options, model.label)
    except ModelError:
        raise
    except Exception as error:
        raise ModelError(f"{model.label}: onnxruntime does not load it: {one_line(error)}") from error


def _content(model: Model) -> bytes | str | None:
    """Serialize a model that fits in one buffer; a large file is read by onnxruntime itself."""
    if model.is_hollow:
        return str(model.path) if model.is_intact else None
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
