"""Names for places in a graph: chains of nodes, found by pattern.

A chain says where, never how: cutting is the engine's. See `pattern` for how chains are written, `table` for those that
have names from the start.
"""

from __future__ import annotations

from .activations import Activation
from .layers import LSTM, AdaptivePool, Convolution, Flatten, LayerNorm, Linear, Norm, Pool
from .matcher import Capture, Match, match
from .pattern import TRANSPARENT, Any, Branch, OneOf, Op, Optional, Output, Part, Pattern, Repeat
from .registry import chains, register_chain
from .table import default
from .weights import chain_weights

__all__ = [
    "LSTM",
    "TRANSPARENT",
    "Activation",
    "AdaptivePool",
    "Any",
    "Branch",
    "Capture",
    "Convolution",
    "Flatten",
    "LayerNorm",
    "Linear",
    "Match",
    "Norm",
    "OneOf",
    "Op",
    "Optional",
    "Output",
    "Part",
    "Pattern",
    "Pool",
    "Repeat",
    "chain_weights",
    "chains",
    "default",
    "match",
    "register_chain",
]
