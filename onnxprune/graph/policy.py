"""What is refused when a model is opened, before anything of it is used.

A model is a stranger's file. What it declares is compared with what is there, in integers that do not overflow, and
what would take more than any real model needs is refused by name. `structure` looks at what the nodes say.
"""

from __future__ import annotations

import re
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import onnx
from onnx import external_data_helper

from ..errors import ModelError
from .seen import remember
from .sizes import (
    DATA_FIELDS,
    bodies_of,
    dense_in,
    field_entries,
    is_known_type,
    n_elements,
    sparse_in,
    tensor_nbytes,
    tensors_in,
    tensors_of,
)
from .structure import refuse_broken

if TYPE_CHECKING:
    from .model import Model

_HARDWARE_DOMAINS = ("com.microsoft.nchwc", "com.ms.internal.nhwc")
MAX_SKELETON_BYTES = 512 << 20
MAX_SPARSE_BYTES = 16 << 30
# Tied weights may name the same bytes twice; a small file that is named a thousand times fills the disk on writing.
MAX_READINGS = 16
_KEYS = frozenset({"location", "offset", "length", "checksum"})
_PREPACKED = "prepacked_"


def refuse_irregular(path: Path) -> None:
    """Refuse a path that is read without end or waits for a writer; one that is not there is left to others."""
    try:
        mode = path.stat().st_mode
    except (OSError, ValueError):
        return
    if not stat.S_ISREG(mode):
        raise ModelError(f"{path}: is a {_kind(mode)}, no regular file")
    remember(path.resolve())


def refuse_unusable(model: Model) -> None:
    """Refuse a model that is broken, bound to one machine's hardware, too large to be real, or has data elsewhere."""
    proto = model.skeleton
    if not proto.HasField("graph") or (not proto.graph.node and not proto.graph.output):
        raise ModelError(f"{model.label}: holds no graph; is it an ONNX model?")
    for body, _ in bodies_of(proto):
        for domain in {node.domain for node in body.node} & set(_HARDWARE_DOMAINS):
            raise ModelError(
                f"{model.label}: holds operators of {domain!r}, laid out for one machine's hardware. "
                "Export it with onnxruntime's ORT_ENABLE_EXTENDED or lower"
            )
    _tensors_whole(model)
    external_data_contained(model)
    refuse_broken(proto, model.label)


def _tensors_whole(model: Model) -> None:
    """Refuse tensors whose data is not what their dimensions and type say, and a graph that is large without them."""
    proto = model.skeleton
    payload = 0
    for body, _ in bodies_of(proto):
        if isinstance(body, onnx.GraphProto):
            for tensor in body.initializer:
                payload += _check_tensor(model, tensor)
            for sparse in body.sparse_initializer:
                payload += _check_sparse(model, sparse)
        for node in body.node:
            for attribute in node.attribute:
                payload += sum(_check_tensor(model, tensor, whole=True) for tensor in dense_in(attribute))
                payload += sum(_check_sparse(model, sparse) for sparse in sparse_in(attribute))
    rest = (model.path.stat().st_size if model.path is not None else 0) - payload
    if rest > MAX_SKELETON_BYTES:
        raise ModelError(f"{model.label}: {rest >> 20} MiB beside its tensors, more than {MAX_SKELETON_BYTES >> 20}")


def _check_tensor(model: Model, tensor: onnx.TensorProto, *, whole: bool = False) -> int:
    """Check the data of one tensor, and give how much of the proto it takes.

    Unless it must be `whole`, it may have none at all: of such a skeleton everything but the weights can be said.
    """
    where = f"{model.label}: tensor {tensor.name!r}"
    if not is_known_type(tensor.data_type):
        raise ModelError(f"{where} has the unknown type {tensor.data_type}")
    try:
        n = n_elements(tensor)
    except ModelError as error:
        raise ModelError(f"{model.label}: {error}") from None
    if tensor.HasField("segment"):
        raise ModelError(f"{where} is a segment of another, which no runtime reads")
    if model.store.holds(tensor):
        return tensor_nbytes(tensor)
    if external_data_helper.uses_external_data(tensor):
        if tensor.HasField("raw_data") or tensor.data_type == onnx.TensorProto.STRING:
            raise ModelError(f"{where} refers to a data file, and has data of its own or is text")
        return 0
    if tensor.HasField("raw_data"):
        if tensor.data_type == onnx.TensorProto.STRING:
            raise ModelError(f"{where} is text and cannot hold raw data")
        expected = tensor_nbytes(tensor)
        found = len(tensor.raw_data)
        if found != expected:
            raise ModelError(f"{where} holds {found} bytes; {list(tensor.dims)} of its type are {expected}")
        return expected
    field, expected = field_entries(tensor)
    found = len(getattr(tensor, field))
    if found != expected and (found or whole):
        raise ModelError(f"{where} holds {found} values; its dimensions are {list(tensor.dims)}, {n} elements")
    stray = next((name for name in DATA_FIELDS if name != field and len(getattr(tensor, name))), None)
    if stray is not None:
        raise ModelError(f"{where} holds values in {stray}, where none of its type belong")
    return found * 4


def _check_sparse(model: Model, sparse: onnx.SparseTensorProto) -> int:
    """Check that the dense tensor a sparse one stands for is of a size to work with."""
    taken = _check_tensor(model, sparse.values, whole=True) + _check_tensor(model, sparse.indices, whole=True)
    dense = onnx.TensorProto(data_type=sparse.values.data_type, dims=sparse.dims)
    # A name that is no text comes as bytes, and is refused with all other names.
    dense.name = str(sparse.values.name)
    if tensor_nbytes(dense) > MAX_SPARSE_BYTES:
        raise ModelError(
            f"{model.label}: sparse tensor {dense.name!r} stands for {tensor_nbytes(dense)} bytes, "
            f"more than {MAX_SPARSE_BYTES >> 30} GiB"
        )
    return taken


# --- data files ---


def external_data_contained(model: Model) -> None:
    """Refuse data files outside the model's folder, and references that ask for more than the files hold.

    The folder is the one the path names or, where the model is a symbolic link as in a hub's cache, the one it leads
    to. Hard links are what they are: regular files.

    Source: onnxruntime's containment check; the sizes are computed here because loaders do not.
    """
    followed = [t for t in tensors_of(model.skeleton.graph) if _lies_outside(model, t)]
    everywhere = [t for t in _all_tensors(model.skeleton) if _lies_outside(model, t)]
    files: dict[str, tuple[Path, int]] = {}
    declared = sum(_span(model, tensor, files) for tensor in everywhere)
    held = sum(dict(files.values()).values())
    if len(everywhere) > len(followed):
        raise ModelError(
            f"{model.label}: a tensor of a function, or a sparse one, lies in a data file; "
            "save the model with its data inside"
        )
    if declared > MAX_READINGS * held:
        raise ModelError(
            f"{model.label}: its tensors declare {declared} bytes of external data, and the files hold {held}: "
            "they name the same bytes again and again"
        )


def _lies_outside(model: Model, tensor: onnx.TensorProto) -> bool:
    return external_data_helper.uses_external_data(tensor) and not model.store.holds(tensor)


def _all_tensors(proto: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    for body, _ in bodies_of(proto):
        if isinstance(body, onnx.GraphProto):
            yield from body.initializer
            for sparse in body.sparse_initializer:
                yield from (sparse.values, sparse.indices)
        for node in body.node:
            for attribute in node.attribute:
                yield from tensors_in(attribute)


def _span(model: Model, tensor: onnx.TensorProto, files: dict[str, tuple[Path, int]]) -> int:
    """Say how many bytes of a data file a tensor takes; raises `ModelError` for what is unsafe.

    `files` remembers the path and size of every location.
    """
    entries, where = _entries(model, tensor)
    location = entries.get("location", "")
    if location not in files:
        files[location] = _file(model.path, location, where)
    offset, length = (_integer(entries.get(k, default), where) for k, default in (("offset", "0"), ("length", "-1")))
    expected = tensor_nbytes(tensor)
    if offset < 0 or length not in (-1, expected) or offset + expected > files[location][1]:
        raise ModelError(
            f"{where}: {expected} bytes at {offset} are not all there, or it declares another length than its shape"
        )
    return expected


def _file(path: Path | None, location: str, where: str) -> tuple[Path, int]:
    """Find a data file inside the folder of the model at `path`, and its size."""
    if path is None:
        raise ModelError(f"{where}: the model was not read from a file")
    if not location or "\0" in location or _leads_up(location):
        raise ModelError(f"{where}: the location must be a relative path inside the model's folder")
    try:
        target = (path.parent / location).resolve()
        homes = {path.parent.resolve(), path.resolve().parent}
        if not any(target.is_relative_to(home) for home in homes):
            raise ModelError(f"{where}: leads outside the model's folder")
        status = target.stat()
    except (OSError, RuntimeError):  # RuntimeError: links that lead in a circle
        raise ModelError(f"{where}: no such file") from None
    if not stat.S_ISREG(status.st_mode):
        raise ModelError(f"{where}: is a {_kind(status.st_mode)}, no regular file")
    if target == path.resolve():
        raise ModelError(f"{where}: is the model itself")
    remember(target)
    return target, status.st_size


def _entries(model: Model, tensor: onnx.TensorProto) -> tuple[dict[str, str], str]:
    """Read a reference's keys; an unknown or a doubled one means that readers may see different data."""
    entries: dict[str, str] = {}
    for entry in tensor.external_data:
        if not isinstance(entry.key, str) or not isinstance(entry.value, str):
            raise ModelError(f"{model.label}: external data of tensor {tensor.name!r}: its reference is not UTF-8 text")
        if entry.key in entries or (entry.key not in _KEYS and not entry.key.startswith(_PREPACKED)):
            how = "given twice" if entry.key in entries else "unknown"
            raise ModelError(f"{model.label}: external data of tensor {tensor.name!r}: the key {entry.key!r} is {how}")
        entries[entry.key] = entry.value
    return entries, f"{model.label}: external data {entries.get('location', '')!r} of tensor {tensor.name!r}"


def _leads_up(location: str) -> bool:
    """Say whether a location is absolute or names a parent, on any system that the model may come to."""
    parts = re.split(r"[/\\]", location)
    return Path(location).is_absolute() or not parts[0] or ":" in parts[0] or ".." in parts


def _integer(text: str, where: str) -> int:
    if not re.fullmatch(r"-?[0-9]{1,19}", text):
        raise ModelError(f"{where}: offset and length must be integers")
    return int(text)


def _kind(mode: int) -> str:
    kinds = {stat.S_IFDIR: "folder", stat.S_IFIFO: "pipe", stat.S_IFSOCK: "socket"}
    return kinds.get(stat.S_IFMT(mode), "device")
