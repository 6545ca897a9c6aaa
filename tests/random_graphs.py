"""Random valid ONNX graphs from a seed, built of blocks that stand for how real networks are written.

    python -m tests.random_graphs SEED -o x.onnx
    python -m tests.random_graphs SEED --blocks conv,batch_norm,flatten -o x.onnx

A block takes a tensor and gives one: (n, c, ...) an image of one to three spatial axes, (n, c) a vector, (n, t, c) a
sequence. Sizes are pairwise different, weights small and distinct, biases present, outputs vary.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

IMAGE, VECTOR, SEQUENCE = "image", "vector", "sequence"
OPSETS = (11, 12, 13, 14, 15, 16, 17, 18, 19, 20)
RUN_BATCH, RUN_LENGTH = 3, 6
MAX_NODES = 90


@dataclass(frozen=True)
class Tensor:
    """A value while a graph is built: its shape at run time, and the symbol of every dynamic axis."""

    name: str
    shape: tuple[int, ...]
    symbols: tuple[str | None, ...]

    @property
    def c(self) -> int:
        """Give the size of the channel axis of an image or a vector, 1."""
        return self.shape[1]


@dataclass(frozen=True)
class Dim:
    """A target of a reshape: a literal size, or computed as (axes of the input multiplied) divided by `over`."""

    size: int
    axes: tuple[int, ...] = ()
    over: int = 1


@dataclass(frozen=True)
class Graph:
    """A generated model with what made it."""

    model: onnx.ModelProto
    seed: int
    blocks: tuple[str, ...]
    vocabulary: int

    @property
    def reproducer(self) -> str:
        """Give the command that writes this model."""
        return f"python -m tests.random_graphs {self.seed} --blocks {','.join(self.blocks)} -o x.onnx"

    def feeds(self, seed: int = 0) -> dict[str, np.ndarray]:
        """Make inputs for one run."""
        rng = np.random.default_rng([self.seed, seed])
        made = {}
        for value in self.model.graph.input:
            dims = value.type.tensor_type.shape.dim
            shape = [d.dim_value or {"n": RUN_BATCH, "t": RUN_LENGTH}[d.dim_param] for d in dims]
            if value.type.tensor_type.elem_type == TensorProto.INT64:
                made[value.name] = rng.integers(0, self.vocabulary, shape)
            else:
                made[value.name] = rng.standard_normal(shape).astype(np.float32)
        return made


Block = Callable[["Builder", Tensor], Tensor]


@dataclass(frozen=True)
class Entry:
    """A registered block: the domains it leads from and to, and the first opset it needs."""

    name: str
    build: Block
    source: str
    target: str
    opset: int
    flat_only: bool


BLOCKS: dict[str, Entry] = {}


def block(
    source: str, target: str | None = None, *, opset: int = 11, flat_only: bool = False
) -> Callable[[Block], Block]:
    """Register a block under its function's name; `flat_only` for images of two spatial axes."""

    def file(build: Block) -> Block:
        BLOCKS[build.__name__] = Entry(build.__name__, build, source, target or source, opset, flat_only)
        return build

    return file


class Builder:
    """Collects nodes and weights; the same seed always makes the same choices."""

    def __init__(self, seed: int) -> None:
        self.rng = np.random.default_rng(seed)
        self.opset = int(self.rng.choice(OPSETS))
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[onnx.TensorProto] = []
        self.inputs: list[onnx.ValueInfoProto] = []
        self.used: set[int] = {1, RUN_BATCH, RUN_LENGTH}
        self.batch_symbol = "n" if self.chance(0.5) else None
        self.length_symbol = "t" if self.chance(0.3) else None
        self.vocabulary = 0
        self.table: Tensor | None = None
        self.count = 0

    # --- choices ---

    def chance(self, p: float) -> bool:
        return bool(self.rng.random() < p)

    def pick(self, *options: Any) -> Any:
        return options[int(self.rng.integers(len(options)))]

    def size(self, low: int = 5, high: int = 14, multiple: int = 1) -> int:
        """Draw a size that nothing else in the graph has."""
        while True:
            free = [s for s in range(low, high) if s not in self.used and s % multiple == 0]
            if free:
                chosen = int(self.rng.choice(free))
                self.used.add(chosen)
                return chosen
            high += 6 * multiple

    # --- emitting ---

    def name(self, stem: str) -> str:
        self.count += 1
        return f"{stem}_{self.count}"

    def constant(self, array: np.ndarray, stem: str = "const", *, node: bool | None = None) -> str:
        """File a constant as an initializer, or now and then as a Constant node."""
        name = self.name(stem)
        tensor = numpy_helper.from_array(array, name)
        if self.chance(0.15) if node is None else node:
            self.nodes.append(helper.make_node("Constant", [], [name], name=f"n_{name}", value=tensor))
        else:
            self.initializers.append(tensor)
        return name

    def weight(self, *shape: int, scale: float | None = None, center: float = 0.0, stem: str = "w") -> str:
        fan = math.prod(shape[1:]) if len(shape) > 1 else 4
        spread = scale if scale is not None else 1.4 / math.sqrt(max(fan, 1))
        return self.constant((center + spread * self.rng.standard_normal(shape)).astype(np.float32), stem)

    def positive(self, *shape: int, stem: str = "s") -> str:
        return self.constant(self.rng.uniform(0.5, 1.5, shape).astype(np.float32), stem)

    def ints(self, *values: int) -> str:
        return self.constant(np.array(values, dtype=np.int64), "ints")

    def scalar(self, value: float) -> str:
        return self.constant(np.array(value, dtype=np.float32), "number")

    def raw(self, op: str, inputs: Sequence[str], n_outputs: int = 1, **attributes: Any) -> list[str]:
        outputs = [self.name(op.lower()) for _ in range(n_outputs)]
        self.nodes.append(helper.make_node(op, list(inputs), outputs, name=f"n_{outputs[0]}", **attributes))
        return outputs

    def op(self, op: str, inputs: Sequence[str], **attributes: Any) -> str:
        return self.raw(op, inputs, **attributes)[0]

    def like(self, x: Tensor, name: str) -> Tensor:
        return Tensor(name, x.shape, x.symbols)

    def resized(self, x: Tensor, name: str, axis: int, size: int) -> Tensor:
        shape = list(x.shape)
        shape[axis] = size
        return Tensor(name, tuple(shape), x.symbols)

    # --- operators whose spelling depends on the opset ---

    def unary(self, op: str, x: Tensor, *more: str, **attributes: Any) -> Tensor:
        return self.like(x, self.op(op, [x.name, *more], **attributes))

    def binary(self, op: str, a: Tensor, b: str) -> Tensor:
        return self.like(a, self.op(op, [a.name, b]))

    def _with_axes(self, op: str, x: str, axes: Sequence[int], since: int, **attributes: Any) -> str:
        if self.opset < since:
            return self.op(op, [x], axes=list(axes), **attributes)
        return self.op(op, [x, self.ints(*axes)], **attributes)

    def unsqueeze(self, x: str, *axes: int) -> str:
        return self._with_axes("Unsqueeze", x, axes, 13)

    def squeeze(self, x: str, *axes: int) -> str:
        return self._with_axes("Squeeze", x, axes, 13)

    def reduce(self, op: str, x: str, axes: Sequence[int], *, keepdims: bool) -> str:
        return self._with_axes(op, x, axes, 13 if op == "ReduceSum" else 18, keepdims=int(keepdims))

    def split(self, x: Tensor, axis: int, sizes: Sequence[int]) -> list[Tensor]:
        n = len(sizes)
        even = len(set(sizes)) == 1
        if self.opset < 13:
            bare = even and self.chance(0.5)
            names = self.raw("Split", [x.name], n, axis=axis, **({} if bare else {"split": list(sizes)}))
        elif (even or (self.opset >= 18 and self._chunks(sizes))) and self.chance(0.6):
            names = self.raw("Split", [x.name], n, axis=axis, **({"num_outputs": n} if self.opset >= 18 else {}))
        else:
            names = self.raw("Split", [x.name, self.ints(*sizes)], n, axis=axis)
        return [self.resized(x, name, axis, size) for name, size in zip(names, sizes, strict=True)]

    def _chunks(self, sizes: Sequence[int]) -> bool:
        """Say whether these are the parts that num_outputs gives: equal ones, the last smaller."""
        return len(set(sizes[:-1])) == 1 and 0 < sizes[-1] <= sizes[0] == -(-sum(sizes) // len(sizes))

    def slice(self, x: Tensor, axis: int, start: int, end: int) -> Tensor:
        size = x.shape[axis]
        low = start - size if start and self.chance(0.3) else start
        high = np.iinfo(np.int64).max if end == size and self.chance(0.5) else end
        name = self.op("Slice", [x.name, self.ints(low), self.ints(high), self.ints(axis)])
        return self.resized(x, name, axis, end - start)

    def concat(self, parts: Sequence[Tensor], axis: int) -> Tensor:
        name = self.op("Concat", [p.name for p in parts], axis=axis)
        return self.resized(parts[0], name, axis, sum(p.shape[axis] for p in parts))

    def transpose(self, x: Tensor, *perm: int) -> Tensor:
        name = self.op("Transpose", [x.name], perm=list(perm))
        return Tensor(name, tuple(x.shape[p] for p in perm), tuple(x.symbols[p] for p in perm))

    def reshape(self, x: Tensor, dims: Sequence[Dim]) -> Tensor:
        """Reshape, with the target written in one of the ways exporters write it."""
        symbols = tuple(self._symbol(x, d) for d in dims)
        style = self.pick("literal", "zero", "minus", "computed", "computed")
        target: list[int | None] = [None if s else d.size for d, s in zip(dims, symbols, strict=True)]
        for k, d in enumerate(dims):
            copies = d.axes == (k,) and d.over == 1
            if copies and (target[k] is None or style == "zero"):
                target[k] = 0
        if style == "minus" and None not in target:
            target[int(self.rng.integers(len(dims)))] = -1
        if target.count(None) == 1 and -1 not in target:
            target[target.index(None)] = -1
        if style == "computed" or None in target:
            shape = self._computed(x, dims)
        else:
            shape = self.ints(*(int(t) for t in target if t is not None))
        name = self.op("Reshape", [x.name, shape])
        return Tensor(name, tuple(d.size for d in dims), symbols)

    def _symbol(self, x: Tensor, d: Dim) -> str | None:
        found = [x.symbols[a] for a in d.axes if x.symbols[a]]
        return "*".join(s for s in found if s) or None

    def _computed(self, x: Tensor, dims: Sequence[Dim]) -> str:
        """Compute a target shape through Shape, Gather or Slice, Mul, Div and Concat."""
        shape = self.op("Shape", [x.name])
        parts = []
        for d in dims:
            factors = []
            for a in d.axes:
                if self.chance(0.5):
                    index = self.constant(np.array(a, dtype=np.int64), "ints")
                    factors.append(self.unsqueeze(self.op("Gather", [shape, index], axis=0), 0))
                else:
                    factors.append(self.op("Slice", [shape, self.ints(a), self.ints(a + 1), self.ints(0)]))
            if not factors:
                parts.append(self.ints(d.size))
                continue
            part = factors[0]
            for other in factors[1:]:
                part = self.op("Mul", [part, other])
            parts.append(self.op("Div", [part, self.ints(d.over)]) if d.over > 1 else part)
        return self.op("Concat", parts, axis=0)

    # --- layers ---

    def conv(
        self, x: Tensor, out: int, *, kernel: int = 1, stride: int = 1, groups: int = 1, weight: str | None = None,
        bias: bool | None = None,
    ) -> Tensor:  # fmt: skip
        n = len(x.shape) - 2
        w = weight or self.weight(out, x.c // groups, *[kernel] * n)
        with_bias = self.chance(0.7) if bias is None else bias
        inputs = [x.name, w, *([self.weight(out, scale=0.3, stem="b")] if with_bias else [])]
        pad = kernel // 2
        attributes: dict[str, Any] = {"kernel_shape": [kernel] * n, "pads": [pad] * 2 * n, "strides": [stride] * n}
        if groups > 1 or self.chance(0.3):
            attributes["group"] = groups
        spatial = [(d + 2 * pad - kernel) // stride + 1 for d in x.shape[2:]]
        return Tensor(self.op("Conv", inputs, **attributes), (x.shape[0], out, *spatial), x.symbols)

    def linear(self, x: Tensor, out: int, *, bias: bool | None = None, scale: float | None = None) -> Tensor:
        """Multiply the last axis by a matrix: MatMul, Gemm in its forms, or Einsum."""
        inner = x.shape[-1]
        with_bias = self.chance(0.7) if bias is None else bias
        style = self.pick("matmul", "matmul", "gemm", "einsum")
        spread = scale or 1.2 / math.sqrt(inner)
        if style == "gemm" and len(x.shape) == 2:
            transposed = self.chance(0.6)
            w = self.weight(*((out, inner) if transposed else (inner, out)), scale=spread)
            inputs = [x.name, w, *([self.weight(out, scale=0.3, stem="b")] if with_bias else [])]
            attributes: dict[str, Any] = {"transB": int(transposed)}
            if self.chance(0.3):
                attributes |= {"alpha": 0.75, "beta": 1.5}
            if self.chance(0.2):
                inputs[0] = self.transpose(x, 1, 0).name
                attributes["transA"] = 1
            return self.resized(x, self.op("Gemm", inputs, **attributes), -1, out)
        if style == "einsum" and self.opset >= 12:
            w = self.weight(out, inner, scale=spread)
            equation = self.pick("...c,dc->...d", "nc,dc->nd" if len(x.shape) == 2 else "ntc,dc->ntd")
            y = self.op("Einsum", [x.name, w], equation=equation)
        else:
            w = self.weight(inner, out, scale=spread)
            y = self.op("MatMul", [x.name, w])
        if with_bias:
            b = self.weight(out, scale=0.3, stem="b")
            y = self.op("Add", [y, b] if self.chance(0.5) else [b, y])
        return self.resized(x, y, -1, out)

    def activation(self, x: Tensor, *, keeps_zero: bool | None = None) -> Tensor:
        keeping = ["Relu", "LeakyRelu", "Elu", "Tanh", "Softsign", "Selu"]
        moving = ["Sigmoid", "Softplus", "HardSigmoid"]
        names = keeping + moving if keeps_zero is None else keeping if keeps_zero else moving
        if keeps_zero is not False and self.opset >= 14:
            names = [*names, "HardSwish"]
        if keeps_zero is not False and self.opset >= 20:
            names = [*names, "Gelu"]
        return self.unary(self.pick(*names), x)

    def layer_norm(self, x: Tensor) -> Tensor:
        c = x.shape[-1]
        scale, bias = self.positive(c), self.weight(c, scale=0.3, stem="b")
        if self.opset >= 17 and self.chance(0.6):
            return self.unary("LayerNormalization", x, scale, bias, axis=-1)
        centered = self.op("Sub", [x.name, self.reduce("ReduceMean", x.name, [-1], keepdims=True)])
        square = self.op("Mul", [centered, centered])
        variance = self.op("Add", [self.reduce("ReduceMean", square, [-1], keepdims=True), self.scalar(1e-5)])
        y = self.op("Div", [centered, self.op("Sqrt", [variance])])
        return self.like(x, self.op("Add", [self.op("Mul", [y, scale]), bias]))

    def rms_norm(self, x: Tensor) -> Tensor:
        square = self.op("Pow", [x.name, self.scalar(2.0)])
        mean = self.op("Add", [self.reduce("ReduceMean", square, [-1], keepdims=True), self.scalar(1e-5)])
        y = self.op("Mul", [x.name, self.op("Reciprocal", [self.op("Sqrt", [mean])])])
        return self.like(x, self.op("Mul", [y, self.positive(x.shape[-1])]))


# --- images: (n, c, spatial...) ---


@block(IMAGE)
def conv(b: Builder, x: Tensor) -> Tensor:
    kernel = b.pick(1, 3)
    stride = b.pick(1, 1, 2) if min(x.shape[2:]) >= 5 else 1
    return b.conv(x, b.size(), kernel=kernel, stride=stride)


@block(IMAGE)
def grouped_conv(b: Builder, x: Tensor) -> Tensor:
    groups = b.pick(2, 3)
    x = b.conv(x, b.size(6, 19, multiple=groups))
    return b.conv(x, b.size(6, 19, multiple=groups), kernel=3, groups=groups)


@block(IMAGE)
def depthwise(b: Builder, x: Tensor) -> Tensor:
    x = b.conv(x, b.size())
    multiplier = b.pick(1, 1, 2, 3)
    x = b.activation(b.conv(x, x.c * multiplier, kernel=3, groups=x.c))
    return b.conv(x, b.size())


@block(IMAGE)
def conv_transpose(b: Builder, x: Tensor) -> Tensor:
    groups = b.pick(1, 1, 2, 3)
    x = b.conv(x, b.size(6, 19, multiple=groups))
    out = b.size(6, 19, multiple=groups)
    n = len(x.shape) - 2
    inputs = [x.name, b.weight(x.c, out // groups, *[3] * n, scale=0.2)]
    if b.chance(0.7):
        inputs.append(b.weight(out, scale=0.3, stem="b"))
    name = b.op("ConvTranspose", inputs, kernel_shape=[3] * n, pads=[1] * 2 * n, group=groups)
    return b.resized(x, name, 1, out)


@block(IMAGE)
def batch_norm(b: Builder, x: Tensor) -> Tensor:
    x = b.conv(x, b.size()) if b.chance(0.5) else x
    c = x.c
    name = b.op(
        "BatchNormalization",
        [x.name, b.positive(c), b.weight(c, scale=0.3, stem="b"), b.weight(c, scale=0.3), b.positive(c)],
    )
    return b.like(x, name)


@block(IMAGE)
def activate(b: Builder, x: Tensor) -> Tensor:
    return b.activation(x)


@block(IMAGE)
def prelu(b: Builder, x: Tensor) -> Tensor:
    x = b.conv(x, b.size())
    return b.unary("PRelu", x, b.positive(x.c, *[1] * (len(x.shape) - 2)))


@block(IMAGE)
def clip(b: Builder, x: Tensor) -> Tensor:
    x = b.conv(x, b.size())
    low, high = b.pick((0.0, 6.0), (-1.0, 1.0), (0.1, 2.0), (-2.0, -0.1))
    return b.unary("Clip", x, b.scalar(low), b.scalar(high))


@block(IMAGE)
def residual(b: Builder, x: Tensor) -> Tensor:
    y = b.activation(b.conv(x, b.size(), kernel=3))
    y = b.conv(y, x.c, kernel=3)
    return b.like(x, b.op(b.pick("Add", "Add", "Sub"), [x.name, y.name]))


@block(IMAGE)
def squeeze_excite(b: Builder, x: Tensor) -> Tensor:
    x = b.activation(b.conv(x, b.size()))
    spatial = range(2, len(x.shape))
    pooled = (
        b.op("GlobalAveragePool", [x.name])
        if b.chance(0.5)
        else b.reduce("ReduceMean", x.name, list(spatial), keepdims=True)
    )
    s = Tensor(pooled, (*x.shape[:2], *[1 for _ in spatial]), x.symbols)
    s = b.activation(b.conv(s, b.size()))
    s = b.activation(b.conv(s, x.c), keeps_zero=False)
    return b.like(x, b.op("Mul", [x.name, s.name] if b.chance(0.5) else [s.name, x.name]))


@block(IMAGE)
def gate(b: Builder, x: Tensor) -> Tensor:
    out = b.size()
    a, g = b.conv(x, out), b.activation(b.conv(x, out), keeps_zero=False)
    return b.binary("Mul", a, g.name)


@block(IMAGE)
def concat_branches(b: Builder, x: Tensor) -> Tensor:
    parts = [b.conv(x, b.size(), kernel=b.pick(1, 3)) for _ in range(b.pick(2, 3))]
    if b.chance(0.5):
        parts.insert(int(b.rng.integers(len(parts) + 1)), x)
    return b.concat([b.activation(p) for p in parts], 1)


@block(IMAGE)
def crelu(b: Builder, x: Tensor) -> Tensor:
    x = b.conv(x, b.size())
    return b.unary("Relu", b.concat([x, b.unary("Neg", x)], 1))


@block(IMAGE)
def split_transform(b: Builder, x: Tensor) -> Tensor:
    if b.chance(0.4):
        half = b.size(4, 9)
        sizes = [half] * b.pick(2, 3)
        sizes[-1] -= b.pick(0, 0, 1)
    else:
        sizes = [b.size(4, 9) for _ in range(b.pick(2, 3))]
    x = b.conv(x, sum(sizes))
    parts = b.split(x, 1, sizes)
    parts = [b.conv(p, b.size()) if k % 2 else b.activation(p) for k, p in enumerate(parts)]
    return b.concat(parts, 1)


@block(IMAGE)
def split_gate(b: Builder, x: Tensor) -> Tensor:
    half = b.size()
    a, g = b.split(b.conv(x, 2 * half), 1, [half, half])
    return b.binary("Mul", a, b.activation(g, keeps_zero=False).name)


@block(IMAGE)
def slice_channels(b: Builder, x: Tensor) -> Tensor:
    x = b.conv(x, b.size(9, 16))
    at = int(b.rng.integers(2, x.c - 2))
    first, second = b.slice(x, 1, 0, at), b.slice(x, 1, at, x.c)
    style = b.pick("rejoin", "one", "overlap")
    if style == "one":
        return b.conv(second, b.size())
    if style == "overlap":
        second = b.slice(x, 1, at - 1, x.c)
    return b.concat([b.activation(second), b.conv(first, b.size())], 1)


@block(IMAGE)
def maxout(b: Builder, x: Tensor) -> Tensor:
    out = b.size()
    x = b.conv(x, 2 * out)
    spatial = [Dim(d, (k + 2,)) for k, d in enumerate(x.shape[2:])]
    y = b.reshape(x, [Dim(x.shape[0], (0,)), Dim(out), Dim(2), *spatial])
    name = b.reduce(b.pick("ReduceMax", "ReduceSum"), y.name, [2], keepdims=False)
    return b.resized(x, name, 1, out)


@block(IMAGE)
def pool(b: Builder, x: Tensor) -> Tensor:
    n = len(x.shape) - 2
    if min(x.shape[2:]) < 3:
        return b.activation(x)
    name = b.op(b.pick("MaxPool", "AveragePool"), [x.name], kernel_shape=[2] * n, strides=[1] * n)
    return Tensor(name, (*x.shape[:2], *(d - 1 for d in x.shape[2:])), x.symbols)


@block(IMAGE)
def channel_shuffle(b: Builder, x: Tensor) -> Tensor:
    groups = b.pick(2, 3)
    x = b.conv(x, b.size(8, 19, multiple=groups), kernel=1)
    spatial = [Dim(d, (k + 2,)) for k, d in enumerate(x.shape[2:])]
    y = b.reshape(x, [Dim(x.shape[0], (0,)), Dim(groups), Dim(x.c // groups, (1,), groups), *spatial])
    y = b.transpose(y, 0, 2, 1, *range(3, len(y.shape)))
    spatial = [Dim(d, (k + 3,)) for k, d in enumerate(x.shape[2:])]
    y = b.reshape(y, [Dim(x.shape[0], (0,)), Dim(x.c, (1, 2)), *spatial])
    return b.conv(y, b.size(8, 19, multiple=groups), groups=groups if b.chance(0.5) else 1)


@block(IMAGE, flat_only=True, opset=13)
def depth_to_space(b: Builder, x: Tensor) -> Tensor:
    out = b.size(4, 9)
    x = b.conv(x, 4 * out)
    name = b.op("DepthToSpace", [x.name], blocksize=2, mode=b.pick("DCR", "CRD"))
    y = Tensor(name, (x.shape[0], out, 2 * x.shape[2], 2 * x.shape[3]), x.symbols)
    return b.conv(y, b.size(), kernel=3, stride=2)


@block(IMAGE, flat_only=True, opset=13)
def space_to_depth(b: Builder, x: Tensor) -> Tensor:
    x = b.conv(x, b.size(4, 8))
    if x.shape[2] % 2 or x.shape[3] % 2:
        odd = [x.shape[2] % 2, x.shape[3] % 2]
        name = b.op("Pad", [x.name, b.ints(0, 0, 0, 0, 0, 0, *odd)])
        x = Tensor(name, (*x.shape[:2], x.shape[2] + odd[0], x.shape[3] + odd[1]), x.symbols)
    name = b.op("SpaceToDepth", [x.name], blocksize=2)
    y = Tensor(name, (x.shape[0], 4 * x.c, x.shape[2] // 2, x.shape[3] // 2), x.symbols)
    return b.conv(y, b.size())


@block(IMAGE)
def tile_channels(b: Builder, x: Tensor) -> Tensor:
    x = b.conv(x, b.size(4, 9))
    times = b.pick(2, 3)
    repeats = [1] * len(x.shape)
    repeats[1] = times
    y = b.resized(x, b.op("Tile", [x.name, b.ints(*repeats)]), 1, times * x.c)
    return b.conv(y, b.size())


@block(IMAGE)
def expand_vector(b: Builder, x: Tensor) -> Tensor:
    x = b.conv(x, b.size())
    ones = [1] * (len(x.shape) - 2)
    v = b.weight(1, x.c, *ones, scale=0.5)
    target = b.ints(1, x.c, *x.shape[2:]) if b.chance(0.5) else b.op("Shape", [x.name])
    return b.binary("Add", x, b.op("Expand", [v, target]))


@block(IMAGE)
def gather_channels(b: Builder, x: Tensor) -> Tensor:
    x = b.conv(x, b.size(7, 13))
    order = b.rng.permutation(x.c)
    order = order[: x.c - b.pick(0, 0, 2, 3)]
    if b.chance(0.2):
        order = np.concatenate([order, order[:2]])
    y = b.resized(x, b.op("Gather", [x.name, b.constant(order.astype(np.int64), "ints")], axis=1), 1, len(order))
    return b.conv(y, b.size()) if b.chance(0.6) else y


@block(IMAGE)
def pad_spatial(b: Builder, x: Tensor) -> Tensor:
    x = b.conv(x, b.size())
    n = len(x.shape) - 2
    name = b.op("Pad", [x.name, b.ints(0, 0, *[1] * n, 0, 0, *[0] * n)], mode=b.pick("constant", "reflect", "edge"))
    return Tensor(name, (*x.shape[:2], *(d + 1 for d in x.shape[2:])), x.symbols)


@block(IMAGE, flat_only=True)
def resize(b: Builder, x: Tensor) -> Tensor:
    x = b.conv(x, b.size())
    common: dict[str, Any] = {
        "mode": "nearest",
        "coordinate_transformation_mode": "asymmetric",
        "nearest_mode": "floor",
    }
    roi = b.constant(np.zeros(0, dtype=np.float32), "roi", node=False)
    if b.chance(0.5) or x.symbols[0]:
        scales = b.constant(np.array([1, 1, 2, 2], dtype=np.float32), "scales")
        name = b.op("Resize", [x.name, roi, scales], **common)
    else:
        sizes = b.ints(*x.shape[:2], 2 * x.shape[2], 2 * x.shape[3])
        empty = b.constant(np.zeros(0, dtype=np.float32), "scales", node=False)
        name = b.op("Resize", [x.name, roi, empty if b.opset < 13 else "", sizes], **common)
    y = Tensor(name, (*x.shape[:2], 2 * x.shape[2], 2 * x.shape[3]), x.symbols)
    return b.conv(y, b.size(), kernel=3, stride=2)


@block(IMAGE)
def where_mask(b: Builder, x: Tensor) -> Tensor:
    x = b.conv(x, b.size())
    ones = [1] * (len(x.shape) - 2)
    shape = b.pick((1, x.c, *ones), (1, 1, *x.shape[2:]))
    condition = b.constant(b.rng.random(shape) < 0.6, "mask")
    other = b.pick(0.0, 0.0, 0.4)
    return b.like(x, b.op("Where", [condition, x.name, b.scalar(other)]))


@block(IMAGE)
def channels_last(b: Builder, x: Tensor) -> Tensor:
    rank = len(x.shape)
    y = b.transpose(x, 0, *range(2, rank), 1)
    out = b.size()
    w = b.weight(x.c, out, scale=1.2 / math.sqrt(x.c))
    name = b.op("Add", [b.op("MatMul", [y.name, w]), b.weight(out, scale=0.3, stem="b")])
    y = b.resized(y, name, -1, out)
    if b.chance(0.4):
        y = b.layer_norm(y)
    y = b.activation(y)
    return b.transpose(y, 0, rank - 1, *range(1, rank - 1))


@block(IMAGE)
def group_norm(b: Builder, x: Tensor) -> Tensor:
    groups = b.pick(2, 3)
    x = b.conv(x, b.size(8, 19, multiple=groups))
    ones = [1] * (len(x.shape) - 2)
    y = b.reshape(x, [Dim(x.shape[0], (0,)), Dim(groups), Dim(math.prod(x.shape[1:]) // groups)])
    unit = b.constant(np.ones(groups, dtype=np.float32), "ones", node=False)
    zero = b.constant(np.zeros(groups, dtype=np.float32), "zeros", node=False)
    name = b.op("InstanceNormalization", [y.name, unit, zero])
    shape = b.op("Shape", [x.name]) if b.chance(0.5) or x.symbols[0] else b.ints(*x.shape)
    name = b.op("Reshape", [name, shape])
    name = b.op("Mul", [name, b.positive(x.c, *ones)])
    y = b.like(x, b.op("Add", [name, b.weight(x.c, *ones, scale=0.3, stem="b")]))
    return b.conv(y, b.size())


@block(IMAGE)
def weight_norm(b: Builder, x: Tensor) -> Tensor:
    out = b.size()
    ones = [1] * (len(x.shape) - 2)
    v, g = b.weight(out, x.c, *ones), b.positive(out, 1, *ones)
    norm = b.reduce("ReduceL2", v, list(range(1, len(x.shape))), keepdims=True)
    scaled = b.chance(0.5)
    w = b.op("Mul", [v, b.op("Div", [g, norm])]) if scaled else b.op("Div", [b.op("Mul", [v, g]), norm])
    return b.conv(x, out, weight=w)


@block(IMAGE)
def siamese(b: Builder, x: Tensor) -> Tensor:
    mid, out = b.size(), b.size()
    ones = [1] * (len(x.shape) - 2)
    w1, w2 = b.weight(mid, x.c, *ones), b.weight(out, mid, *ones)
    flipped = b.unary("Neg", x)
    sides = []
    for side in (x, flipped):
        y = b.activation(b.conv(side, mid, weight=w1, bias=False), keeps_zero=True)
        sides.append(b.conv(y, out, weight=w2, bias=False))
    return b.like(sides[0], b.op(b.pick("Sub", "Add"), [sides[0].name, b.unary("Sigmoid", sides[1]).name]))


@block(IMAGE)
def merged_vectors(b: Builder, x: Tensor) -> Tensor:
    """Two layers of one width share bias and scale tensors, as exporters that merge equal initializers leave them."""
    c = b.size()
    scale, shift = b.positive(c), b.weight(c, scale=0.3, stem="b")
    mean, var = b.constant(np.zeros(c, dtype=np.float32), "zeros", node=False), b.positive(c)
    for _ in range(2):
        x = b.conv(x, c, bias=False)
        x = b.activation(b.like(x, b.op("BatchNormalization", [x.name, scale, shift, mean, var])))
    return x


@block(IMAGE)
def softmax_spatial(b: Builder, x: Tensor) -> Tensor:
    """Weigh positions by a softmax over them, then sum them: a global context block."""
    spatial = math.prod(x.shape[2:])
    flat = b.reshape(x, [Dim(x.shape[0], (0,)), Dim(x.c, (1,)), Dim(spatial)])
    logits = b.conv(x, 1)
    mask = b.reshape(logits, [Dim(x.shape[0], (0,)), Dim(spatial), Dim(1)])
    mask = b.unary("Softmax", mask, axis=1)
    context = b.op("MatMul", [flat.name, mask.name])
    y = Tensor(context, (x.shape[0], x.c, 1), (x.symbols[0], None, None))
    y = b.reshape(y, [Dim(x.shape[0], (0,)), Dim(x.c, (1,)), *[Dim(1)] * (len(x.shape) - 2)])
    y = b.conv(y, x.c)
    return b.binary("Add", x, y.name)


# --- from images ---


@block(IMAGE, VECTOR)
def global_pool(b: Builder, x: Tensor) -> Tensor:
    spatial = list(range(2, len(x.shape)))
    shape, symbols = x.shape[:2], x.symbols[:2]
    style = b.pick("flatten", "reduce", "squeeze", "reshape")
    if style == "reduce":
        return Tensor(b.reduce("ReduceMean", x.name, spatial, keepdims=False), shape, symbols)
    op = b.pick("GlobalAveragePool", "GlobalMaxPool")
    y = Tensor(b.op(op, [x.name]), (*shape, *[1] * len(spatial)), x.symbols)
    if style == "flatten":
        return Tensor(b.op("Flatten", [y.name], axis=1), shape, symbols)
    if style == "squeeze":
        return Tensor(b.squeeze(y.name, *spatial), shape, symbols)
    return b.reshape(y, [Dim(shape[0], (0,)), Dim(shape[1], (1,))])


@block(IMAGE, VECTOR)
def flatten(b: Builder, x: Tensor) -> Tensor:
    inner = math.prod(x.shape[1:])
    if b.chance(0.5):
        y = Tensor(b.op("Flatten", [x.name], axis=1), (x.shape[0], inner), x.symbols[:2])
    else:
        y = b.reshape(x, [Dim(x.shape[0], (0,)), Dim(inner, tuple(range(1, len(x.shape))))])
    return b.linear(y, b.size())


@block(IMAGE, SEQUENCE)
def to_tokens(b: Builder, x: Tensor) -> Tensor:
    spatial = math.prod(x.shape[2:])
    y = b.reshape(x, [Dim(x.shape[0], (0,)), Dim(x.c, (1,)), Dim(spatial, tuple(range(2, len(x.shape))))])
    return b.transpose(y, 0, 2, 1)


# --- vectors: (n, c) ---


@block(VECTOR)
def dense(b: Builder, x: Tensor) -> Tensor:
    return b.activation(b.linear(x, b.size()))


@block(VECTOR)
def dense_residual(b: Builder, x: Tensor) -> Tensor:
    return b.binary("Add", b.linear(b.activation(b.linear(x, b.size())), x.c), x.name)


@block(VECTOR)
def dense_swiglu(b: Builder, x: Tensor) -> Tensor:
    return _swiglu(b, x)


@block(VECTOR)
def dense_concat(b: Builder, x: Tensor) -> Tensor:
    parts = [b.activation(b.linear(x, b.size())) for _ in range(b.pick(2, 3, 4))]
    return b.concat(parts, 1)


@block(VECTOR)
def dense_slices(b: Builder, x: Tensor) -> Tensor:
    x = b.linear(x, b.size(9, 16))
    at = int(b.rng.integers(3, x.c - 3))
    first, second = b.slice(x, 1, 0, at), b.slice(x, 1, at, x.c)
    return b.concat([b.activation(first), b.linear(second, b.size())], 1)


@block(VECTOR)
def tied_matrix(b: Builder, x: Tensor) -> Tensor:
    """An autoencoder whose decoder is the transposed encoder: one matrix, two uses."""
    mid = b.size()
    w = b.weight(mid, x.c, scale=1.2 / math.sqrt(x.c))
    y = b.activation(b.resized(x, b.op("Gemm", [x.name, w], transB=1), 1, mid), keeps_zero=True)
    return b.resized(x, b.op("MatMul", [y.name, w]), 1, x.c)


@block(VECTOR)
def reshaped_heads(b: Builder, x: Tensor) -> Tensor:
    heads, width = b.size(3, 6), b.size(4, 8)
    x = b.linear(x, heads * width)
    y = b.reshape(x, [Dim(x.shape[0], (0,)), Dim(heads), Dim(width, (1,), heads)])
    y = b.binary("Mul", y, b.positive(*b.pick((heads, 1), (width,), (heads, width))))
    if b.chance(0.5):
        return b.resized(x, b.reduce("ReduceSum", y.name, [1], keepdims=False), 1, width)
    y = b.transpose(y, 0, 2, 1)
    return b.reshape(y, [Dim(x.shape[0], (0,)), Dim(heads * width, (1, 2))])


@block(VECTOR)
def dense_gather(b: Builder, x: Tensor) -> Tensor:
    x = b.linear(x, b.size(7, 13))
    order = b.rng.permutation(x.c)[: x.c - b.pick(0, 2)].astype(np.int64)
    return b.resized(x, b.op("Gather", [x.name, b.constant(order, "ints")], axis=1), 1, len(order))


@block(VECTOR, IMAGE)
def to_image(b: Builder, x: Tensor) -> Tensor:
    channels = b.size(4, 8)
    height, width = b.size(3, 6), b.size(3, 7)
    x = b.linear(x, channels * height * width)
    return b.reshape(x, [Dim(x.shape[0], (0,)), Dim(channels), Dim(height), Dim(width)])


# --- sequences: (n, t, c) ---


@block(SEQUENCE)
def ffn(b: Builder, x: Tensor) -> Tensor:
    y = b.linear(b.activation(b.linear(x, b.size())), x.shape[-1])
    return b.binary("Add", x, y.name)


@block(SEQUENCE)
def project(b: Builder, x: Tensor) -> Tensor:
    return b.linear(x, b.size())


def _swiglu(b: Builder, x: Tensor) -> Tensor:
    hidden = b.size()
    if b.chance(0.5):
        gate_, up = b.linear(x, hidden), b.linear(x, hidden)
    else:
        gate_, up = b.split(b.linear(x, 2 * hidden), len(x.shape) - 1, [hidden, hidden])
    silu = b.binary("Mul", gate_, b.op("Sigmoid", [gate_.name]))
    return b.linear(b.binary("Mul", silu, up.name), x.shape[-1])


@block(SEQUENCE)
def swiglu(b: Builder, x: Tensor) -> Tensor:
    return b.binary("Add", x, _swiglu(b, x).name)


@block(SEQUENCE)
def layer_norm(b: Builder, x: Tensor) -> Tensor:
    return b.layer_norm(x)


@block(SEQUENCE)
def rms_norm(b: Builder, x: Tensor) -> Tensor:
    return b.rms_norm(x)


@block(SEQUENCE)
def position(b: Builder, x: Tensor) -> Tensor:
    length = 1 if x.symbols[1] else x.shape[1]
    return b.binary("Add", x, b.weight(1, length, x.shape[-1], scale=0.3))


def _heads(b: Builder, x: Tensor, heads: int, width: int) -> Tensor:
    """(n, t, h*d) -> (n, h, t, d)."""
    y = b.reshape(x, [Dim(x.shape[0], (0,)), Dim(x.shape[1], (1,)), Dim(heads), Dim(width, (2,), heads)])
    return b.transpose(y, 0, 2, 1, 3)


def _rotate(b: Builder, x: Tensor) -> Tensor:
    half = x.shape[-1] // 2
    length = 1 if x.symbols[2] else x.shape[2]
    angle = b.rng.uniform(0, 1, (1, 1, length, half))
    doubled = np.concatenate([angle, angle], axis=-1).astype(np.float32)
    low, high = b.slice(x, 3, 0, half), b.slice(x, 3, half, 2 * half)
    turned = b.concat([b.unary("Neg", high), low], 3)
    left = b.op("Mul", [x.name, b.constant(np.cos(doubled), "cos")])
    right = b.op("Mul", [turned.name, b.constant(np.sin(doubled), "sin")])
    return b.like(x, b.op("Add", [left, right]))


def _attend(b: Builder, x: Tensor, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """(n, h, t, d) three times -> (n, t, c), added to x."""
    heads, width = q.shape[1], v.shape[-1]
    kt = b.transpose(k, 0, 1, 3, 2)
    if b.chance(0.5):
        q = b.binary("Mul", q, b.scalar(1 / math.sqrt(q.shape[-1])))
    scores = Tensor(
        b.op("MatMul", [q.name, kt.name]), (*q.shape[:3], k.shape[2]), (q.symbols[0], None, q.symbols[2], k.symbols[2])
    )
    if b.chance(0.5):
        scores = b.binary("Div", scores, b.scalar(2.0))
    if not x.symbols[1] and b.chance(0.5):
        length = x.shape[1]
        mask = np.triu(np.full((length, length), -1e4, dtype=np.float32), 1)[None, None]
        scores = b.binary("Add", scores, b.constant(mask, "mask"))
    weights = b.unary("Softmax", scores, axis=3)
    y = Tensor(b.op("MatMul", [weights.name, v.name]), v.shape[:2] + q.shape[2:3] + v.shape[3:], v.symbols)
    y = b.transpose(y, 0, 2, 1, 3)
    y = b.reshape(y, [Dim(x.shape[0], (0,)), Dim(x.shape[1], (1,)), Dim(heads * width, (2, 3))])
    return b.binary("Add", x, b.linear(y, x.shape[-1]).name)


@block(SEQUENCE)
def attention(b: Builder, x: Tensor) -> Tensor:
    heads = b.size(2, 6)
    width, value_width = 2 * b.size(2, 5), b.size(3, 9)
    q, k = (_heads(b, b.linear(x, heads * width), heads, width) for _ in range(2))
    v = _heads(b, b.linear(x, heads * value_width), heads, value_width)
    if b.chance(0.4):
        q, k = _rotate(b, q), _rotate(b, k)
    return _attend(b, x, q, k, v)


@block(SEQUENCE)
def attention_fused_split(b: Builder, x: Tensor) -> Tensor:
    heads, width = b.size(2, 6), 2 * b.size(2, 5)
    qkv = b.linear(x, 3 * heads * width)
    q, k, v = (_heads(b, part, heads, width) for part in b.split(qkv, 2, [heads * width] * 3))
    if b.chance(0.4):
        q, k = _rotate(b, q), _rotate(b, k)
    return _attend(b, x, q, k, v)


@block(SEQUENCE)
def attention_fused_reshape(b: Builder, x: Tensor) -> Tensor:
    heads, width = b.size(2, 6), b.size(3, 9)
    qkv = b.linear(x, 3 * heads * width)
    y = b.reshape(qkv, [Dim(x.shape[0], (0,)), Dim(x.shape[1], (1,)), Dim(3), Dim(heads), Dim(width)])
    y = b.transpose(y, 2, 0, 3, 1, 4)
    style = b.pick("gather", "slice", "split")
    parts = []
    if style == "split":
        parts = [Tensor(b.squeeze(p.name, 0), y.shape[1:], y.symbols[1:]) for p in b.split(y, 0, [1, 1, 1])]
    for i in range(0 if parts else 3):
        if style == "gather":
            name = b.op("Gather", [y.name, b.constant(np.array(i, dtype=np.int64), "ints")], axis=0)
        else:
            name = b.squeeze(b.slice(y, 0, i, i + 1).name, 0)
        parts.append(Tensor(name, y.shape[1:], y.symbols[1:]))
    return _attend(b, x, *parts)


@block(SEQUENCE)
def attention_grouped(b: Builder, x: Tensor) -> Tensor:
    kv_heads, repeat, width = b.pick(2, 3), b.pick(2, 3), 2 * b.size(2, 5)
    heads = kv_heads * repeat
    q = _heads(b, b.linear(x, heads * width), heads, width)
    k, v = (_heads(b, b.linear(x, kv_heads * width), kv_heads, width) for _ in range(2))
    if b.chance(0.4):
        q, k = _rotate(b, q), _rotate(b, k)
    wide = []
    for part in (k, v):
        n, g, t, d = part.shape
        y = b.unsqueeze(part.name, 2)
        target = b.ints(1, 1, repeat, 1, 1)
        y = b.op("Expand", [y, target])
        expanded = Tensor(y, (n, g, repeat, t, d), (part.symbols[0], None, None, part.symbols[2], None))
        wide.append(b.reshape(expanded, [Dim(n, (0,)), Dim(heads, (1, 2)), Dim(t, (3,)), Dim(d, (4,))]))
    return _attend(b, x, q, *wide)


@block(SEQUENCE)
def experts(b: Builder, x: Tensor) -> Tensor:
    """Every expert computes; a softmax over a router's logits weighs them."""
    count, hidden, c = b.size(2, 6), b.size(), x.shape[-1]
    router = b.unary("Softmax", b.linear(x, count), axis=2)
    w1 = b.weight(count, c, hidden, scale=1.2 / math.sqrt(c))
    w2 = b.weight(count, hidden, c, scale=1.2 / math.sqrt(hidden))
    y = b.op("MatMul", [b.unsqueeze(x.name, 1), w1])
    y = b.op("Add", [y, b.weight(count, 1, hidden, scale=0.3, stem="b")])
    y = b.op("MatMul", [b.op("Relu", [y]), w2])
    weights = b.transpose(router, 0, 2, 1)
    y = b.op("Mul", [y, b.unsqueeze(weights.name, 3)])
    return b.binary("Add", x, b.reduce("ReduceSum", y, [1], keepdims=False))


@block(SEQUENCE, opset=14)
def recurrent(b: Builder, x: Tensor) -> Tensor:
    """Run an LSTM, GRU or RNN along the sequence, in one direction or both, and join the directions."""
    kind, directions, hidden, c = b.pick("LSTM", "GRU", "RNN"), b.pick(1, 2), b.size(5, 9), x.shape[-1]
    gates = {"LSTM": 4, "GRU": 3, "RNN": 1}[kind]
    w = b.weight(directions, gates * hidden, c, scale=1 / math.sqrt(c))
    r = b.weight(directions, gates * hidden, hidden, scale=1 / math.sqrt(hidden))
    inputs = [b.transpose(x, 1, 0, 2).name, w, r, b.weight(directions, 2 * gates * hidden, scale=0.3, stem="b")]
    attributes: dict[str, Any] = {"hidden_size": hidden, "direction": "bidirectional" if directions == 2 else "forward"}
    if kind == "GRU":
        attributes["linear_before_reset"] = b.pick(0, 1)
    y = b.op(kind, inputs, **attributes)
    n, t = x.shape[:2]
    if directions == 1:
        joined = Tensor(b.squeeze(y, 1), (t, n, hidden), (x.symbols[1], x.symbols[0], None))
        return b.transpose(joined, 1, 0, 2)
    apart = Tensor(y, (t, 2, n, hidden), (x.symbols[1], None, x.symbols[0], None))
    apart = b.transpose(apart, 2, 0, 1, 3)
    return b.reshape(apart, [Dim(n, (0,)), Dim(t, (1,)), Dim(2 * hidden, (2, 3))])


@block(SEQUENCE)
def token_conv(b: Builder, x: Tensor) -> Tensor:
    """Convolve along the sequence: transpose, Conv of one spatial axis, transpose."""
    if x.symbols[1]:
        return b.linear(x, b.size())
    y = b.conv(b.transpose(x, 0, 2, 1), b.size(), kernel=3)
    return b.transpose(b.activation(y), 0, 2, 1)


@block(SEQUENCE)
def token_mixer(b: Builder, x: Tensor) -> Tensor:
    """Mix tokens: a product along the sequence axis (MLP-Mixer)."""
    if x.symbols[1]:
        return b.activation(x)
    y = b.linear(b.activation(b.linear(b.transpose(x, 0, 2, 1), b.size())), x.shape[1])
    return b.binary("Add", x, b.transpose(y, 0, 2, 1).name)


@block(SEQUENCE, VECTOR)
def mean_tokens(b: Builder, x: Tensor) -> Tensor:
    name = b.reduce("ReduceMean", x.name, [1], keepdims=False)
    return Tensor(name, (x.shape[0], x.shape[2]), (x.symbols[0], None))


@block(SEQUENCE, VECTOR)
def first_token(b: Builder, x: Tensor) -> Tensor:
    index = b.constant(np.array(0, dtype=np.int64), "ints")
    return Tensor(b.op("Gather", [x.name, index], axis=1), (x.shape[0], x.shape[2]), (x.symbols[0], None))


# --- whole graphs ---


def random_blocks(seed: int) -> tuple[str, ...]:
    """Choose the blocks of a seed's graph: a walk between the domains."""
    rng = np.random.default_rng([seed, 1])
    opset = Builder(seed).opset
    domain = str(rng.choice([IMAGE, IMAGE, SEQUENCE, SEQUENCE, VECTOR]))
    flat = True
    chosen = [f"{domain}_input" if domain != IMAGE else str(rng.choice(["image_input"] * 4 + ["signal", "volume"]))]
    if chosen[0] == "sequence_input" and rng.random() < 0.4:
        chosen[0] = "embedding"
    flat = chosen[0] not in ("signal", "volume")
    for _ in range(int(rng.integers(2, 7))):
        names = [
            e.name for e in BLOCKS.values() if e.source == domain and e.opset <= opset and (flat or not e.flat_only)
        ]
        staying = [n for n in names if BLOCKS[n].target == domain]
        pool_ = staying if rng.random() < 0.8 else names
        name = str(rng.choice(pool_))
        chosen.append(name)
        if BLOCKS[name].target != domain and BLOCKS[name].target == IMAGE:
            flat = True
        domain = BLOCKS[name].target
    return tuple(chosen)


def _start(b: Builder, kind: str) -> Tensor:
    """Make the graph's input, and a first layer for images so that everything behind it can be pruned."""
    n = RUN_BATCH
    if kind == "embedding":
        b.vocabulary, width = b.size(11, 16), b.size(8, 14)
        dims: list[Any] = [b.batch_symbol or n, b.length_symbol or RUN_LENGTH]
        b.inputs.append(helper.make_tensor_value_info("ids", TensorProto.INT64, dims))
        table = b.weight(b.vocabulary, width, scale=0.8, stem="table")
        b.table = Tensor(table, (b.vocabulary, width), (None, None))
        name = b.op("Gather", [table, "ids"], axis=0)
        return Tensor(name, (n, RUN_LENGTH, width), (b.batch_symbol, b.length_symbol, None))
    shapes = {"image_input": 2, "signal": 1, "volume": 3}
    if kind in shapes:
        spatial = [b.size(5, 9) for _ in range(shapes[kind])]
        channels = b.size(2, 5)
        symbols = (b.batch_symbol, None, *[None] * len(spatial))
        shape = (n, channels, *spatial)
    elif kind == "vector_input":
        shape, symbols = (n, b.size(7, 13)), (b.batch_symbol, None)
    else:
        shape, symbols = (n, RUN_LENGTH, b.size(7, 13)), (b.batch_symbol, b.length_symbol, None)
    dims = [s or d for s, d in zip(symbols, shape, strict=True)]
    b.inputs.append(helper.make_tensor_value_info("x", TensorProto.FLOAT, dims))
    x = Tensor("x", shape, symbols)
    if kind in shapes:
        return b.conv(x, b.size(), kernel=3, bias=True)
    return b.linear(x, b.size(), bias=True)


def _finish(b: Builder, x: Tensor, domain: str) -> Tensor:
    """End in a head of its own width, the tied head of an embedding, or now and then in nothing."""
    if b.chance(0.1):
        return b.unary("Identity", x)
    if domain == IMAGE:
        return b.conv(x, b.size())
    if domain == SEQUENCE and b.table is not None and x.shape[-1] != b.table.shape[1]:
        x = b.linear(x, b.table.shape[1])
    if domain == SEQUENCE and b.table is not None:
        head = b.transpose(b.table, 1, 0)
        return b.resized(x, b.op("MatMul", [x.name, head.name]), -1, b.table.shape[0])
    return b.linear(x, b.size())


def build(seed: int, blocks: Sequence[str] | None = None) -> Graph:
    """Build the graph of a seed, of given blocks or of those the seed chooses.

    Blocks that do not fit the tensor they get (another domain, a later opset) are left out.
    """
    names = tuple(blocks) if blocks is not None else random_blocks(seed)
    b = Builder(seed)
    starts = {"image_input": IMAGE, "signal": IMAGE, "volume": IMAGE, "embedding": SEQUENCE}
    first = names[0] if names and names[0] not in BLOCKS else _input_for(names)
    domain = starts.get(first, first.removesuffix("_input"))
    x = _start(b, first)
    extra: Tensor | None = None
    taken = [first]
    for name in names:
        entry = BLOCKS.get(name)
        if entry is None or entry.source != domain or entry.opset > b.opset or len(b.nodes) > MAX_NODES:
            continue
        if entry.flat_only and len(x.shape) != 4:
            continue
        x = entry.build(b, x)
        domain = entry.target
        taken.append(name)
        if extra is None and b.chance(0.15):
            extra = _finish(b, x, domain)
    outputs = [_finish(b, x, domain), *([extra] if extra is not None else [])]
    return Graph(_assemble(b, outputs), seed, tuple(taken), b.vocabulary)


def _input_for(names: Sequence[str]) -> str:
    source = BLOCKS[names[0]].source if names else VECTOR
    return f"{source}_input"


def _assemble(b: Builder, outputs: Sequence[Tensor]) -> onnx.ModelProto:
    infos = []
    for k, y in enumerate(outputs):
        name = f"y{k}"
        b.nodes.append(helper.make_node("Identity", [y.name], [name], name=f"n_{name}"))
        dims = [s if s and "*" not in s else (None if s else d) for s, d in zip(y.symbols, y.shape, strict=True)]
        infos.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, dims))
    graph = helper.make_graph(b.nodes, "random", b.inputs, infos, b.initializers)
    model = helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", b.opset)])
    if b.chance(0.5):
        model = onnx.shape_inference.infer_shapes(model)
    return model


def main() -> None:
    """Write the graph of a seed to a file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("seed", type=int)
    parser.add_argument("--blocks")
    parser.add_argument("-o", "--output", default="x.onnx")
    options = parser.parse_args()
    graph = build(options.seed, options.blocks.split(",") if options.blocks else None)
    onnx.save(graph.model, options.output)
    print(graph.reproducer)


if __name__ == "__main__":
    main()
