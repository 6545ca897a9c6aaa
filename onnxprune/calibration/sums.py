"""Running sums over rows of features, and the statistics they amount to."""

from __future__ import annotations

from typing import Any

import numpy as np

from .statistics import NEEDS, Floats, Statistics

Array = np.ndarray[Any, Any]
ROWS_AT_ONCE = 8192
# Fewer rows than this wait for more: adding a product costs as much for one row as for many.
ROWS_AT_LEAST = 512


class Sums:
    """Sums of what `needs` asks for over chunks (groups, rows, features).

    Products are taken in the chunk's own precision over at most `ROWS_AT_ONCE` rows and added in float64, so that the
    error does not grow with the number of samples.
    """

    def __init__(self, needs: frozenset[str]) -> None:
        self.needs = needs
        self.n_rows = 0
        self.flaw = ""
        self._waiting: list[tuple[Array, Array | None]] = []
        self._sum: Floats | None = None
        self._square: Floats | None = None
        self._gram: Floats | None = None
        self._cross: Floats | None = None
        self._zeros: Floats | None = None
        # Squares about a value near the mean: E[x^2] - E[x]^2 would lose a small variance beside a large mean.
        self._shift: Array | None = None
        self._spread: Floats | None = None

    def add(self, rows: Array, reference: Array | None = None) -> None:
        """Add a chunk (groups, rows, features), with the same rows of the reference where "cross" is needed."""
        self._waiting.append((rows, reference))
        if sum(part.shape[1] for part, _ in self._waiting) >= ROWS_AT_LEAST:
            self._settle()

    def _settle(self) -> None:
        """Add the chunks that wait."""
        waiting, self._waiting = self._waiting, []
        if not waiting:
            return
        rows = np.concatenate([part for part, _ in waiting], axis=1) if len(waiting) > 1 else waiting[0][0]
        others = [other for _, other in waiting if other is not None]
        reference = np.concatenate(others, axis=1) if others else None
        for start in range(0, rows.shape[1], ROWS_AT_ONCE):
            part = slice(start, start + ROWS_AT_ONCE)
            self._add(rows[:, part], None if reference is None else reference[:, part])

    def _add(self, rows: Array, reference: Array | None) -> None:
        with np.errstate(over="ignore", invalid="ignore"):
            self._accumulate(rows)
            if reference is not None:
                self._cross = _added(self._cross, np.matmul(rows.swapaxes(1, 2), reference))
        if self._sum is not None and not np.isfinite(self._sum).all():
            self.flaw = "it holds values that are not finite on the samples"

    def _accumulate(self, rows: Array) -> None:
        self.n_rows += rows.shape[1]
        self._sum = _added(self._sum, np.matmul(np.ones((1, rows.shape[1]), rows.dtype), rows)[:, 0])
        if "gram" in self.needs:
            self._gram = _added(self._gram, np.matmul(rows.swapaxes(1, 2), rows))
        elif "square" in self.needs:
            self._square = _added(self._square, _squares(rows))
        if "variance" in self.needs:
            if self._shift is None:
                self._shift = rows.mean(axis=1, keepdims=True, dtype=np.float64).astype(rows.dtype)
            self._spread = _added(self._spread, _squares(rows - self._shift))
        if "zeros" in self.needs:
            self._zeros = _added(self._zeros, (rows == 0).sum(axis=1))

    def add_lookups(self, counts: Array) -> None:
        """Add look-ups given as counts (1, 1, entries): each is a row that is 1 at one entry."""
        n = int(counts.sum())
        self.n_rows += n
        seen = counts[:, 0].astype(np.float64)
        self._sum = _added(self._sum, seen)
        self._zeros = _added(self._zeros, n - seen)
        self._square = self._spread = self._sum
        self._shift = np.zeros((1, 1, 1))

    def statistics(self, n_samples: int, needs: frozenset[str]) -> Statistics:
        """Divide by the number of rows, and give what is in `needs`."""
        self._settle()
        if self.flaw or not self.n_rows:
            return Statistics(n_samples, self.n_rows, missing=self.flaw or "it holds no rows on the samples")
        n = self.n_rows
        sums = {"mean": self._sum, "square": self._square, "gram": self._gram, "cross": self._cross}
        sums["zeros"] = self._zeros
        found = {need: total / n for need, total in sums.items() if total is not None}
        if "gram" in found:
            found["square"] = np.ascontiguousarray(np.diagonal(found["gram"], axis1=1, axis2=2))
        if self._spread is not None and self._shift is not None:
            found["variance"] = np.maximum(self._spread / n - (found["mean"] - self._shift[:, 0]) ** 2, 0.0)
        if not all(np.isfinite(value).all() for value in found.values()):
            return Statistics(n_samples, n, missing="its squares are not finite on the samples")
        given = {need: found.get(need) if need in needs else None for need in NEEDS}
        return Statistics(
            n_samples,
            n,
            mean=given["mean"],
            square=given["square"],
            variance=given["variance"],
            zeros=given["zeros"],
            gram=given["gram"],
            cross=given["cross"],
        )


def _squares(rows: Array) -> Floats:
    return np.asarray(np.einsum("grf,grf->gf", rows, rows, dtype=np.float64))


def _added(total: Floats | None, part: Array) -> Floats:
    if total is None:
        return part.astype(np.float64)
    total += part
    return total
