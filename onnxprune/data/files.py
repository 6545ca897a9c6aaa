"""Samples in files: `.npz`, `.npy` and the ONNX model zoo's `test_data_set_*` folders.

Nothing is unpickled, and no header is believed about a size before it is compared with the file's.
"""

from __future__ import annotations

import functools
import re
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np
import onnx
from google.protobuf.message import DecodeError
from onnx import numpy_helper

from ..errors import DataError, ModelError
from ..graph.sizes import field_entries
from .arrays import Header, Part
from .inputs import Array, InputSpec

UNPACKED_LIMIT_BYTES = 16 << 30
_HEADER_READERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}


def npz_part(path: Path) -> Part:
    """Open an `.npz` without reading its arrays; raises `DataError` when it is no such file or unpacks to too much."""
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
            total = sum(member.file_size for member in members)
            if total > UNPACKED_LIMIT_BYTES:
                raise DataError(
                    f"{path}: unpacks to {total / 2**30:.0f} GiB, more than {UNPACKED_LIMIT_BYTES >> 30}; split it"
                )
            headers = {}
            for member in members:
                with archive.open(member) as stream:
                    name = member.filename.removesuffix(".npy")
                    headers[name] = _header(stream, member.file_size, f"{path}[{name!r}]")
    # Of zipfile: RuntimeError for a member with a password, NotImplementedError for a compression it does not know.
    except (OSError, zipfile.BadZipFile, RuntimeError, NotImplementedError) as error:
        raise DataError(f"{path}: not a readable .npz ({error})") from error

    def read() -> dict[str, Array]:
        try:
            with np.load(path, allow_pickle=False) as arrays:
                return {name: arrays[name] for name in headers}
        except (OSError, ValueError, zipfile.BadZipFile) as error:
            raise DataError(f"{path}: cannot be read ({error})") from error

    return Part(str(path), headers, functools.cache(read))


def _header(stream: IO[bytes], size_bytes: int, where: str) -> Header:
    """Read a `.npy` header; the array it declares must fit in the file. Source: numpy.lib.format, versions 1 to 2."""
    try:
        version = np.lib.format.read_magic(stream)
        reader = _HEADER_READERS[version]
        shape, _, dtype = reader(stream)
    except (ValueError, EOFError, KeyError) as error:
        raise DataError(f"{where}: not an array numpy wrote ({error})") from error
    if dtype.hasobject:
        raise DataError(f"{where}: holds Python objects, which are never unpickled; save a plain numeric array")
    declared = dtype.itemsize
    for size in shape:
        declared *= size
    if min(shape, default=0) < 0 or declared > size_bytes:
        raise DataError(f"{where}: declares {declared} bytes of data, but holds {size_bytes}")
    return Header(tuple(int(s) for s in shape), dtype)


def npy_part(path: Path, specs: Sequence[InputSpec]) -> Part:
    """Open a `.npy` for the model's only input; a single sample without a batch axis is taken as one."""
    if len(specs) != 1:
        names = ", ".join(repr(spec.name) for spec in specs)
        raise DataError(f"{path}: an .npy holds one input, the model has {len(specs)} ({names}); use .npz")
    spec = specs[0]
    try:
        with open(path, "rb") as stream:
            header = _header(stream, path.stat().st_size, str(path))
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from error
    # A lone sample: one axis short of the input, so its batch axis of 1 is supplied here.
    lone = spec.shape is not None and len(header.shape) == len(spec.shape) - 1

    def read() -> dict[str, Array]:
        try:
            array = np.load(path, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError) as error:
            raise DataError(f"{path}: cannot be read ({error})") from error
        return {spec.name: array[None] if lone else array}

    shape = (1, *header.shape) if lone else header.shape
    return Part(str(path), {spec.name: Header(shape, header.dtype)}, read)


def is_test_data_set(folder: Path) -> bool:
    """Say whether a folder holds `input_*.pb` files."""
    return any(folder.glob("input_*.pb"))


def read_test_data_set(folder: Path, specs: Sequence[InputSpec]) -> dict[str, Array]:
    """Read one feed from `input_0.pb`, `input_1.pb`, … in the order of the graph's inputs.

    Source: ONNX model zoo and `onnx.backend.test`; inputs that are initializers have no file.
    """
    files = sorted(folder.glob("input_*.pb"), key=_number)
    if len(files) != len(specs):
        raise DataError(f"{folder}: holds {len(files)} input_*.pb, the model has {len(specs)} inputs")
    return {spec.name: _tensor(path) for spec, path in zip(specs, files, strict=True)}


def _number(path: Path) -> tuple[int, str]:
    digits = re.search(r"\d+", path.stem)
    return (int(digits.group()) if digits else 0, path.name)


def _tensor(path: Path) -> Array:
    tensor = onnx.TensorProto()
    if not path.is_file():
        raise DataError(f"{path}: is no regular file")
    try:
        tensor.ParseFromString(path.read_bytes())
    except (OSError, DecodeError) as error:
        raise DataError(f"{path}: not a tensor ({error})") from error
    if tensor.data_location == onnx.TensorProto.EXTERNAL or not tensor.data_type:
        raise DataError(f"{path}: a tensor with its data inside is needed, not a sequence, an optional or a reference")
    try:
        if tensor.data_type != onnx.TensorProto.STRING and not tensor.raw_data:
            field, expected = field_entries(tensor)
            if len(getattr(tensor, field)) != expected:
                raise DataError(f"{path}: declares {list(tensor.dims)}, which its data does not fill")
        array: Any = numpy_helper.to_array(tensor)
    except ModelError as error:
        raise DataError(f"{path}: {error}") from error
    except (ValueError, TypeError, KeyError) as error:
        raise DataError(f"{path}: not a whole tensor ({error})") from error
    return np.asarray(array)
