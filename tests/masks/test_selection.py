"""Selection among very many scores: what a sample says is checked, and the result is that of sorting."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from onnxprune.masks import numpy_kernels
from onnxprune.masks.numpy_kernels import Array, lowest

N = 3000
SCORES: dict[str, Callable[[np.random.Generator], Array]] = {
    "spread": lambda rng: rng.standard_normal(N),
    "few values": lambda rng: rng.integers(0, 4, N).astype(np.float32),
    "all the same": lambda rng: np.zeros(N),  # noqa: ARG005
    "mostly barred": lambda rng: np.where(rng.random(N) < 0.9, -np.inf, rng.random(N)),
    # Every element that the sample sees is huge, and no other is.
    "hidden from the sample": lambda rng: np.where(np.arange(N) % 47 == 0, 1e9, rng.random(N)),
    "rising": lambda rng: np.arange(N) + rng.random(),
}


@pytest.mark.parametrize("kind", SCORES)
def test_the_lowest_of_many_are_those_that_sorting_gives(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(numpy_kernels, "_MANY", 100)
    monkeypatch.setattr(numpy_kernels, "_SAMPLE", 64)
    assert N // 64 | 1 == 47
    scores = SCORES[kind](np.random.default_rng(4))
    order = np.lexsort((-np.arange(N), scores))
    for k in (1, 2, 40, 1499, 1500, 2959, N - 1):
        expected = np.zeros(N, dtype=bool)
        expected[order[:k]] = True
        np.testing.assert_array_equal(lowest(scores.reshape(60, -1), k).reshape(-1), expected)
