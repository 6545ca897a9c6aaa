"""Models that `probe` made, in onnxruntime."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import onnx

from ..graph.model import Model
from ..graph.session import open_session, run
from ..graph.sizes import graphs_in
from ..ordered import in_order, n_threads

Array = np.ndarray[Any, Any]
# Each run goes on in the numbers that the one before has drawn.
DRAWING = frozenset(
    {"Bernoulli", "Multinomial", "RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike"}
)


class Session:
    """One model, of which some outputs are asked for at a time; its errors name `label`.

    onnxruntime works on one thread, since its sums depend on their number; `threads` feeds run at once instead (None:
    one for each core, up to 8), so that results have the same bits whatever the number.
    Raises `ModelError` with what onnxruntime says when it does not load or run the model.
    """

    def __init__(self, model: Model, label: str, threads: int | None) -> None:
        self._label = label
        self._session = open_session(model, threads=1, deterministic=True)
        bodies = [model.skeleton.graph, *model.skeleton.functions]
        at_once = n_threads(threads)
        self.threads = 1 if any(_draws(body.node) for body in bodies) else at_once

    def run(self, names: Sequence[str], feed: Mapping[str, Array]) -> list[Array]:
        """Give the outputs `names` for one feed; may be called on several threads."""
        return list(run(self._session, feed, self._label, names))

    def each(self, names: Sequence[str], feeds: Iterable[Mapping[str, Array]]) -> Iterator[list[Array]]:
        """Give the outputs `names` for every feed, in their order."""
        return in_order(partial(self.run, names), feeds, self.threads)


def _draws(nodes: Iterable[onnx.NodeProto]) -> bool:
    """Say whether nodes, or those of graphs inside them, draw random numbers."""
    return any(
        node.op_type in DRAWING or any(_draws(graph.node) for a in node.attribute for graph in graphs_in(a))
        for node in nodes
    )
