"""Operator rules, one file per family. Importing this package registers them all."""

from . import contraction, convolution, elementwise, indexing, movement, normalization, pooling, recurrent, reduction, shapes

__all__ = [
    "contraction",
    "convolution",
    "elementwise",
    "indexing",
    "movement",
    "normalization",
    "pooling",
    "recurrent",
    "reduction",
    "shapes",
]
