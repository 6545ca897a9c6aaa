"""Connected components over integers, vectorised."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

Labels = np.ndarray[Any, np.dtype[np.int64]]


def connected_components(n: int, a: Sequence[Labels], b: Sequence[Labels]) -> Labels:
    """Give each of 0..n-1 the smallest member of its component, for edges a[k][j] — b[k][j].

    Hook roots to smaller roots, then shorten paths, until nothing changes.
    """
    parent = np.arange(n, dtype=np.int64)
    if not a:
        return parent
    u, v = np.concatenate(a), np.concatenate(b)
    while True:
        pu, pv = parent[u], parent[v]
        differ = pu != pv
        if not differ.any():
            return parent
        u, v, pu, pv = u[differ], v[differ], pu[differ], pv[differ]
        np.minimum.at(parent, np.maximum(pu, pv), np.minimum(pu, pv))
        while True:
            shorter = parent[parent]
            if (shorter == parent).all():
                break
            parent = shorter
