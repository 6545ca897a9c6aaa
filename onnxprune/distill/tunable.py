"""Which initializers of the smaller model are tuned, and where their elements stand in the original's."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping
from typing import Any

import numpy as np

from ..axes.analysis import Analysis, Keep
from ..axes.cuts import versions
from ..calibration.probe import Probe

Array = np.ndarray[Any, Any]

# Inputs that are weights, by operator; for those that add and multiply, whatever is constant and no scalar.
SLOTS: dict[str, tuple[int, ...]] = {
    "Add": (0, 1),
    "BatchNormalization": (1, 2),
    "BiasGelu": (1,),
    "Conv": (1, 2),
    "ConvTranspose": (1, 2),
    "Einsum": (0, 1),
    "FastGelu": (1,),
    "FusedMatMul": (0, 1),
    "GRU": (1, 2, 3),
    "Gemm": (0, 1, 2),
    "GroupNormalization": (1, 2),
    "InstanceNormalization": (1, 2),
    "LSTM": (1, 2, 3),
    "LayerNormalization": (1, 2),
    "MatMul": (0, 1),
    "Mul": (0, 1),
    "PRelu": (1,),
    "RMSNormalization": (1,),
    "RNN": (1, 2, 3),
    "SimplifiedLayerNormalization": (1,),
    "SkipLayerNormalization": (2, 3, 4),
    "SkipSimplifiedLayerNormalization": (2, 3),
}
PASSES = frozenset({"Identity", "Reshape", "Transpose", "Squeeze", "Unsqueeze", "Cast"})
FLOATS = (1, 10, 11, 16)
MASK = 1e4


def tunable(probe: Probe) -> list[str]:
    """List the initializers that are weights: floats of more than one element that are no masks of huge numbers.

    Embedding tables are none: a few samples reach a few of their rows.
    """
    tensors = probe.flat.tensors
    origin = {name: name for name, t in tensors.items() if t.data_type in FLOATS}
    found: dict[str, None] = {}
    for node in probe.flat.nodes:
        if node.op_type in PASSES and node.input and node.input[0] in origin:
            origin.setdefault(node.output[0], origin[node.input[0]])
        for slot in SLOTS.get(node.op_type, ()):
            if slot < len(node.input) and (name := origin.get(node.input[slot])) is not None:
                found.setdefault(name)
    return [name for name in found if _is_weight(probe.model.array(name))]


def _is_weight(array: Array) -> bool:
    values = array.astype(np.float32)
    return values.size > 1 and bool(np.isfinite(values).all()) and float(np.abs(values).max()) < MASK


class Places:
    """Where the elements of cut initializers stand in the original ones."""

    def __init__(self, analysis: Analysis, alive: Keep) -> None:
        found = versions(analysis, alive)
        count = Counter(v.initializer for v in found)
        self._keeps = {v.initializer: v.keeps for v in found}
        self.split = frozenset(name for name, n in count.items() if n > 1)

    def known(self, names: Collection[str], originals: Collection[str]) -> list[str]:
        """List the names that stand for one initializer of the original; of one cut in two nothing is tuned."""
        return [n for n in names if n in originals and n not in self.split]

    def widened(self, tuned: Mapping[str, Array], whole: Mapping[str, Array]) -> dict[str, Array]:
        """Write tuned arrays into copies of the `whole` ones, which have the shapes of the original."""
        values: dict[str, Array] = {}
        for name, array in tuned.items():
            full = whole[name].copy()
            keeps = self._keeps.get(name, {})
            at = np.ix_(*(np.flatnonzero(keeps[k]) if k in keeps else np.arange(n) for k, n in enumerate(full.shape)))
            full[at] = array.astype(full.dtype)
            values[name] = full
        return values
