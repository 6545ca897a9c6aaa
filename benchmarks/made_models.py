"""Models made for measuring: decoders like Llama's, of any depth and width, with weights that take no disk.

    python benchmarks/made_models.py OUT.onnx --layers 22 --hidden 4096 --ffn 14336 --vocab 32000

The weights lie in OUT.onnx.data, a sparse file: reading it gives zeros, and its size is the size of the model.
"""

from __future__ import annotations

import argparse
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

ALIGNMENT = 4096


@dataclass(frozen=True)
class Decoder:
    """Widths of a decoder; `head` is the width of one head, `kv_heads` how many keys and values there are."""

    layers: int = 22
    hidden: int = 4096
    ffn: int = 14336
    heads: int = 32
    kv_heads: int = 8
    vocab: int = 32000
    length: int = 8
    dtype: int = TensorProto.FLOAT

    @property
    def head(self) -> int:
        """Width of one head."""
        return self.hidden // self.heads


class _Graph:
    """Nodes and tensors as they are made; every node's output is named after it."""

    def __init__(self, decoder: Decoder) -> None:
        self.decoder = decoder
        self.nodes: list[onnx.NodeProto] = []
        self.tensors: list[onnx.TensorProto] = []

    def node(self, op: str, name: str, *inputs: str, **attributes: object) -> str:
        self.nodes.append(helper.make_node(op, inputs, [name], name=f"node_{name}", **attributes))
        return name

    def weight(self, name: str, *dims: int) -> str:
        self.tensors.append(TensorProto(name=name, data_type=self.decoder.dtype, dims=dims))
        return name

    def constant(self, name: str, value: object, dtype: type = np.int64) -> str:
        self.tensors.append(numpy_helper.from_array(np.array(value, dtype), name))
        return name

    def norm(self, name: str, x: str) -> str:
        """RMSNorm as exporters write it before opset 23."""
        square = self.node("Mul", f"{name}.square", x, x)
        mean = self.node("ReduceMean", f"{name}.mean", square, "last", keepdims=1)
        root = self.node("Sqrt", f"{name}.root", self.node("Add", f"{name}.add", mean, "eps"))
        inverse = self.node("Reciprocal", f"{name}.inverse", root)
        scaled = self.node("Mul", f"{name}.scaled", x, inverse)
        return self.node("Mul", name, self.weight(f"{name}.weight", self.decoder.hidden), scaled)

    def rotated(self, name: str, x: str) -> str:
        low = self.node("Slice", f"{name}.low", x, "zero", "half", "three")
        high = self.node("Slice", f"{name}.high", x, "half", "end", "three")
        turned = self.node("Concat", f"{name}.turned", self.node("Neg", f"{name}.neg", high), low, axis=-1)
        straight = self.node("Mul", f"{name}.cos", x, "cos")
        return self.node("Add", name, straight, self.node("Mul", f"{name}.sin", turned, "sin"))

    def heads(self, name: str, x: str, n: int, *, rotate: bool) -> str:
        d = self.decoder
        flat = self.node("MatMul", f"{name}.flat", x, self.weight(f"{name}.weight", d.hidden, n * d.head))
        shape = self.constant(f"{name}.shape", [1, d.length, n, d.head])
        split = self.node("Reshape", f"{name}.split", flat, shape)
        moved = self.node("Transpose", f"{name}.moved", split, perm=[0, 2, 1, 3])
        return self.rotated(f"{name}.rotated", moved) if rotate else moved

    def shared(self, name: str, x: str) -> str:
        """Repeat keys or values for the queries that share them."""
        d = self.decoder
        wide = self.node("Unsqueeze", f"{name}.wide", x, "two")
        sizes = [1, d.kv_heads, d.heads // d.kv_heads, d.length, d.head]
        spread = self.node("Expand", f"{name}.spread", wide, self.constant(f"{name}.spread.shape", sizes))
        return self.node("Reshape", name, spread, self.constant(f"{name}.shape", [1, d.heads, d.length, d.head]))

    def layer(self, name: str, x: str) -> str:
        d = self.decoder
        y = self.norm(f"{name}.input_norm", x)
        q = self.heads(f"{name}.q", y, d.heads, rotate=True)
        k = self.shared(f"{name}.k.all", self.heads(f"{name}.k", y, d.kv_heads, rotate=True))
        v = self.shared(f"{name}.v.all", self.heads(f"{name}.v", y, d.kv_heads, rotate=False))
        scores = self.node("MatMul", f"{name}.scores", q, self.node("Transpose", f"{name}.kt", k, perm=[0, 1, 3, 2]))
        masked = self.node("Add", f"{name}.masked", self.node("Mul", f"{name}.scaled", scores, "scale"), "mask")
        mixed = self.node("MatMul", f"{name}.mixed", self.node("Softmax", f"{name}.softmax", masked, axis=-1), v)
        joined = self.node("Transpose", f"{name}.joined", mixed, perm=[0, 2, 1, 3])
        shape = self.constant(f"{name}.joined.shape", [1, d.length, d.heads * d.head])
        flat = self.node("Reshape", f"{name}.attended", joined, shape)
        out = self.node("MatMul", f"{name}.o", flat, self.weight(f"{name}.o.weight", d.heads * d.head, d.hidden))
        x = self.node("Add", f"{name}.residual", x, out)
        y = self.norm(f"{name}.post_norm", x)
        gate = self.node("MatMul", f"{name}.gate", y, self.weight(f"{name}.gate.weight", d.hidden, d.ffn))
        up = self.node("MatMul", f"{name}.up", y, self.weight(f"{name}.up.weight", d.hidden, d.ffn))
        silu = self.node("Mul", f"{name}.silu", gate, self.node("Sigmoid", f"{name}.sigmoid", gate))
        wide = self.node("Mul", f"{name}.wide", silu, up)
        down = self.node("MatMul", f"{name}.down", wide, self.weight(f"{name}.down.weight", d.ffn, d.hidden))
        return self.node("Add", f"{name}.out", x, down)


def decoder_model(decoder: Decoder) -> onnx.ModelProto:
    """Make the graph of a decoder; its weights have types and dimensions, and no data."""
    d, g = decoder, _Graph(decoder)
    for name, value in (("last", [-1]), ("zero", [0]), ("half", [d.head // 2]), ("end", [d.head])):
        g.constant(name, value)
    g.constant("two", [2])
    g.constant("three", [3])
    real = helper.tensor_dtype_to_np_dtype(d.dtype)
    g.constant("eps", 1e-6, real)
    g.constant("scale", 1 / math.sqrt(d.head), real)
    g.constant("mask", np.triu(np.full((d.length, d.length), -1e4), 1), real)
    g.constant("cos", np.ones((1, 1, d.length, d.head)), real)
    g.constant("sin", np.zeros((1, 1, d.length, d.head)), real)
    x = g.node("Gather", "embedded", g.weight("embedding.weight", d.vocab, d.hidden), "ids")
    for k in range(d.layers):
        x = g.layer(f"layers.{k}", x)
    y = g.norm("norm", x)
    logits = g.node("MatMul", "logits", y, g.weight("head.weight", d.hidden, d.vocab))
    graph = helper.make_graph(
        g.nodes,
        "decoder",
        [helper.make_tensor_value_info("ids", TensorProto.INT64, [1, d.length])],
        [helper.make_tensor_value_info(logits, d.dtype, [1, d.length, d.vocab])],
        g.tensors,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


def write_sparse(model: onnx.ModelProto, path: Path) -> int:
    """Write a model whose weights without data lie in a sparse file beside it; give its size in bytes."""
    offset = 0
    for tensor in model.graph.initializer:
        if tensor.HasField("raw_data"):
            continue
        length = math.prod(tensor.dims) * helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize
        tensor.data_location = TensorProto.EXTERNAL
        for key, value in (("location", f"{path.name}.data"), ("offset", str(offset)), ("length", str(length))):
            tensor.external_data.add(key=key, value=value)
        offset += -(-length // ALIGNMENT) * ALIGNMENT
    path.write_bytes(model.SerializeToString())
    with open(path.with_name(f"{path.name}.data"), "wb") as data:
        data.truncate(offset)
    return offset


def main() -> None:
    """Make a model from the command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("output", type=Path)
    for name in ("layers", "hidden", "ffn", "heads", "kv_heads", "vocab"):
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, default=getattr(Decoder, name))
    given = vars(parser.parse_args())
    output = given.pop("output")
    n_bytes = write_sparse(decoder_model(Decoder(**given)), output)
    print(f"{output}: {n_bytes / 1e9:.2f} GB of weights")


if __name__ == "__main__":
    main()
