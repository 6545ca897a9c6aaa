"""Models that `probe` made, in onnxruntime."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ..graph.model import Model
from ..graph.session import open_session, run

Array = np.ndarray[Any, Any]


class Session:
    """One model, of which some outputs are asked for at a time; its errors name `label`.

    `threads` None leaves their number to onnxruntime; 1 gives the same bits on every run.
    Raises `ModelError` with what onnxruntime says when it does not load or run the model.
    """

    def __init__(self, model: Model, label: str, threads: int | None) -> None:
        self._label = label
        self._session = open_session(model, threads=threads, deterministic=True)

    def run(self, names: Sequence[str], feed: Mapping[str, Array]) -> list[Array]:
        """Give the outputs `names` for one feed."""
        return list(run(self._session, feed, self._label, names))
