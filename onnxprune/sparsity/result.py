"""What sparsifying gives: the model, a row per layer, and totals, as values and as a document."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from ..graph.model import Model
from .proof import Proof

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Layer:
    """What became of one weight.

    `shape` is (output, input, *kernel), `asked` the sparsity in force, `sparsity` the fraction of elements that are
    zero now, `pruned` the fraction that the mask zeroes, and `valid` the fraction of the pattern's units (groups,
    blocks) that are as sparse as the pattern says. `kept_magnitude` is the fraction of the sum of absolute values that
    the mask leaves. `stored` says how the tensor was written, `bytes_before` and `bytes_after` what it takes, counted
    once per tensor; `note` what is worth knowing, such as why it was not stored as asked.
    """

    name: str
    tensor: str
    node: str
    op: str
    kind: str
    shape: tuple[int, ...]
    dtype: str
    pattern: str
    criterion: str
    asked: float
    sparsity: float
    pruned: float
    valid: float
    kept_magnitude: float
    zeros: int
    size: int
    stored: str
    bytes_before: int
    bytes_after: int
    note: str = ""


@dataclass(frozen=True)
class Left:
    """A weight that was left as it is, with the reason."""

    name: str
    node: str
    reason: str


@dataclass(frozen=True)
class SparsifyResult:
    """The sparse model with what was done, layer by layer.

    `masks` are the keep masks by weight name, of shape (output, input, *kernel). `contents` are the numbers that the
    written tensors stand for, in stored shape and type. `proof` is what running the model showed, None where that was
    not asked for. `eligibility` has a row per weight; see `sparsity.eligibility`.
    """

    model: Model
    source: Model
    layers: tuple[Layer, ...]
    left: tuple[Left, ...]
    masks: Mapping[str, Array] = field(repr=False, default_factory=dict)
    contents: Mapping[str, Array] = field(repr=False, default_factory=dict)
    proof: Proof | None = None
    eligibility: Sequence[Mapping[str, Any]] = field(repr=False, default=())
    permuted: Sequence[Mapping[str, Any]] = field(repr=False, default=())
    scope: str = "local"
    store: str = "dense"
    steps: Sequence[float] = ()

    @property
    def size(self) -> int:
        """Elements of the chosen weights."""
        return sum(layer.size for layer in self.layers)

    @property
    def zeros(self) -> int:
        """Zeros among them."""
        return sum(layer.zeros for layer in self.layers)

    @property
    def sparsity(self) -> float:
        """Fraction of the chosen weights' elements that are zero."""
        return self.zeros / self.size if self.size else 0.0

    def totals(self) -> dict[str, Any]:
        """Sum up the layers."""
        tensors = {layer.tensor: layer for layer in self.layers}.values()
        before, after = (sum(getattr(t, name) for t in tensors) for name in ("bytes_before", "bytes_after"))
        return {
            "layers": len(self.layers),
            "size": self.size,
            "zeros": self.zeros,
            "sparsity": self.sparsity,
            "bytes": {"before": before, "after": after, "ratio": after / before if before else None},
        }

    def to_json(self) -> dict[str, Any]:
        """Give the fields of `sparsify --json` that tell what was done."""
        return {
            "scope": self.scope,
            "store": self.store,
            "steps": list(self.steps),
            "total": self.totals(),
            "layers": [{**asdict(layer), "shape": list(layer.shape)} for layer in self.layers],
            "left": [asdict(row) for row in self.left],
            "permuted": [dict(row) for row in self.permuted],
            "eligibility": [dict(row) for row in self.eligibility],
            "verification": self.proof.to_json() if self.proof is not None else None,
        }
