"""A graph under construction, and the check that every construct passes: unit counts, then the masked twin."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto as T
from onnx import helper, numpy_helper

import onnxprune
from onnxprune.axes.analysis import Analysis

MS = "com.microsoft"
RTOL = 1e-5  # of an output's range: float32, a few layers
NEWEST_IR = 10
Array = np.ndarray[Any, np.dtype[Any]]
Counts = Mapping[str, Sequence[int | str]]


class Sketch:
    """Calls make nodes: `s("Conv", x, s.w(8, 3, 1, 1), pads=[1] * 4)` gives the name of its output.

    Weights are random and distinct; `s.ints` makes lists of integers, each its own initializer.
    """

    def __init__(self, opset: int = 17, seed: int = 7) -> None:
        self.opset = opset
        self.rng = np.random.default_rng(seed)
        self.nodes: list[onnx.NodeProto] = []
        self.tensors: list[onnx.TensorProto] = []
        self.inputs: list[onnx.ValueInfoProto] = []
        self.functions: list[onnx.FunctionProto] = []
        self.declared: list[onnx.ValueInfoProto] = []
        self.count = 0

    def name(self, stem: str) -> str:
        """Give a name that is not taken."""
        self.count += 1
        return f"{stem}_{self.count}"

    def input(self, *shape: int | str, kind: int = T.FLOAT, name: str = "x") -> str:
        """Add a graph input."""
        self.inputs.append(helper.make_tensor_value_info(name, kind, list(shape)))
        return name

    def w(self, *shape: int, low: float | None = None, name: str = "") -> str:
        """Add a float32 weight: normal, or uniform from `low` to `low` + 1."""
        if low is None:
            array = self.rng.standard_normal(shape) / max(1.0, np.sqrt(np.prod(shape[1:])))
        else:
            array = self.rng.random(shape) + low
        return self.tensor(array.astype(np.float32), name or "w")

    def ints(self, *values: int, kind: Any = np.int64) -> str:
        """Add a list of integers."""
        return self.tensor(np.array(values, dtype=kind), "ints")

    def number(self, value: float, kind: Any = np.float32) -> str:
        """Add a number."""
        return self.tensor(np.array(value, dtype=kind), "number")

    def tensor(self, array: Array, name: str) -> str:
        """Add an initializer; a name that ends in a letter gets a number."""
        name = name if name[-1:].isdigit() else self.name(name)
        self.tensors.append(numpy_helper.from_array(array, name))
        return name

    def call(self, op: str, *inputs: str, outputs: int = 1, domain: str = "", **attributes: Any) -> list[str]:
        """Add a node and give the names of its outputs."""
        made = [self.name(op.lower()) for _ in range(outputs)]
        self.nodes.append(helper.make_node(op, list(inputs), made, f"{op}_{self.count}", domain=domain, **attributes))
        return made

    def __call__(self, op: str, *inputs: str, domain: str = "", **attributes: Any) -> str:
        """Add a node with one output and give its name."""
        return self.call(op, *inputs, domain=domain, **attributes)[0]

    def declare(self, name: str, *shape: int) -> None:
        """Write down the shape of a float value that is not inferred."""
        self.declared.append(helper.make_tensor_value_info(name, T.FLOAT, shape))

    def conv(self, x: str, inner: int, outer: int, kernel: int = 1, **attributes: Any) -> str:
        """Add a convolution over two spatial axes with bias, whose windows keep the size."""
        edge = kernel // 2
        return self(
            "Conv", x, self.w(outer, inner, kernel, kernel), self.w(outer), pads=[edge] * 4, **attributes
        )  # fmt: skip

    def linear(self, x: str, inner: int, outer: int) -> str:
        """Add a product and a bias."""
        return self("Add", self("MatMul", x, self.w(inner, outer)), self.w(outer))

    def reshape(self, x: str, *target: int, **attributes: Any) -> str:
        """Add a reshape to a constant target."""
        return self("Reshape", x, self.ints(*target), **attributes)

    def transpose(self, x: str, *perm: int) -> str:
        """Add a transpose."""
        return self("Transpose", x, perm=list(perm))

    def model(self, *outputs: str, feeds: Mapping[str, Array] | None = None, check: bool = True) -> onnx.ModelProto:
        """Give the model; the shapes of its outputs are those of a run (symbols where an input has any)."""
        values = [onnx.ValueInfoProto(name=name) for name in outputs]
        graph = helper.make_graph(self.nodes, "construct", self.inputs, values, self.tensors, value_info=self.declared)
        domains = sorted({n.domain for n in self.nodes} - {""})
        opsets = [helper.make_opsetid("", self.opset), *(helper.make_opsetid(d, 1) for d in domains)]
        model = helper.make_model(graph, ir_version=NEWEST_IR, opset_imports=opsets, functions=self.functions)
        symbols = any(d.dim_param for v in self.inputs for d in v.type.tensor_type.shape.dim)
        session = open_session(model)
        made = session.run(None, dict(feeds or random_feeds(model)))
        for value, array in zip(model.graph.output, made, strict=True):
            kind = helper.np_dtype_to_tensor_dtype(np.asarray(array).dtype)
            shape = [None] * array.ndim if symbols else array.shape
            value.CopyFrom(helper.make_tensor_value_info(value.name, kind, shape))
        if check:
            onnx.checker.check_model(model)
        return model


def open_session(model: onnx.ModelProto) -> ort.InferenceSession:
    """Open a model in onnxruntime, on one thread and silently."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    return ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def random_feeds(model: onnx.ModelProto, seed: int = 0) -> dict[str, Array]:
    """Make normal numbers for every float input, small non-negative ones for integers; symbols are 2, 3, ..."""
    rng = np.random.default_rng(seed)
    sizes: dict[str, int] = {}
    feeds = {}
    given = {t.name for t in model.graph.initializer}
    for value in model.graph.input:
        if value.name in given:
            continue
        dims = value.type.tensor_type.shape.dim
        shape = [d.dim_value or sizes.setdefault(d.dim_param, len(sizes) + 2) for d in dims]
        kind = helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type)
        if kind.kind in "biu":
            drawn = rng.integers(0, 2 if kind.kind == "b" else 7, shape)
        else:
            drawn = rng.standard_normal(shape)
        feeds[value.name] = np.asarray(drawn).astype(kind)
    return feeds


def counts(analysis: Analysis) -> dict[str, list[str]]:
    """Give the sizes of the groups by kind, `2x5` for two blocks of five; approximate ones have a `~` in front."""
    found: dict[str, list[str]] = {}
    for g in analysis.groups:
        size = str(g.size) if g.blocks == 1 else f"{g.blocks}x{g.width}"
        found.setdefault(g.kind if g.exact else f"~{g.kind}", []).append(size)
    return in_order(found)


def in_order(expected: Counts) -> dict[str, list[str]]:
    """Write sizes as text, in one order."""
    return {kind: sorted(map(str, sizes)) for kind, sizes in sorted(expected.items())}


def check(
    model: onnx.ModelProto, expected: Counts, still: Sequence[str] = (), **options: Any
) -> onnxprune.PruneResult | None:
    """Assert the units, prune half of every exact group against the masked twin, then half of everything.

    Every output must vary and, but for those named in `still`, differ from the unpruned model's. Gives the
    result of the exact pruning, None when all groups are approximate.
    """
    analysis = onnxprune.analyze(model)
    found = counts(analysis)
    assert found == in_order(expected), (
        f"{found}; locked: {[(r.initializer, r.axis, r.reason) for r in analysis.locked]}"
    )
    result = None
    if any(g.exact for g in analysis.groups):
        result = onnxprune.prune(model, ratio=0.5, **options)
        exact = result.report.exact
        assert exact is not None, result.report.exact_reason
        assert all(o["varies"] and (o["moved"] or name in still) for name, o in exact["outputs"].items()), exact
        assert exact["max_rel"] < RTOL, exact
    if not all(g.exact for g in analysis.groups):
        smaller = onnxprune.prune(model, ratio=0.5, allow_inexact=True, **options)
        assert smaller.report.ok
        assert smaller.plan.slices
    return result


def shape_of(model: onnx.ModelProto, name: str) -> tuple[int, ...]:
    """Give the shape of an initializer."""
    return next(tuple(t.dims) for t in model.graph.initializer if t.name == name)


def reasons(model: onnx.ModelProto, name: str, axis: int) -> str:
    """Give why an axis of an initializer is locked, all reasons in one text."""
    rows = onnxprune.analyze(model).locked
    return "; ".join(row.reason for row in rows if (row.initializer, row.axis) == (name, axis))
