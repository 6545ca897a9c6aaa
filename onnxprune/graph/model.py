"""A model: the proto that is the truth, where it came from, and its tensors as arrays.

`load` reads, `save` writes whole or not at all. Nothing here looks at what the graph computes.
"""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from google.protobuf.message import DecodeError
from onnx import external_data_helper, numpy_helper

from ..errors import ModelError, OptionError
from .flatten import Flat, flatten
from .policy import refuse_unusable
from .sizes import tensor_nbytes, tensors_of
from .staging import staged

SINGLE_FILE_LIMIT = 2_000_000_000


@dataclass
class Model:
    """An ONNX model with the file it was read from, if any.

    `proto` holds graph and weights; tensors stored outside the file keep their references and are read on demand.
    `prefers_external_data` says that it was cut from a model that kept its data outside.
    """

    proto: onnx.ModelProto
    path: Path | None = None
    raw: bytes | None = field(default=None, repr=False)
    prefers_external_data: bool = False

    @cached_property
    def sha256(self) -> str:
        """Digest of the source file's bytes, or of the serialized proto for a model without a file."""
        if self.path is not None and self.raw is None:
            return _file_sha256(self.path)
        return hashlib.sha256(self.raw if self.raw is not None else serialize(self.proto)).hexdigest()

    @cached_property
    def flat(self) -> Flat:
        """The model with all bodies laid open, for reading."""
        return flatten(self.proto)

    @property
    def tensors(self) -> dict[str, onnx.TensorProto]:
        """Initializers and the values of Constant nodes of all graphs, by flat name."""
        return self.flat.tensors

    def array(self, name: str) -> np.ndarray[Any, Any]:
        """Give the tensor `name` as an array, read from external data when it lies there."""
        tensor = self.tensors[name]
        base = str(self.path.parent) if self.path is not None else ""
        try:
            return numpy_helper.to_array(tensor, base_dir=base)
        except (ValueError, OSError, onnx.checker.ValidationError) as error:
            raise ModelError(f"{self.label}: the data of tensor {name!r} cannot be read ({error})") from error

    @property
    def label(self) -> str:
        """Name the model in messages."""
        return str(self.path) if self.path is not None else f"model {self.proto.graph.name!r}"

    @property
    def has_external_data(self) -> bool:
        """Say whether any initializer's data lies in another file."""
        return any(external_data_helper.uses_external_data(t) for t in tensors_of(self.proto.graph))


def load(source: Any) -> Model:
    """Open a model from a path, an `onnx.ModelProto`, a `Model` or an onnx-graphsurgeon `Graph`.

    Raises `ModelError` when there is no such file, when it is no ONNX model, or when it is bound to one machine's
    hardware layout.
    """
    if isinstance(source, Model):
        return source
    if isinstance(source, onnx.ModelProto):
        model = Model(source)
    elif isinstance(source, (str, os.PathLike)):
        model = _read(Path(source))
    elif type(source).__module__.startswith("onnx_graphsurgeon"):
        import onnx_graphsurgeon as gs

        model = Model(gs.export_onnx(source))
    else:
        raise OptionError(f"cannot load a model from {type(source).__name__}; give a path or an onnx.ModelProto")
    refuse_unusable(model)
    return model


def _read(path: Path) -> Model:
    try:
        raw = path.read_bytes()
    except FileNotFoundError:
        raise ModelError(f"{path}: no such file") from None
    except OSError as error:
        raise ModelError(f"{path}: cannot be read ({error.strerror})") from error
    proto = onnx.ModelProto()
    try:
        proto.ParseFromString(raw)
    except DecodeError:
        raise ModelError(f"{path}: not an ONNX model, or cut short ({len(raw)} bytes)") from None
    return Model(proto, path, raw)


def serialize(proto: onnx.ModelProto) -> bytes:
    """Serialize a proto the same way every time."""
    return bytes(proto.SerializeToString(deterministic=True))


def save(model: Model, path: str | os.PathLike[str], *, external_data: bool | None = None) -> None:
    """Write `model` to `path`, whole or not at all.

    One file below 2 GB unless the source kept its data outside; then one data file `NAME.data` beside it.
    `external_data` True or False chooses. Raises `OptionError` when `path` is the source or cannot be written.
    """
    target = Path(path)
    refuse_source(model, target)
    outside = model.has_external_data or model.prefers_external_data if external_data is None else external_data
    if external_data is None and not outside:
        sized = (t for t in model.proto.graph.initializer if t.data_type != onnx.TensorProto.STRING)
        outside = sum(tensor_nbytes(t) for t in sized) >= SINGLE_FILE_LIMIT
    data = target.with_name(target.name + ".data")
    with staged(target) as stage:
        if model.raw is not None and not outside and not model.has_external_data:
            stage(target, model.raw)
            return
        proto = onnx.ModelProto()
        proto.CopyFrom(model.proto)
        if outside:
            stage(data, None)
            with open(stage.paths[data], "wb") as sink:
                for tensor in tensors_of(proto.graph):
                    _move_out(model, tensor, sink, data.name)
        elif model.has_external_data:
            for tensor in tensors_of(proto.graph):
                _move_in(model, tensor)
        stage(target, serialize(proto))


def refuse_source(model: Model, target: Path) -> None:
    """Refuse to write over the model's own file or one of its data files."""
    if model.path is None:
        return
    sources = [model.path]
    for tensor in tensors_of(model.proto.graph):
        if external_data_helper.uses_external_data(tensor):
            sources += [model.path.parent / e.value for e in tensor.external_data if e.key == "location"]
    data = target.with_name(target.name + ".data")
    for source in dict.fromkeys(sources):
        for out in (target, data):
            if out.resolve() == source.resolve():
                raise OptionError(f"{out}: the output would overwrite the source; choose another path")


def _payload(model: Model, tensor: onnx.TensorProto) -> bytes | None:
    """Raw bytes of a tensor, or None when it has no fixed-size representation."""
    if external_data_helper.uses_external_data(tensor):
        assert model.path is not None
        entries = {e.key: e.value for e in tensor.external_data}
        with open(model.path.parent / entries["location"], "rb") as f:
            f.seek(int(entries.get("offset", 0)))
            content: bytes = f.read(tensor_nbytes(tensor))
            return content
    return bytes(tensor.raw_data) if tensor.HasField("raw_data") else None


_INLINE_BELOW = 1024
_ALIGNMENT = 4096


def _move_out(model: Model, tensor: onnx.TensorProto, sink: Any, location: str) -> None:
    payload = _payload(model, tensor)
    if payload is None or len(payload) < _INLINE_BELOW:
        _move_in(model, tensor)
        return
    offset = -(-sink.tell() // _ALIGNMENT) * _ALIGNMENT
    sink.seek(offset)
    sink.write(payload)
    tensor.ClearField("raw_data")
    del tensor.external_data[:]
    tensor.data_location = onnx.TensorProto.EXTERNAL
    for key, value in (("location", location), ("offset", str(offset)), ("length", str(len(payload)))):
        tensor.external_data.add(key=key, value=value)


def _move_in(model: Model, tensor: onnx.TensorProto) -> None:
    if external_data_helper.uses_external_data(tensor):
        payload = _payload(model, tensor)
        del tensor.external_data[:]
        tensor.ClearField("data_location")
        tensor.raw_data = payload or b""


def _file_sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as f:
        while block := f.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
