"""A model: the proto that is the truth, where it came from, and its tensors as arrays.

`load` reads, nothing of the weights where they are large; `graph.saving` writes. Nothing here looks at what the graph
computes.
"""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from google.protobuf.message import DecodeError
from onnx import external_data_helper, numpy_helper

from ..errors import ModelError, OptionError
from .flatten import Flat, flatten
from .payload import Array, Payload, copy_range
from .policy import refuse_irregular, refuse_unusable
from .seen import open_seen, refuse_changed
from .sizes import tensor_nbytes, tensors_of
from .staging import staged
from .store import Store, external_span, open_hollow, whole_bytes
from .writing import bring_in, write_inline, write_outside

SINGLE_FILE_LIMIT = 2_000_000_000
# Smaller files are read as a whole.
READ_BELOW = 1 << 26


class Model:
    """An ONNX model with the file it was read from, if any.

    `skeleton` holds the graph and small tensors; data of large ones may lie in the model's file, or be cut from there
    when it is read or written: `array` gives any of them. Where no tensor needs more than what is in the skeleton it is
    the whole proto. Tensors stored outside the file keep their references and are read on demand.
    `raw` is the whole file where the model is what was read from it and small; `is_intact` says that it is what was
    read, `is_hollow` that data of the skeleton lies elsewhere. `prefers_external_data` says that it was cut from a
    model that kept its data outside.
    """

    def __init__(
        self,
        proto: onnx.ModelProto,
        path: Path | None = None,
        raw: bytes | None = None,
        *,
        prefers_external_data: bool = False,
        store: Store | None = None,
        is_intact: bool | None = None,
    ) -> None:
        self.skeleton = proto
        self.path = path
        self.raw = raw
        self.prefers_external_data = prefers_external_data
        self.store = store if store is not None else Store()
        self.is_hollow = bool(self.store)
        self.is_intact = raw is not None if is_intact is None else is_intact

    def __repr__(self) -> str:
        return f"Model({self.label})"

    @property
    def proto(self) -> onnx.ModelProto:
        """The whole proto: data that the skeleton only refers to is read into it, once."""
        if self.is_hollow:
            for tensor in tensors_of(self.skeleton.graph):
                payload = self.store.payload(tensor)
                if payload is not None:
                    bring_in(tensor, payload)
            self.is_hollow = False
        return self.skeleton

    @cached_property
    def sha256(self) -> str:
        """Digest of the source file's bytes, or of the serialized proto for a model without a file."""
        if self.path is not None and self.raw is None:
            return _file_sha256(self.path)
        return hashlib.sha256(self.raw if self.raw is not None else serialize(self.proto)).hexdigest()

    @cached_property
    def flat(self) -> Flat:
        """The model with all bodies laid open, for reading."""
        return flatten(self.skeleton)

    @property
    def tensors(self) -> dict[str, onnx.TensorProto]:
        """Initializers and the values of Constant nodes of all graphs, by flat name."""
        return self.flat.tensors

    def array(self, name: str) -> Array:
        """Give the tensor `name` as an array, not to be written to: it may be a map of the file it lies in."""
        return self.read(self.tensors[name])

    def read(self, tensor: onnx.TensorProto) -> Array:
        """Give a tensor of this model as an array; raises `ModelError` when its data cannot be read."""
        payload = self.payload(tensor)
        try:
            if payload is None:
                return np.asarray(numpy_helper.to_array(tensor))
            return self.store.array(tensor, payload)
        except (ValueError, TypeError, OSError) as error:
            raise ModelError(f"{self.label}: the data of tensor {tensor.name!r} cannot be read ({error})") from error

    def rows(self, name: str, split: int, n_elements: int) -> Iterator[Array]:
        """Give the tensor `name` some rows at a time, of `n_elements` or one row: (rows, *dims from axis `split` on).

        The axes before `split` are one. The next rows may overwrite the last; raises `ModelError` as `read` does.
        """
        tensor = self.tensors[name]
        payload, width = self.payload(tensor), whole_bytes(tensor.data_type)
        row = tuple(tensor.dims[split:])
        step = max(1, n_elements // max(1, math.prod(row)))
        if payload is None or width is None:
            array = self.read(tensor).reshape(math.prod(tensor.dims[:split]), *row)
            yield from (array[start : start + step] for start in range(0, len(array), step))
            return
        dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type)
        try:
            for window in payload.windows(max(1, step * math.prod(row) * width)):
                yield np.frombuffer(window, np.uint8).view(dtype).reshape(-1, *row)
        except OSError as error:
            raise ModelError(f"{self.label}: the data of tensor {tensor.name!r} cannot be read ({error})") from error

    def payload(self, tensor: onnx.TensorProto) -> Payload | None:
        """Give the data of a tensor that is not in the skeleton, None where it is."""
        held = self.store.payload(tensor)
        if held is None and external_data_helper.uses_external_data(tensor):
            return external_span(tensor, self.path)
        return held

    @property
    def label(self) -> str:
        """Name the model in messages."""
        return str(self.path) if self.path is not None else f"model {self.skeleton.graph.name!r}"

    @property
    def has_external_data(self) -> bool:
        """Say whether any initializer's data lies in another file."""
        return any(
            external_data_helper.uses_external_data(t) and not self.store.holds(t)
            for t in tensors_of(self.skeleton.graph)
        )


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
    """Read a small file whole, and of a large one what is no weight."""
    refuse_irregular(path)
    try:
        size = path.stat().st_size
        if size >= READ_BELOW and path.is_file():
            store = Store()
            hollow = open_hollow(path, store)
            refuse_changed(path)
            return Model(hollow, path, store=store, is_intact=True)
        raw = path.read_bytes()
        proto = onnx.ModelProto()
        proto.ParseFromString(raw)
    except FileNotFoundError:
        raise ModelError(f"{path}: no such file") from None
    except OSError as error:
        raise ModelError(f"{path}: cannot be read ({error.strerror})") from error
    except DecodeError:
        raise ModelError(f"{path}: not an ONNX model, or cut short ({size} bytes)") from None
    refuse_changed(path)
    return Model(proto, path, raw)


def serialize(proto: onnx.ModelProto) -> bytes:
    """Serialize a proto the same way every time."""
    return bytes(proto.SerializeToString(deterministic=True))


def save(model: Model, path: str | os.PathLike[str], *, external_data: bool | None = None) -> None:
    """Write `model` to `path`, whole or not at all, tensor by tensor.

    One file below 2 GB unless the source kept its data outside; then one data file `NAME.data` beside it, or
    `NAME.1.data` while another model of that name reads the first.
    `external_data` True or False chooses. Raises `OptionError` when `path` is the source or cannot be written.
    """
    target = Path(path)
    refuse_source(model, target)
    has_external_data = model.has_external_data
    outside = has_external_data or model.prefers_external_data if external_data is None else external_data
    if external_data is None and not outside:
        sized = (t for t in model.skeleton.graph.initializer if t.data_type != onnx.TensorProto.STRING)
        outside = sum(tensor_nbytes(t) for t in sized) >= SINGLE_FILE_LIMIT
    data = target.with_name(target.name + ".data")
    with staged(target) as stage:
        if model.is_intact and not outside and not has_external_data:
            stage(target, model.raw)
            if model.raw is None:
                assert model.path is not None
                with open_seen(model.path) as source, open(stage.paths[target], "wb") as sink:
                    copy_range(source.fileno(), 0, sink.fileno(), 0, model.path.stat().st_size)
        elif outside:
            stage(data, None)
            with open(stage.paths[data], "wb") as sink:
                proto = write_outside(model, sink.fileno(), data.name)
            _relocate(proto, data.name, stage.settle(data, target).name)
            stage(target, serialize(proto))
        elif model.is_hollow or has_external_data:
            stage(target, None)
            with open(stage.paths[target], "wb") as sink:
                write_inline(model, sink.fileno())
        else:
            stage(target, serialize(model.skeleton))


def _relocate(proto: onnx.ModelProto, name: str, to: str) -> None:
    """Have the tensors that lie in the data file `name` lie in another."""
    for tensor in tensors_of(proto.graph):
        for entry in tensor.external_data:
            if entry.key == "location" and entry.value == name != to:
                entry.value = to


def refuse_source(model: Model, target: Path) -> None:
    """Refuse to write over the model's own file or one of its data files."""
    if model.path is None:
        return
    sources = [model.path]
    for tensor in tensors_of(model.skeleton.graph):
        if external_data_helper.uses_external_data(tensor) and not model.store.holds(tensor):
            sources += [model.path.parent / e.value for e in tensor.external_data if e.key == "location"]
    data = target.with_name(target.name + ".data")
    for source in dict.fromkeys(sources):
        for out in (target, data):
            if out.resolve() == source.resolve() or (out.exists() and source.exists() and out.samefile(source)):
                raise OptionError(f"{out}: the output would overwrite the source; choose another path")


def _file_sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with open_seen(path) as f:
        while block := f.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
