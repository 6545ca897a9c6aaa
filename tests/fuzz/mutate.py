"""Mutations of a serialized model: of its bytes, of its protobuf fields, and of what the graph says."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import onnx
from google.protobuf.message import DecodeError, EncodeError, Message

NUMBERS = (-1, 0, 1, 2, 3, 7, 16, 31, 32, 255, 2**15, 2**16, 2**20, 2**31 - 1, 2**31, 2**32, 2**40, 2**63 - 1, -(2**63))
FLOATS = (0.0, -1.0, 1e-45, 1e38, float("inf"), float("-inf"), float("nan"))
TEXTS = ("", "x", "y", "/", "../../etc/passwd", "\0", "a" * 300, "ai.onnx", "com.microsoft", "é", "1")
OPS = ("Add", "MatMul", "Conv", "Gemm", "Reshape", "Concat", "Split", "Slice", "Gather", "Transpose", "Identity", "If",
       "Loop", "Scan", "Constant", "ConstantOfShape", "Shape", "LSTM", "GRU", "BatchNormalization", "Softmax", "Expand",
       "Tile", "Pad", "Resize", "DequantizeLinear", "QuantizeLinear", "Squeeze", "Unsqueeze", "ReduceMean", "Einsum",
       "LayerNormalization", "Flatten", "TopK", "Range", "Where", "Cast", "ConvTranspose", "DepthToSpace", "NonZero",
       "Nothing", "SequenceAt", "MaxPool", "Clip", "PRelu", "ScatterND", "Attention", "MatMulNBits", "QLinearConv",
       "SkipLayerNormalization", "MultiHeadAttention", "GroupQueryAttention", "EmbedLayerNormalization",
       "RotaryEmbedding", "Outer", "Inner")  # fmt: skip


def mutant(content: bytes, rng: random.Random) -> bytes:
    """Give a broken or changed copy of a serialized model."""
    if rng.random() < 0.2:
        for _ in range(rng.choice((1, 1, 2, 8))):
            content = rng.choice(BYTES)(content, rng) or b"\n"
        return content
    model = onnx.ModelProto.FromString(content)
    for _ in range(rng.choice((1, 1, 1, 2, 2, 3, 5))):
        rng.choice(STRUCTURAL)(model, rng)
    try:
        return bytes(model.SerializeToString())
    except (EncodeError, DecodeError, ValueError):
        return content


# --- bytes ---


def _flip(content: bytes, rng: random.Random) -> bytes:
    at = rng.randrange(len(content))
    return content[:at] + bytes([content[at] ^ (1 << rng.randrange(8))]) + content[at + 1 :]


def _flip_early(content: bytes, rng: random.Random) -> bytes:
    """Flip a bit outside the large tensors more often than not."""
    at = rng.randrange(min(len(content), 600))
    return content[:at] + bytes([rng.randrange(256)]) + content[at + 1 :]


def _cut_off(content: bytes, rng: random.Random) -> bytes:
    return content[: rng.randrange(len(content)) + 1]


def _drop(content: bytes, rng: random.Random) -> bytes:
    at = rng.randrange(len(content))
    return content[:at] + content[at + rng.randrange(1, 20) :]


def _insert(content: bytes, rng: random.Random) -> bytes:
    at = rng.randrange(len(content))
    return content[:at] + rng.randbytes(rng.randrange(1, 9)) + content[at:]


BYTES: tuple[Callable[[bytes, random.Random], bytes], ...] = (_flip, _flip_early, _flip_early, _cut_off, _drop, _insert)


# --- fields ---


def messages(root: Message) -> list[Message]:
    """List a message and all messages in it."""
    found, waiting = [], [root]
    while waiting:
        message = waiting.pop()
        found.append(message)
        for field, value in message.ListFields():
            if field.message_type is not None:
                waiting += list(value) if field.is_repeated else [value]
    return found


def _field(model: onnx.ModelProto, rng: random.Random) -> None:
    """Clear, double, reorder or overwrite a field of a random message."""
    message = rng.choice(messages(model))
    fields = message.ListFields()
    if not fields:
        return
    field, value = rng.choice(fields)
    how = rng.randrange(4)
    if how == 0:
        message.ClearField(field.name)
    elif field.is_repeated:
        _change_list(field, value, how, rng)
    elif field.message_type is not None:
        _set_unset(value, rng)
    else:
        setattr(message, field.name, _other(field, value, rng))


def _change_list(field: Any, value: Any, how: int, rng: random.Random) -> None:
    k = rng.randrange(len(value))
    if field.message_type is not None:
        if how == 1:
            del value[k]
        elif how == 2:
            value.add().CopyFrom(value[k])
        else:
            other = type(value[k])()
            other.CopyFrom(value[k])
            value[k].CopyFrom(value[rng.randrange(len(value))])
            value[rng.randrange(len(value))].CopyFrom(other)
    elif how == 1:
        del value[k]
    elif how == 2:
        value.append(_other(field, value[k], rng))
    else:
        value[k] = _other(field, value[k], rng)


def _set_unset(message: Message, rng: random.Random) -> None:
    """Set a field that was not there."""
    field = rng.choice(message.DESCRIPTOR.fields)
    if field.message_type is not None or field.is_repeated:
        return
    setattr(message, field.name, _other(field, None, rng))


def _other(field: Any, value: Any, rng: random.Random) -> Any:
    """Give another value of a field's type."""
    if field.enum_type is not None:
        return rng.choice([v.number for v in field.enum_type.values])
    kind = field.cpp_type
    if kind == field.CPPTYPE_STRING:
        if field.type == field.TYPE_BYTES:
            old = value or b"abc"
            return rng.choice((b"", old[: len(old) // 2], old + b"\0", b"\xff\xfe", b"body"))
        return rng.choice(TEXTS)
    if kind in (field.CPPTYPE_FLOAT, field.CPPTYPE_DOUBLE):
        return rng.choice(FLOATS)
    number = rng.choice((*NUMBERS, (value or 0) + 1, (value or 0) - 1, (value or 0) * 2))
    low, high = (-(2**31), 2**31 - 1) if kind == field.CPPTYPE_INT32 else (-(2**63), 2**63 - 1)
    if kind in (field.CPPTYPE_UINT32, field.CPPTYPE_UINT64):
        low, high = 0, 2**32 - 1 if kind == field.CPPTYPE_UINT32 else 2**64 - 1
    return min(max(number, low), high)


# --- graph ---


def _node(model: onnx.ModelProto, rng: random.Random) -> onnx.NodeProto | None:
    nodes = [m for m in messages(model) if isinstance(m, onnx.NodeProto)]
    return rng.choice(nodes) if nodes else None


def _reconnect(model: onnx.ModelProto, rng: random.Random) -> None:
    """Let a node read another value: later ones make cycles, others change types and shapes."""
    node = _node(model, rng)
    if node is None or not node.input:
        return
    names = [n for other in model.graph.node for n in other.output] + [t.name for t in model.graph.initializer]
    node.input[rng.randrange(len(node.input))] = rng.choice([*names, "", "nowhere"])


def _operator(model: onnx.ModelProto, rng: random.Random) -> None:
    node = _node(model, rng)
    if node is not None:
        node.op_type = rng.choice(OPS)
        if rng.random() < 0.3:
            node.domain = rng.choice(("", "com.microsoft", "f", "ai.onnx", "ai.onnx.ml"))


def _tensor(model: onnx.ModelProto, rng: random.Random) -> None:
    """Change dimensions or type of a tensor, without or with its data."""
    tensors = [m for m in messages(model) if isinstance(m, onnx.TensorProto)]
    if not tensors:
        return
    tensor = rng.choice(tensors)
    how = rng.randrange(5)
    if how == 0 and tensor.dims:
        tensor.dims[rng.randrange(len(tensor.dims))] = rng.choice(NUMBERS)
    elif how == 1:
        tensor.data_type = rng.randrange(28)
    elif how == 2 and tensor.dims:
        old, k = list(tensor.dims), rng.randrange(len(tensor.dims))
        tensor.dims[k] = max(0, old[k] + rng.choice((-1, 1)))
        if old[k] > 0 and tensor.raw_data:
            one = len(tensor.raw_data) // old[k]
            tensor.raw_data = (tensor.raw_data + tensor.raw_data[:one])[: one * tensor.dims[k]]
    elif how == 3 and len(tensor.dims) > 1:
        dims = list(tensor.dims)
        rng.shuffle(dims)
        tensor.dims[:] = dims
    else:
        tensor.dims.extend([1] * rng.choice((1, 2, 70)))


def _interface(model: onnx.ModelProto, rng: random.Random) -> None:
    """Change a declared shape or type."""
    values = [*model.graph.input, *model.graph.output, *model.graph.value_info]
    if not values:
        return
    tensor = rng.choice(values).type.tensor_type
    if rng.random() < 0.3 or not tensor.shape.dim:
        tensor.elem_type = rng.randrange(28)
    else:
        dim = rng.choice(tensor.shape.dim)
        if rng.random() < 0.3:
            dim.dim_param = rng.choice(("n", "batch", "seq + past", "past_sequence_length", ""))
        else:
            dim.dim_value = rng.choice(NUMBERS)


def _attribute(model: onnx.ModelProto, rng: random.Random) -> None:
    attributes = [m for m in messages(model) if isinstance(m, onnx.AttributeProto)]
    if not attributes:
        return
    attribute = rng.choice(attributes)
    how = rng.randrange(4)
    if how == 0:
        attribute.i = rng.choice(NUMBERS)
    elif how == 1 and attribute.ints:
        attribute.ints[rng.randrange(len(attribute.ints))] = rng.choice(NUMBERS)
    elif how == 2:
        attribute.type = rng.randrange(15)
    else:
        attribute.name = rng.choice(("axis", "body", "value", "perm", "then_branch", "group", "hidden_size", ""))


def _drop_tensor(model: onnx.ModelProto, rng: random.Random) -> None:
    if model.graph.initializer:
        del model.graph.initializer[rng.randrange(len(model.graph.initializer))]


def _shuffle(model: onnx.ModelProto, rng: random.Random) -> None:
    """Swap two nodes."""
    nodes = model.graph.node
    if len(nodes) > 1:
        a, b = rng.randrange(len(nodes)), rng.randrange(len(nodes))
        one = onnx.NodeProto()
        one.CopyFrom(nodes[a])
        nodes[a].CopyFrom(nodes[b])
        nodes[b].CopyFrom(one)


def _versions(model: onnx.ModelProto, rng: random.Random) -> None:
    if model.opset_import and rng.random() < 0.7:
        rng.choice(model.opset_import).version = rng.choice((-1, 0, 1, 5, 7, 9, 11, 13, 17, 18, 21, 24, 28, 10**6))
    else:
        model.ir_version = rng.choice((0, 1, 3, 8, 13, 99))


STRUCTURAL: tuple[Callable[[onnx.ModelProto, random.Random], None], ...] = (
    _field, _field, _field, _reconnect, _operator, _tensor, _tensor, _interface, _attribute, _attribute, _drop_tensor,
    _shuffle, _versions,
)  # fmt: skip
