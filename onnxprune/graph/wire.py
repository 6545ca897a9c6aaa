"""Large tensors taken out of the bytes of a model, and put back, without parsing or holding them.

A model of gigabytes is mostly the `raw_data` of its tensors. `hollow` walks the bytes of a file (a memory map, of which
only the headers are touched) and gives the model without them; `filled` gives the pieces that a model with such tensors
is written from. Both leave everything else as it is, byte for byte.

Source: the wire format of protocol buffers, and the field numbers of onnx.proto3.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import onnx
from google.protobuf.message import DecodeError

Buffer = Any
Pieces = list[Any]
RAW_DATA = 9
# Which fields of a message lead to tensors.
_INSIDE: dict[str, dict[int, str]] = {
    "model": {7: "graph"},
    "graph": {1: "node", 5: "tensor"},
    "node": {5: "attribute"},
    "attribute": {6: "graph"},
    "constant": {5: "held"},
    "held": {5: "tensor"},
}
_MAX_DEPTH = 100
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_OP_TYPE = 4

Take = Callable[[onnx.TensorProto, int, int], onnx.TensorProto | None]
Give = Callable[[onnx.TensorProto], Any]


def hollow(content: Buffer, take: Take, at_least: int) -> bytes:
    """Give the bytes of a model without the large tensors that `take` takes.

    `take(tensor, offset, length)` gets a tensor without its data and where the data lies in `content`, and gives what
    stands for it, or None to leave it. Data of fewer than `at_least` bytes is left. Raises `DecodeError` for what is no
    such message.
    """

    def tensor(start: int, end: int) -> Pieces | None:
        fields = _fields(content, start, end)
        data = [(at, p, q) for number, kind, at, p, q in fields if number == RAW_DATA and kind == _BYTES]
        if len(data) != 1 or data[0][2] - data[0][1] < at_least:
            return None
        at, first, last = data[0]
        bare = onnx.TensorProto()
        bare.MergeFromString(bytes(content[start:at]))
        bare.MergeFromString(bytes(content[last:end]))
        stands = take(bare, first, last - first)
        return None if stands is None else [stands.SerializeToString(deterministic=True)]

    def worth(start: int, end: int) -> bool:
        return end - start >= at_least

    pieces = _walk(content, 0, len(content), "model", tensor, worth)
    return bytes(content) if pieces is None else b"".join(pieces)


def filled(skeleton: bytes, mark: bytes, give: Give) -> Pieces:
    """Give the pieces of a model whose tensors that hold `mark` get their data, what `give` gives for them.

    Pieces are bytes, or what `give` gave: something with a length. The result is what serializing a whole proto gives.
    """

    def tensor(start: int, end: int) -> Pieces | None:
        proto = onnx.TensorProto()
        proto.ParseFromString(bytes(skeleton[start:end]))
        payload = give(proto)
        if payload is None:
            return None
        del proto.external_data[:]
        proto.ClearField("data_location")
        content = proto.SerializeToString(deterministic=True)
        fields = _fields(content, 0, len(content))
        split = next((at for number, _, at, _, _ in fields if number > RAW_DATA), len(content))
        head = content[:split] + _varint(RAW_DATA << 3 | _BYTES) + _varint(len(payload))
        return [head, payload, content[split:]]

    def worth(start: int, end: int) -> bool:
        return skeleton.find(mark, start, end) >= 0

    pieces = _walk(skeleton, 0, len(skeleton), "model", tensor, worth)
    return [skeleton] if pieces is None else pieces


def _walk(
    content: Buffer,
    start: int,
    end: int,
    message: str,
    tensor: Callable[[int, int], Pieces | None],
    worth: Callable[[int, int], bool],
    depth: int = 0,
) -> Pieces | None:
    """Give the pieces of one message, the tensors in it as `tensor` has them; None where nothing changes."""
    inside = _INSIDE[message]
    pieces: Pieces = []
    done = start
    for number, kind, at, first, last in _fields(content, start, end):
        child = inside.get(number)
        if child is None or kind != _BYTES or depth > _MAX_DEPTH or not worth(first, last):
            continue
        if child == "tensor":
            new = tensor(first, last)
        else:
            if child == "node" and _is_constant(content, first, last):
                child = "constant"
            new = _walk(content, first, last, child, tensor, worth, depth + 1)
        if new is not None:
            header = _varint(number << 3 | _BYTES) + _varint(sum(map(len, new)))
            pieces += [content[done:at], header, *new]
            done = last
    return [*pieces, content[done:end]] if pieces else None


def _is_constant(content: Buffer, start: int, end: int) -> bool:
    fields = _fields(content, start, end)
    return [bytes(content[p:q]) for n, kind, _, p, q in fields if (n, kind) == (_OP_TYPE, _BYTES)] == [b"Constant"]


def _fields(content: Buffer, start: int, end: int) -> Iterator[tuple[int, int, int, int, int]]:
    """List the fields of a message: number, wire type, where it begins, and where its value begins and ends."""
    at = start
    while at < end:
        tag, value = _read(content, at, end)
        kind = tag & 7
        if kind == _BYTES:
            length, value = _read(content, value, end)
            last = value + length
        elif kind == _VARINT:
            last = _read(content, value, end)[1]
        elif kind in (_FIXED64, _FIXED32):
            last = value + (8 if kind == _FIXED64 else 4)
        else:
            raise DecodeError(f"wire type {kind} at byte {at}")
        if last > end:
            raise DecodeError(f"a field at byte {at} is cut short")
        yield tag >> 3, kind, at, value, last
        at = last


def _read(content: Buffer, at: int, end: int) -> tuple[int, int]:
    """Read a variable-length integer: it, and where it ends."""
    number = shift = 0
    while at < end and shift < 70:
        byte = content[at]
        at += 1
        if byte < 0x80:
            return number | byte << shift, at
        number |= (byte & 0x7F) << shift
        shift += 7
    raise DecodeError(f"a number at byte {at} is cut short")


def _varint(number: int) -> bytes:
    parts = bytearray()
    while number >= 0x80:
        parts.append(number & 0x7F | 0x80)
        number >>= 7
    parts.append(number)
    return bytes(parts)
