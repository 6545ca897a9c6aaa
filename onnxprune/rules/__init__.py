"""Operator rules, one file per family. Importing this package registers them all."""

from . import (
    attention,
    attention_ms,
    contraction,
    control_flow,
    convolution,
    elementwise,
    fused,
    indexing,
    movement,
    normalization,
    pooling,
    quantization,
    recurrent,
    reduction,
    shapes,
    skip_norm,
)

__all__ = [
    "attention",
    "attention_ms",
    "contraction",
    "control_flow",
    "convolution",
    "elementwise",
    "fused",
    "indexing",
    "movement",
    "normalization",
    "pooling",
    "quantization",
    "recurrent",
    "reduction",
    "shapes",
    "skip_norm",
]
