"""Small networks as torch.onnx writes them, from a list of layers, and what masked training leaves of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from onnxprune.axes.analysis import analyze_model
from onnxprune.compaction import CompactResult, compact
from onnxprune.graph.model import Model
from tests.test_properties import run

Array = np.ndarray[Any, Any]
OPSET = 20


@dataclass
class Network:
    """Collects the nodes of a network, layer by layer; `value` is what the last one made."""

    shape: tuple[int | str, ...]
    seed: int = 0
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    weights: dict[str, Array] = field(default_factory=dict)
    value: str = "x"

    def __post_init__(self) -> None:
        self._rng = np.random.default_rng(self.seed)

    def weight(self, name: str, *shape: int, scale: float = 0.4) -> str:
        """Draw a weight."""
        self.weights[name] = (self._rng.standard_normal(shape) * scale).astype(np.float32)
        return name

    def constant(self, name: str, value: Any, dtype: Any = np.float32) -> str:
        """Hold a constant."""
        self.weights[name] = np.asarray(value, dtype=dtype)
        return name

    def op(self, kind: str, *inputs: str, domain: str = "", outputs: int = 1, **attributes: Any) -> str:
        """Add a node that reads the last value, or `inputs` where given."""
        names = [f"v{len(self.nodes)}" + (f"_{k}" if k else "") for k in range(outputs)]
        made = helper.make_node(kind, list(inputs) or [self.value], names, name=f"n{len(self.nodes)}", **attributes)
        made.domain = domain
        self.nodes.append(made)
        self.value = names[0]
        return self.value

    def linear(self, name: str, n_in: int, n_out: int, *, bias: bool = True) -> str:
        """Add torch's Linear of a matrix of samples: a Gemm with the weight as torch keeps it."""
        inputs = [self.value, self.weight(f"{name}.weight", n_out, n_in)]
        inputs += [self.weight(f"{name}.bias", n_out)] if bias else []
        return self.op("Gemm", *inputs, transB=1)

    def product(self, name: str, n_in: int, n_out: int, *, bias: bool = True) -> str:
        """Add torch's Linear of tokens: MatMul with the weight turned, and Add."""
        self.op("MatMul", self.value, self.weight(f"{name}.weight", n_in, n_out))
        return self.op("Add", self.value, self.weight(f"{name}.bias", n_out)) if bias else self.value

    def conv(
        self, name: str, n_in: int, n_out: int, k: int = 3, *, pad: int = 0, bias: bool = True, **more: Any
    ) -> str:
        """Add torch's Conv2d."""
        groups = int(more.get("group", 1))
        inputs = [self.value, self.weight(f"{name}.weight", n_out, n_in // groups, k, k)]
        inputs += [self.weight(f"{name}.bias", n_out)] if bias else []
        if "auto_pad" not in more:
            more["pads"] = [pad] * 4
        return self.op("Conv", *inputs, kernel_shape=[k, k], **more)

    def batch_norm(self, name: str, n: int) -> str:
        """Add BatchNorm in inference."""
        names = [self.weight(f"{name}.{part}", n) for part in ("weight", "bias", "running_mean")]
        self.weights[f"{name}.running_var"] = (self._rng.random(n) + 0.5).astype(np.float32)
        return self.op("BatchNormalization", self.value, *names, f"{name}.running_var")

    def model(self, opset: int = OPSET) -> Model:
        """Make the model of what was collected; its output is the last value."""
        self.nodes[-1].output[0] = "y"
        graph = helper.make_graph(
            self.nodes,
            "network",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, list(self.shape))],
            [onnx.ValueInfoProto(name="y")],
            [numpy_helper.from_array(array, name) for name, array in self.weights.items()],
        )
        opsets = [helper.make_opsetid("", opset), helper.make_opsetid("com.microsoft", 1)]
        proto = helper.make_model(graph, ir_version=10, opset_imports=opsets)
        inferred = onnx.shape_inference.infer_shapes(proto)
        proto.graph.output[0].CopyFrom(inferred.graph.output[0])
        if not proto.graph.output[0].type.tensor_type.elem_type:
            proto.graph.output[0].type.tensor_type.elem_type = TensorProto.FLOAT
        return Model(proto)

    def mask_rows(self, name: str, rows: Sequence[int], *, prune_bias: bool, axis: int = 0) -> None:
        """Do what a structured sparsifier leaves: rows of a weight zero, and of its bias with `prune_bias`."""
        np.moveaxis(self.weights[f"{name}.weight"], axis, 0)[list(rows)] = 0
        if prune_bias and f"{name}.bias" in self.weights:
            self.weights[f"{name}.bias"][list(rows)] = 0


def input_for(model: Model, sizes: Mapping[str, int] | None = None, seed: int = 1) -> dict[str, Array]:
    """Draw an input."""
    dims = model.proto.graph.input[0].type.tensor_type.shape.dim
    shape = [d.dim_value or (sizes or {}).get(d.dim_param, 3) for d in dims]
    return {"x": np.random.default_rng(seed).standard_normal(shape).astype(np.float32)}


def compacted(
    model: Model, *, sizes: Mapping[str, int] | None = None, rtol: float = 1e-5, **options: Any
) -> CompactResult:
    """Compact a model and check that no output moves by more than `rtol` of its range."""
    result = compact(analyze_model(model), verified=False, **options)
    onnx.checker.check_model(result.model.proto, full_check=True)
    feeds = input_for(model, sizes)
    (expected,), (found,) = run(model.proto, feeds), run(result.model.proto, feeds)
    assert float(np.std(expected)) > 1e-4, "the output must vary"
    np.testing.assert_allclose(found, expected, rtol=0, atol=rtol * float(np.ptp(expected)))
    return result


def removed(result: CompactResult, group: str | None = None) -> dict[str, tuple[int, ...]]:
    """Give what went from a group, or from the only one of which anything did, by how it went."""
    rows = [g for g in result.groups if (g.id == group if group else g.n_removed)]
    assert len(rows) == 1, [(g.id, g.n_removed) for g in result.groups]
    return dict(rows[0].removed)


def weights_of(model: Model) -> dict[str, Array]:
    """Give the initializers of a model by name."""
    return {t.name: numpy_helper.to_array(t) for t in model.proto.graph.initializer}
