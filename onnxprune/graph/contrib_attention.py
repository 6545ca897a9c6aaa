"""Output shapes of onnxruntime's attention and normalization operators; an input that is left out has shape ().

Source: onnxruntime docs/ContribOperators.md.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

Shape = tuple[int, ...]
Attributes = Mapping[str, Any]


def _like_first(_: Attributes, x: Sequence[Shape]) -> list[Shape]:
    return [x[0]]


def _skip_norm(_: Attributes, x: Sequence[Shape]) -> list[Shape]:
    return [x[0], (*x[0][:-1], 1), (*x[0][:-1], 1), x[0]]


def _norm(attributes: Attributes, x: Sequence[Shape]) -> list[Shape]:
    at = int(attributes.get("axis", -1)) % len(x[0])
    return [x[0], (*x[0][:at], *(1 for _ in x[0][at:]))]


def _embed_norm(_: Attributes, x: Sequence[Shape]) -> list[Shape]:
    y = (*x[0], x[2][1])
    return [y, x[0][:1], y]


def _attention(attributes: Attributes, x: Sequence[Shape]) -> list[Shape]:
    sizes = attributes.get("qkv_hidden_sizes") or [x[1][1] // 3] * 3
    return [(*x[0][:2], int(sizes[2])), _stacked(attributes, x, 4, int(sizes[0]))]


def _quantized_attention(attributes: Attributes, x: Sequence[Shape]) -> list[Shape]:
    hidden = x[1][1] // 3
    return [(*x[0][:2], hidden), _stacked(attributes, x, 8, hidden)]


def _stacked(attributes: Attributes, x: Sequence[Shape], past: int, hidden: int) -> Shape:
    """Give the cache of keys and values in one tensor."""
    heads = int(attributes["num_heads"])
    length = x[0][1] + (x[past][3] if _given(x, past) else 0)
    return (2, x[0][0], heads, length, hidden // heads)


def _multi_head(past: int) -> Callable[[Attributes, Sequence[Shape]], list[Shape]]:
    def rule(attributes: Attributes, x: Sequence[Shape]) -> list[Shape]:
        heads = int(attributes["num_heads"])
        batch, t = x[0][:2]
        if not _given(x, 1):
            length, size, v_size = x[0][1], x[0][4], x[0][4]
        elif not _given(x, 2):
            length, size, v_size = x[1][1], x[1][4], x[1][4]
        elif len(x[1]) == len(x[2]) == 4:
            length, size, v_size = x[1][2], x[1][3], x[2][3]
        else:
            length, size, v_size = x[1][1], x[0][2] // heads, x[2][2] // heads
        total = length + (x[past][2] if _given(x, past) else 0)
        caches = [(batch, heads, total, size), (batch, heads, total, v_size)]
        return [(batch, t, heads * v_size), *caches, (batch, heads, t, total)]

    return rule


def _group_query(attributes: Attributes, x: Sequence[Shape]) -> list[Shape]:
    heads, kv = int(attributes["num_heads"]), int(attributes["kv_num_heads"])
    packed = not _given(x, 1)
    size = x[0][2] // (heads + 2 * kv if packed else heads)
    y = (*x[0][:2], heads * size)
    if _given(x, 3):  # how long the caches get depends on the buffer that holds them
        return [y]
    cache = (x[0][0], kv, x[0][1] if packed else x[1][1], size)
    return [y, cache, cache]


def _given(x: Sequence[Shape], slot: int) -> bool:
    return slot < len(x) and x[slot] != ()


ATTENTION_SHAPES: dict[str, Callable[[Attributes, Sequence[Shape]], list[Shape]]] = {
    "RotaryEmbedding": _like_first,
    "SkipLayerNormalization": _skip_norm,
    "SkipSimplifiedLayerNormalization": _skip_norm,
    "SimplifiedLayerNormalization": _norm,
    "EmbedLayerNormalization": _embed_norm,
    "Attention": _attention,
    "QAttention": _quantized_attention,
    "MultiHeadAttention": _multi_head(past=6),
    "DecoderMaskedMultiHeadAttention": _multi_head(past=5),
    "GroupQueryAttention": _group_query,
}
