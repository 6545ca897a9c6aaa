"""Outputs of two models on the same feeds, compared output by output.

Statistics are accumulated feed by feed, so that any amount of data can be compared.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from .tensors import Array

# Elements that are compared at a time: each takes some fifty bytes then.
BLOCK = 1 << 22


def leaves(value: Any) -> Iterator[Array]:
    """Give the arrays in an output: a tensor is one, sequences and maps hold any number, a map's keys count too."""
    if isinstance(value, Mapping):
        keys = sorted(value)
        yield np.asarray(keys)
        for key in keys:
            yield from leaves(value[key])
    elif isinstance(value, (list, tuple)):
        yield np.asarray(len(value))
        for item in value:
            yield from leaves(item)
    else:
        yield np.asarray(value)


def is_float(array: Array) -> bool:
    """Say whether an array holds floating-point numbers, the ML types among them."""
    return array.dtype.kind == "f" or "float" in array.dtype.name


@dataclass
class OutputComparison:
    """How far one output of a candidate is from a reference's, over the feeds added so far.

    `max_abs` is the largest difference of floats, `scale` the largest finite magnitude of the reference, `mismatch`
    the fraction of integers, booleans and texts that differ. NaN equals NaN and an infinity its like at the same
    place; anything else beside them differs by infinity, and so do outputs of different structure or shape.
    """

    name: str
    max_abs: float = 0.0
    scale: float = 0.0
    problem: str | None = None
    n_discrete: int = 0
    n_mismatched: int = 0
    varies: bool | None = None
    dot: float = 0.0
    square_reference: float = 0.0
    square_candidate: float = 0.0
    square_error: float = 0.0
    n_rows: int = 0
    n_top1: int = 0
    rank: int = 0
    first: list[Array] | None = field(default=None, repr=False)

    def add(self, reference: Any, candidate: Any) -> None:
        """Take in the output for one feed."""
        a, b = list(leaves(reference)), list(leaves(candidate))
        self._see_variation(a)
        if len(a) != len(b):
            self._differs(f"structure differs ({len(a)} and {len(b)} parts)")
            return
        for x, y in zip(a, b, strict=True):
            if x.shape != y.shape or x.dtype != y.dtype:
                kinds = f"{x.dtype.name}{list(x.shape)} and {y.dtype.name}{list(y.shape)}"
                self._differs(f"shape or type differs ({kinds})")
            elif is_float(x):
                self._floats(x, y)
            else:
                self.n_discrete += x.size
                self.n_mismatched += int(np.count_nonzero(x != y))

    @property
    def max_rel(self) -> float:
        """`max_abs` relative to the reference's range; 0 for equal, infinite for unequal to an all-zero reference."""
        if self.max_abs == 0:
            return 0.0
        return self.max_abs / self.scale if self.scale > 0 else float("inf")

    @property
    def mismatch(self) -> float:
        """Fraction of discrete entries that differ."""
        return self.n_mismatched / self.n_discrete if self.n_discrete else 0.0

    @property
    def cosine(self) -> float | None:
        """Cosine of the angle between the two outputs, all feeds taken as one vector; None where one is zero."""
        norm = (self.square_reference * self.square_candidate) ** 0.5
        return min(1.0, max(-1.0, self.dot / norm)) if norm > 0 else None

    @property
    def relative_error(self) -> float | None:
        """Norm of the difference over the norm of the reference; None where that is zero."""
        return (self.square_error / self.square_reference) ** 0.5 if self.square_reference > 0 else None

    @property
    def top1(self) -> float | None:
        """Fraction of rows whose largest entry is at the same place; None where rows are not scores of classes."""
        return self.n_top1 / self.n_rows if self.n_rows else None

    def within(self, rtol: float, atol: float) -> bool:
        """Say whether floats differ by at most atol + rtol * scale, and at most the fraction rtol of the rest."""
        return self.problem is None and self.max_abs <= atol + rtol * self.scale and self.mismatch <= rtol

    def _differs(self, problem: str) -> None:
        self.problem, self.max_abs = problem, float("inf")

    def _floats(self, x: Array, y: Array) -> None:
        if not x.size:
            return
        self.rank = x.ndim
        for start in range(0, x.size, BLOCK):
            self._block(*(a.reshape(-1)[start : start + BLOCK].astype(np.float64) for a in (x, y)))
        if x.ndim in (2, 3) and x.shape[-1] > 1:
            finite = np.isfinite(x) & np.isfinite(y)
            largest, found = (np.where(finite, a, a.dtype.type(0)).argmax(-1) for a in (x, y))
            self.n_rows += largest.size
            self.n_top1 += int(np.count_nonzero(largest == found))

    def _block(self, x: Array, y: Array) -> None:
        both = np.isfinite(x) & np.isfinite(y)
        odd = ~both
        if odd.any():
            alike = (np.isnan(x[odd]) & np.isnan(y[odd])) | (x[odd] == y[odd])
            if not alike.all():
                self._differs("NaN or infinity on one side only")
            self.scale = max(self.scale, float(np.abs(x[np.isfinite(x)]).max(initial=0.0)))
            x, y = np.where(both, x, 0.0), np.where(both, y, 0.0)
        difference = x - y
        self.max_abs = max(self.max_abs, float(np.abs(difference).max()))
        self.scale = max(self.scale, float(np.abs(x).max()))
        # Not by BLAS: its sums depend on the number of threads.
        self.dot += float(np.sum(x * y))
        self.square_reference += float(np.sum(x * x))
        self.square_candidate += float(np.sum(y * y))
        self.square_error += float(np.sum(difference * difference))

    def _see_variation(self, arrays: list[Array]) -> None:
        """Note whether the reference changes from feed to feed, or from sample to sample inside a feed."""
        if self.varies:
            return
        rows = [a for a in arrays if a.ndim and a.shape[0] > 1]
        within = any(bool(np.any(a[1:] != a[:1])) for a in rows)
        if self.first is None:
            self.first = arrays
            self.varies = True if within else None
            return
        before = self.first
        same = len(before) == len(arrays) and all(map(_equal, before, arrays))
        self.varies = within or not same


def _equal(a: Array, b: Array) -> bool:
    return a.shape == b.shape and a.tobytes() == b.tobytes()


@dataclass
class Comparison:
    """All outputs of a candidate against those of a reference."""

    outputs: list[OutputComparison]

    @staticmethod
    def of(names: Sequence[str]) -> Comparison:
        """Start with nothing seen."""
        return Comparison([OutputComparison(name) for name in names])

    def add(self, reference: Sequence[Any], candidate: Sequence[Any]) -> None:
        """Take in one feed's outputs."""
        for output, x, y in zip(self.outputs, reference, candidate, strict=True):
            output.add(x, y)

    def within(self, rtol: float, atol: float) -> bool:
        """Say whether every output is within the tolerances of `OutputComparison.within`."""
        return all(output.within(rtol, atol) for output in self.outputs)

    @property
    def worst(self) -> OutputComparison | None:
        """The output that is farthest off."""
        return max(self.outputs, key=lambda o: (o.max_rel, o.mismatch), default=None)
