"""A model: the proto that is the truth, where it came from, and its tensors as arrays.

`load` reads, `save` writes whole or not at all. Nothing here looks at what the graph computes.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import tempfile
from collections.abc import Iterator
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

SINGLE_FILE_LIMIT = 2_000_000_000
_HARDWARE_DOMAINS = ("com.microsoft.nchwc", "com.ms.internal.nhwc")


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
    _refuse_unusable(model)
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


def _refuse_unusable(model: Model) -> None:
    proto = model.proto
    if not proto.HasField("graph") or (not proto.graph.node and not proto.graph.output):
        raise ModelError(f"{model.label}: holds no graph; is it an ONNX model?")
    for domain in {node.domain for node in proto.graph.node} & set(_HARDWARE_DOMAINS):
        raise ModelError(
            f"{model.label}: holds operators of {domain!r}, laid out for one machine's hardware. "
            "Export it with onnxruntime's ORT_ENABLE_EXTENDED or lower"
        )
    external_data_contained(model)


def external_data_contained(model: Model) -> None:
    """Refuse external data outside the model's folder (or its resolved target's) or larger than its file.

    Source: onnxruntime's containment check; the sizes are computed here because loaders do not.
    """
    for tensor in tensors_of(model.proto.graph):
        name = tensor.name
        if not external_data_helper.uses_external_data(tensor):
            continue
        entries = {e.key: e.value for e in tensor.external_data}
        location = entries.get("location", "")
        if model.path is None:
            raise ModelError(f"tensor {name!r} lies in {location!r}, but the model was not read from a file")
        where = f"{model.path}: external data {location!r} of tensor {name!r}"
        if not location or "\0" in location or Path(location).is_absolute() or ".." in Path(location).parts:
            raise ModelError(f"{where}: the location must be a relative path inside the model's folder")
        target = (model.path.parent / location).resolve()
        homes = {model.path.parent.resolve(), model.path.resolve().parent}
        if not any(target.is_relative_to(home) for home in homes):
            raise ModelError(f"{where}: leads outside the model's folder")
        if not target.is_file():
            raise ModelError(f"{where}: no such regular file")
        try:
            offset, length = int(entries.get("offset", 0)), int(entries.get("length", -1))
        except ValueError:
            raise ModelError(f"{where}: offset and length must be integers") from None
        expected = tensor_nbytes(tensor)
        if offset < 0 or length not in (-1, expected) or offset + expected > target.stat().st_size:
            raise ModelError(f"{where}: {expected} bytes at {offset} are not all there")


def tensor_nbytes(tensor: onnx.TensorProto) -> int:
    """Size in bytes of a tensor's data, from its type and dimensions."""
    n = 1
    for d in tensor.dims:
        if d < 0:
            raise ModelError(f"tensor {tensor.name!r} declares the dimension {d}")
        n *= d
    bits = _BITS.get(tensor.data_type)
    if bits is None:
        raise ModelError(f"tensor {tensor.name!r} has a type without a fixed size ({tensor.data_type})")
    return (n * bits + 7) // 8


def _bits() -> dict[int, int]:
    t = onnx.TensorProto
    widths = {2: ("INT2", "UINT2"), 4: ("INT4", "UINT4", "FLOAT4E2M1"), 16: ("FLOAT16", "BFLOAT16", "INT16", "UINT16")}
    widths |= {32: ("FLOAT", "INT32", "UINT32"), 64: ("DOUBLE", "INT64", "UINT64", "COMPLEX64"), 128: ("COMPLEX128",)}
    eight = ("INT8", "UINT8", "BOOL", "FLOAT8E4M3FN", "FLOAT8E4M3FNUZ", "FLOAT8E5M2", "FLOAT8E5M2FNUZ", "FLOAT8E8M0")
    widths[8] = eight
    return {getattr(t, name): bits for bits, names in widths.items() for name in names if hasattr(t, name)}


_BITS = _bits()


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
    with _staged(target) as stage:
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


def tensors_of(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    """List all tensors of a graph: initializers, node attributes, and those of graphs inside nodes."""
    yield from graph.initializer
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.TENSOR:
                yield attribute.t
            elif attribute.type == onnx.AttributeProto.GRAPH:
                yield from tensors_of(attribute.g)


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


class _Stage:
    """Temporary files beside their targets, renamed together at the end."""

    def __init__(self) -> None:
        self.paths: dict[Path, Path] = {}

    def __call__(self, target: Path, content: bytes | None) -> None:
        handle, name = tempfile.mkstemp(prefix=f".{target.name}.", suffix=".partial", dir=target.parent)
        os.close(handle)
        self.paths[target] = Path(name)
        if content is not None:
            Path(name).write_bytes(content)


@contextlib.contextmanager
def _staged(target: Path) -> Iterator[_Stage]:
    """Give a stage whose files replace their targets on success and vanish on failure."""
    if target.is_dir():
        raise OptionError(f"{target}: is a folder; give the output a file name")
    if target.exists() and not target.is_file():
        raise OptionError(f"{target}: is no regular file; give the output a file name")
    if not target.parent.is_dir():
        raise OptionError(f"{target}: the folder {str(target.parent)!r} does not exist")
    stage = _Stage()
    try:
        yield stage
        mask = os.umask(0)
        os.umask(mask)
        for temporary in stage.paths.values():
            temporary.chmod(0o666 & ~mask)
            with open(temporary, "rb") as f:
                os.fsync(f.fileno())
        for final, temporary in stage.paths.items():
            temporary.replace(final)
    except OSError as error:
        raise OptionError(f"{target}: cannot be written ({error.strerror or error})") from error
    finally:
        for temporary in stage.paths.values():
            temporary.unlink(missing_ok=True)


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write a text file whole or not at all; raises `OptionError` when it cannot be written."""
    with _staged(Path(path)) as stage:
        stage(Path(path), text.encode())


def _file_sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as f:
        while block := f.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
