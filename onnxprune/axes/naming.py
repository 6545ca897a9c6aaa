"""Names and kinds of groups: what people call them."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .collect import Collection
    from .groups import Member

KINDS = ("channels", "features", "heads", "head_dim", "hidden", "groups", "embedding")
_STRONG = ("hidden", "heads", "head_dim", "groups", "embedding")
_SUFFIX = re.compile(r"[./_](weight|bias|kernel|gamma|beta|scale|weight_bias|w|b|W|B|weight_quantized)$")
_MADE_UP = re.compile(r"^(val_\d+|onnx::\w+_\d+|\d+|[a-z_]*constant_?\d*|p2o\.[\w.]*|_?[a-z]+_\d+)$", re.IGNORECASE)


def kind_of(hints: Sequence[tuple[str, int]], inexact: bool) -> str:
    """Choose a group's kind from what the rules call its axes.

    A width that linear layers write and a normalization runs over is an embedding (the residual stream).
    """
    names = [kind for kind, _ in hints]
    for kind in _STRONG:
        if kind in names:
            return kind
    channels, features = names.count("channels"), names.count("features")
    if features > channels:
        return "embedding" if inexact and features > 1 else "features"
    return "channels" if channels else "features"


def group_ids(
    collection: Collection,
    members: Mapping[int, Sequence[Member]],
    kinds: Mapping[int, str],
) -> dict[int, str]:
    """Name every group after the layer that produces it, distinctly; members come with their producers first."""
    ids: dict[int, str] = {}
    taken: set[str] = set()
    bases = {g: _base_name(collection, rows) for g, rows in members.items()}
    counts: dict[str, int] = {}
    for base in bases.values():
        counts[base] = counts.get(base, 0) + 1
    for g, base in bases.items():
        name = base if counts[base] == 1 else f"{base}:{kinds[g]}"
        number = 2
        unique = name
        while unique in taken:
            unique = f"{name}:{number}"
            number += 1
        taken.add(unique)
        ids[g] = unique
    return ids


def _base_name(collection: Collection, rows: Sequence[Member]) -> str:
    """Name after the first producing weight that people named, else after the node that reads the first weight."""
    for row in rows:
        if row.role != "input" and not _MADE_UP.match(row.initializer):
            return _SUFFIX.sub("", row.initializer)
    first = rows[0].initializer
    readers = sorted(op.node.name for op in collection.ops if any(t.name == first for t in op.node.inputs))
    return next((name for name in readers if name), _SUFFIX.sub("", first))
