"""The numbers in weights that were found: what is written for a mask, and which of them nothing can be said of."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from ..graph.model import Model
from .weights import Source, Weight

Array = np.ndarray[Any, Any]


def contents(model: Model, source: Source, keep: Sequence[Array], values: Sequence[Array] | None = None) -> Array:
    """Give a tensor's new content: where `keep` is False, exactly what stands for 0; elsewhere the old number.

    `keep` has one bool array per matrix; `values`, when given, new floats for what is kept. The result has the stored
    shape and type. Codes of new values are rounded to the nearest.
    """
    array = model.array(source.tensor)
    kept = source.layout.back(np.stack(list(keep)))
    if values is not None:
        fresh = source.layout.back(np.stack(list(values)))
        array = source.codes.encoded(model, fresh, array) if source.codes is not None else fresh.astype(array.dtype)
    # A negative zero among the survivors stays as it was; what is pruned is the positive one.
    return np.where(kept, array, source.zero(model)).astype(array.dtype, copy=False)


def nonfinite(model: Model, weights: Iterable[Weight]) -> Iterator[tuple[Weight, int]]:
    """List the weights that hold numbers which are not finite, with how many."""
    for weight in weights:
        bad = int(np.count_nonzero(~np.isfinite(weight.values(model))))
        if bad:
            yield weight, bad
