"""Models that `probe` made, run in onnxruntime on the CPU."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from google.protobuf.message import EncodeError

from ..errors import ModelError, OptionError
from ..graph.model import SINGLE_FILE_LIMIT, Model, save, serialize

Array = np.ndarray[Any, Any]
_DATA_FOLDER = "session.model_external_initializers_file_folder_path"
_SILENT = 4


class Session:
    """One model in onnxruntime. `threads` None leaves their number to it; 1 gives the same bits on every machine.

    Raises `ModelError` with what onnxruntime says when it does not load or run the model.
    """

    def __init__(self, model: Model, label: str, threads: int | None) -> None:
        if threads is not None and threads < 1:
            raise OptionError(f"threads must be at least 1, not {threads}")
        options = ort.SessionOptions()
        options.log_severity_level = _SILENT
        options.use_deterministic_compute = True
        if threads is not None:
            options.intra_op_num_threads = options.inter_op_num_threads = threads
        if model.has_external_data and model.path is not None:
            options.add_session_config_entry(_DATA_FOLDER, str(model.path.parent.resolve()))
        self._label = label
        try:
            self._session = _open(model, options)
        except ModelError:
            raise
        except Exception as error:
            raise ModelError(f"{label}: onnxruntime does not load it for calibration: {_line(error)}") from error

    def run(self, names: Sequence[str], feed: Mapping[str, Array]) -> list[Array]:
        """Give the outputs `names` for one feed."""
        try:
            found: list[Array] = self._session.run(list(names), dict(feed))
        except Exception as error:
            shapes = ", ".join(f"{name} {list(array.shape)}" for name, array in feed.items())
            raise ModelError(f"{self._label}: onnxruntime does not run it on {shapes}: {_line(error)}") from error
        return found


def _open(model: Model, options: ort.SessionOptions) -> ort.InferenceSession:
    content: bytes | None = None
    if sum(len(t.raw_data) for t in model.proto.graph.initializer) < SINGLE_FILE_LIMIT:
        try:
            content = serialize(model.proto)
        except (EncodeError, ValueError):
            content = None
    if content is not None:
        return ort.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    with tempfile.TemporaryDirectory(prefix="onnxprune-") as folder:
        path = Path(folder, "model.onnx")
        save(model, path, external_data=True)
        return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def _line(error: Exception) -> str:
    """Give the first line of an onnxruntime message."""
    lines = (line.strip() for line in str(error).splitlines())
    return next((line for line in lines if line), type(error).__name__)[:300]
