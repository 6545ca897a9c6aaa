"""Random feeds that a model can run on, for smoke tests and for checks that need no real data."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import onnx

from ..errors import DataError
from ..graph.model import Model
from .feeds import Feed
from .inputs import Array, InputSpec, input_specs
from .sizes import BATCH, input_sizes

INTEGER_LIMIT = 16
MAX_BYTES = 1 << 27
SEQUENCE_LENGTH = 2
_PASSES_VALUES = frozenset(
    ("Cast", "Identity", "Reshape", "Squeeze", "Unsqueeze", "Flatten", "Transpose", "Expand", "Slice", "Clip", "Tile")
)
# (op, slot of the indices): slot of the table they look up.
_LOOKUPS = {
    ("Gather", 1): 0,
    ("GatherElements", 1): 0,
    ("GatherBlockQuantized", 1): 0,
    ("EmbedLayerNormalization", 0): 2,
    ("EmbedLayerNormalization", 1): 4,
}


def random_feeds(
    model: Model,
    n: int = 8,
    *,
    seed: int = 0,
    input_shapes: Mapping[str, Sequence[int]] | None = None,
    batch: int = BATCH,
    length: int | None = None,
) -> list[Feed]:
    """Draw `n` feeds; the same arguments give the same feeds.

    Floats are standard normal. Integers stay below the smallest table they look up, or below 16; masks are ones;
    lengths are those of the sequence axis. Dynamic axes: see `sizes.input_sizes`. Inputs that are very large get fewer
    feeds; raises `DataError` where a single one is too much.
    """
    specs = input_specs(model)
    shapes = input_sizes(specs, input_shapes, batch=batch, length=length)
    n_bytes = sum(_n_bytes(spec, shapes[spec.name]) for spec in specs)
    if n_bytes > MAX_BYTES:
        sizes = ", ".join(f"{name!r} {list(shape)}" for name, shape in shapes.items())
        raise DataError(
            f"{model.label}: a random sample would take {n_bytes / 1e6:,.0f} MB ({sizes}); "
            "give --data, or --input-shape"
        )
    n = max(1, min(n, 2 * MAX_BYTES // max(1, n_bytes)))
    limits = _limits(model, specs)
    rng = np.random.default_rng(seed)
    return [{spec.name: _draw(spec, shapes, limits, rng) for spec in specs} for _ in range(n)]


def _n_bytes(spec: InputSpec, shape: tuple[int, ...]) -> int:
    """Count what an input takes, small types as what they are drawn from."""
    return math.prod(shape) * max(4, spec.dtype.itemsize) * (SEQUENCE_LENGTH if spec.of == "sequence" else 1)


def _draw(
    spec: InputSpec, shapes: Mapping[str, tuple[int, ...]], limits: Mapping[str, int], rng: np.random.Generator
) -> Any:
    """Draw a tensor; a sequence gets two, and an optional has a value."""
    if spec.of == "sequence":
        return [_draw_tensor(spec, shapes, limits, rng) for _ in range(SEQUENCE_LENGTH)]
    return _draw_tensor(spec, shapes, limits, rng)


def _draw_tensor(
    spec: InputSpec, shapes: Mapping[str, tuple[int, ...]], limits: Mapping[str, int], rng: np.random.Generator
) -> Array:
    shape, name = shapes[spec.name], spec.name.lower()
    if spec.dtype.kind in "OUS":
        return np.full(shape, "a", dtype=object)
    if "mask" in name:
        return np.ones(shape, dtype=spec.dtype)
    if spec.dtype.kind == "b":
        return np.asarray(rng.random(shape) < 0.5)
    if spec.dtype.kind not in "iu":
        return np.asarray(rng.standard_normal(shape)).astype(spec.dtype)
    return _draw_integers(spec, shapes, limits, rng)


def _draw_integers(
    spec: InputSpec, shapes: Mapping[str, tuple[int, ...]], limits: Mapping[str, int], rng: np.random.Generator
) -> Array:
    shape, name = shapes[spec.name], spec.name.lower()
    if spec.name in limits:
        return rng.integers(0, max(1, limits[spec.name]), shape).astype(spec.dtype)
    if "len" in name and len(shape) <= 1:
        lengths = [s[1] for other, s in shapes.items() if other != spec.name and len(s) > 1]
        return np.full(shape, min(lengths, default=1), dtype=spec.dtype)
    if name in ("sr", "sample_rate", "sampling_rate"):
        return np.full(shape, 16_000, dtype=spec.dtype)
    if spec.dtype.itemsize == 1:
        info = np.iinfo(spec.dtype)
        return rng.integers(info.min, info.max, shape, endpoint=True).astype(spec.dtype)
    return rng.integers(0, INTEGER_LIMIT, shape).astype(spec.dtype)


def _limits(model: Model, specs: Sequence[InputSpec]) -> dict[str, int]:
    """Give, per integer input, the size of the smallest table its values look up, where the graph shows one."""
    graph = model.skeleton.graph
    tables = {name: tuple(tensor.dims) for name, tensor in model.tensors.items()}
    uses: defaultdict[str, list[tuple[onnx.NodeProto, int]]] = defaultdict(list)
    for node in graph.node:
        for slot, name in enumerate(node.input):
            uses[name].append((node, slot))
        # A table stored in another type is still as long: Cast, DequantizeLinear.
        if node.op_type in ("Cast", "DequantizeLinear", "Identity") and node.input[0] in tables:
            tables[node.output[0]] = tables[node.input[0]]
    found = {}
    for spec in specs:
        sizes = list(_lookups(spec.name, uses, tables)) if spec.dtype.kind in "iu" else []
        if sizes:
            found[spec.name] = min(sizes)
    return found


def _lookups(
    name: str, uses: Mapping[str, list[tuple[onnx.NodeProto, int]]], tables: Mapping[str, tuple[int, ...]]
) -> Iterator[int]:
    waiting, seen = [name], {name}
    while waiting:
        for node, slot in uses.get(waiting.pop(), ()):
            table = _LOOKUPS.get((node.op_type, slot))
            if table is not None and len(node.input) > table and node.input[table] in tables:
                axis = next((a.i for a in node.attribute if a.name in ("axis", "gather_axis")), 0)
                sizes = tables[node.input[table]]
                if -len(sizes) <= axis < len(sizes):
                    yield sizes[axis]
            elif node.op_type in _PASSES_VALUES and slot == 0:
                waiting += [o for o in node.output if o not in seen]
                seen.update(node.output)
