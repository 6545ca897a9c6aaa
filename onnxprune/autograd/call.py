"""One node as its torch function sees it, and the registry of these functions by (domain, operator)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import onnx

from ..registry import Registry

Tensor = Any
Run = Callable[..., Any]
ONNX_DOMAINS = ("", "ai.onnx")


class UnsupportedError(Exception):
    """A variant of an operator that has no counterpart in torch here; its text names the variant."""


@dataclass(frozen=True)
class Call:
    """A node without its inputs: what a torch function needs to know besides tensors.

    `opset` is the version of the node's domain that the model imports; `n_outputs` counts the outputs it names.
    """

    op: str
    domain: str
    name: str
    opset: int
    n_outputs: int = 1
    attributes: Mapping[str, Any] = field(default_factory=dict)

    def get(self, key: str, default: Any = None) -> Any:
        """Give an attribute, text as str."""
        value = self.attributes.get(key, default)
        return value.decode() if isinstance(value, bytes) else value

    @property
    def label(self) -> str:
        """Name the node in messages."""
        return f"node {self.name!r} ({self.domain + '.' if self.domain else ''}{self.op})"


torch_functions: Registry[Run] = Registry("torch function")


def key(domain: str, op: str) -> str:
    """Spell the name that an operator is registered under."""
    return op if domain in ONNX_DOMAINS else f"{domain}.{op}"


def torch_op(*ops: str, domain: str = "") -> Callable[[Run], Run]:
    """Register a function of (call, *inputs) for operators; inputs left out are None.

    It gives a tensor, or a tuple of them for the node's first outputs.
    """
    return torch_functions.register(*(key(domain, op) for op in ops))


def call_of(node: onnx.NodeProto, opsets: Mapping[str, int]) -> Call:
    """Read a node; tensors and graphs among its attributes stay as they are."""
    attributes = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
    domain = "" if node.domain in ONNX_DOMAINS else node.domain
    name = node.name or next((o for o in node.output if o), "")
    return Call(node.op_type, domain, name, opsets.get(domain, 1), len(node.output), attributes)
