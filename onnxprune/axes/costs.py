"""Parameters, multiply-accumulates and bytes, as functions of what stays."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ..graph.sizes import tensor_nbytes

if TYPE_CHECKING:
    from ..graph.model import Model
    from .analysis import Analysis, Keep

PARAMETER_TYPES = frozenset({1, 2, 3, 10, 11, 16, 17, 18, 19, 20, 21, 22, 23})


@dataclass(frozen=True)
class Cost:
    """`params` are elements of weights, `macs` multiply-accumulates of one run, `bytes` the weights' storage."""

    params: int
    macs: int
    bytes: int


class Costs:
    """Cost as a function of the roots that stay: a sum of products of axis sizes."""

    def __init__(self, analysis: Analysis) -> None:
        self._analysis = analysis
        collection = analysis.collection
        by_name: dict[str, list[tuple[int, ...]]] = {}
        for v in collection.parameters:
            by_name.setdefault(v.name, []).append(tuple(a.id for a in v.axes if a.size > 1))
        self._weights: list[tuple[list[tuple[int, ...]], float]] = []
        fixed_params = fixed_bytes = 0
        for name, tensor in analysis.model.tensors.items():
            nbytes = tensor_nbytes(tensor) if tensor.data_type != 8 else 0
            counts = tensor.data_type in PARAMETER_TYPES
            n = math.prod(tensor.dims)
            uses = by_name.get(name, [])
            if counts and n > 0 and any(self._varies(a) for axes in uses for a in axes):
                self._weights.append((uses, nbytes / n))
            else:
                fixed_params += n if counts else 0
                fixed_bytes += nbytes
        self._fixed = fixed_params, fixed_bytes
        self._products: list[tuple[int, tuple[int, ...]]] = []
        fixed_macs = 0
        for _, axes in collection.macs:
            varying = tuple(a for a in axes if self._varies(a))
            constant = math.prod(collection.sizes[a] for a in axes if a not in varying)
            if varying:
                self._products.append((constant, varying))
            else:
                fixed_macs += constant
        self._fixed_macs = fixed_macs

    def _varies(self, axis: int) -> bool:
        if self._analysis.collection.sizes[axis] <= 1:
            return False
        frozen = self._analysis.labeling.frozen
        return any((~frozen[np.maximum(r, 0)] & (r >= 0)).any() for r in self._analysis.roots(axis))

    def __call__(self, alive: Keep) -> Cost:
        """Compute the cost of what stays."""
        counts: dict[int, int] = {}
        class_of = self._analysis.factors.class_of

        def size(axis: int) -> int:
            cls = class_of[axis]
            if cls not in counts:
                counts[cls] = int(np.count_nonzero(self._analysis.keep(axis, alive)))
            return counts[cls]

        params, nbytes = self._fixed
        exact_bytes: float = nbytes
        for uses, width in self._weights:
            n = sum(math.prod(size(a) for a in axes) for axes in self._versions(uses, alive))
            params += n
            exact_bytes += n * width
        macs = self._fixed_macs + sum(c * math.prod(size(a) for a in axes) for c, axes in self._products)
        return Cost(params, macs, math.ceil(exact_bytes))

    def _versions(self, uses: list[tuple[int, ...]], alive: Keep) -> Iterable[tuple[int, ...]]:
        """Give one use of each version of an initializer: uses that keep different indices need copies."""
        if len(uses) == 1:
            return uses
        keep = self._analysis.keep
        return {tuple(keep(a, alive).tobytes() for a in axes): axes for axes in uses}.values()


def measure(model: Model, input_shapes: Mapping[str, Sequence[int]] | None = None) -> Cost:
    """Count parameters, multiply-accumulates and weight bytes of a model as it stands."""
    from .analysis import analyze_model

    return analyze_model(model, input_shapes).cost


def change(before: float, after: float | None) -> dict[str, Any]:
    """Give a figure before and after, and their ratio: None where `after` is, or grew out of nothing."""
    ratio = None
    if after is not None:
        ratio = after / before if before else (1.0 if after == before else None)
    return {"before": before, "after": after, "ratio": ratio}
