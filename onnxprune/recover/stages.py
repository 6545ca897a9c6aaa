"""Stages: which products are repaired together, so that few runs of the model are needed."""

from __future__ import annotations

from collections.abc import Sequence

from ..axes.analysis import Analysis
from .products import Product


def stages(analysis: Analysis, products: Sequence[Product], changed: set[str]) -> list[list[Product]]:
    """Order the products that a change of the initializers `changed` reaches: each after those it depends on.

    Products of one stage do not depend on each other. What multiplies the state of a recurrent layer comes after what
    multiplies its input, and twice: with other weights the state itself becomes another.
    """
    nodes = analysis.model.flat.nodes
    at: dict[int, list[Product]] = {}
    for product in products:
        at.setdefault(product.node, []).append(product)
    depth: dict[str, int] = {}
    touched: set[str] = set(changed)
    rounds: dict[int, list[Product]] = {}
    for k, node in enumerate(nodes):
        names = [n for n in node.input if n]
        here = max((depth.get(n, 0) for n in names), default=0)
        reached = any(n in touched for n in names)
        own = [p for p in at.get(k, ()) if reached]
        for product in own:
            for later in (1, 2) if product.reads_state else (0,):
                rounds.setdefault(here + later, []).append(product)
        taken = 3 if any(p.reads_state for p in own) else 1 if own else 0
        for out in node.output:
            depth[out] = here + taken
            if reached:
                touched.add(out)
    return [rounds[d] for d in sorted(rounds)]
