"""The default chains: everything that torch.ao's structured sparsifier has a cutting function for, and no more.

A chain only names a place in the graph; what goes together there is worked out by the engine, so a chain that is not
in the table is pruned just as well. Differences from torch.ao, where ONNX cannot tell or need not:

- `Conv` stands for any number of spatial axes;
- MaxPool and AveragePool of any window stand for the adaptive pools that they are exported as, and a mean over space
  for the global one;
- an LSTM of several layers is several nodes, and is one `lstm`;
- casts, dropout and quantization may stand anywhere between two layers.

Source: torch/ao/pruning/_experimental/pruner/base_structured_sparsifier.py, `_get_default_structured_pruning_patterns`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from .activations import FUSED, VARIANTS, Activation
from .layers import LSTM, AdaptivePool, Convolution, Flatten, LayerNorm, Linear, Plain, Pool, PooledFlat
from .pattern import TRANSPARENT, OneOf, Op, Output, Part, Pattern, Step
from .registry import SETS, register_chain

if TYPE_CHECKING:
    import onnx_graphsurgeon as gs

_PLAIN: Final[dict[str, tuple[Step, ...]]] = {
    "linear-output": (Linear, Output()),
    "linear-linear": (Linear, Linear),
    "conv-output": (Plain, Output()),
    "conv-conv": (Plain, Convolution),
    "conv-adaptive_pool-flatten-linear": (Plain, OneOf((AdaptivePool, Flatten), PooledFlat), Linear),
    "lstm-linear": (LSTM, Linear),
    "lstm-layernorm-linear": (LSTM, LayerNorm, Linear),
}


def _fused(name: str) -> Step:
    """ONNX Runtime's convolution with the activation inside, which is both steps at once."""
    operators = {operator for operator, meaning in FUSED.items() if meaning == name}

    def holds(node: gs.Node) -> bool:
        return node.attrs.get("activation") in operators

    return Part("conv", Part(f"activation.{name}", Op("com.microsoft::FusedConv", input=0, where=holds)))


def _activated(activation: Part) -> Step:
    names = [name for name in FUSED.values() if activation.name in ("activation", f"activation.{name}")]
    return OneOf((Plain, activation), *map(_fused, names))


def _with_activation(activation: Part) -> dict[str, tuple[Step, ...]]:
    """Give the chains around one activation, by names with `{}` in its place."""
    to_linear = OneOf((AdaptivePool, Flatten), PooledFlat)
    return {
        "linear-{}-linear": (Linear, activation, Linear),
        "conv-{}-conv": (_activated(activation), Convolution),
        "conv-{}-pool-conv": (_activated(activation), Pool, Convolution),
        "conv-pool-{}-conv": (Plain, Pool, activation, Convolution),
        "conv-{}-adaptive_pool-flatten-linear": (_activated(activation), to_linear, Linear),
        "conv-adaptive_pool-{}-flatten-linear": (
            Plain,
            OneOf((AdaptivePool, activation, Flatten), (PooledFlat, activation)),
            Linear,
        ),
    }


def _register() -> tuple[tuple[str, ...], frozenset[str]]:
    """File every chain under its own name, and one that stands for all activations; give these and all own names."""
    families = list(_PLAIN)
    names = set(_PLAIN)
    for name, steps in _PLAIN.items():
        register_chain(name, Pattern(steps, name=name, through=TRANSPARENT))
    for template, steps in _with_activation(Activation).items():
        families.append(template.format("activation"))
        register_chain(families[-1], Pattern(steps, name=template.format("{activation}"), through=TRANSPARENT))
    for variant, part in VARIANTS.items():
        for template, steps in _with_activation(part).items():
            names.add(template.format(variant))
            register_chain(template.format(variant), Pattern(steps, name=template.format(variant), through=TRANSPARENT))
    return tuple(families), frozenset(names)


_FAMILIES, _NAMES = _register()

#: The names of all chains of the table; `match(graph, "default")` finds the same, faster.
default: Final[frozenset[str]] = _NAMES
SETS["default"] = _FAMILIES
