"""The data of a tensor that is not held in memory: bytes of a file, or what is cut from such a tensor.

Payloads are read through a memory map and written by the kernel or in chunks, so that no step holds more than it works
on, and none more than one tensor.
"""

from __future__ import annotations

import math
import mmap
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Protocol

import numpy as np

from .seen import open_seen

Array = np.ndarray[Any, Any]
Keep = np.ndarray[Any, np.dtype[np.bool_]]
CHUNK = 1 << 24
CODES = {1: np.uint8, 2: np.uint16, 4: np.uint32, 8: np.uint64, 16: np.complex128}


class Payload(Protocol):
    """Data of a known length that can be read as a whole and written without holding it."""

    def __len__(self) -> int:
        """Give the length in bytes."""

    def read(self) -> memoryview:
        """Give the bytes, mapped where they lie in a file."""

    def copy_to(self, sink: IO[bytes]) -> None:
        """Write the bytes at the place where `sink` stands."""


@dataclass(frozen=True)
class Span:
    """Bytes of a file."""

    path: Path
    offset: int
    length: int

    def __len__(self) -> int:
        return self.length

    def read(self) -> memoryview:
        """Map the bytes; pages are read when touched, and given back with the last array on them."""
        if not self.length:
            return memoryview(b"")
        start = self.offset // mmap.ALLOCATIONGRANULARITY * mmap.ALLOCATIONGRANULARITY
        with open_seen(self.path) as source:
            held = mmap.mmap(source.fileno(), self.offset - start + self.length, offset=start, access=mmap.ACCESS_READ)
        return memoryview(held)[self.offset - start :]

    def copy_to(self, sink: IO[bytes]) -> None:
        """Have the kernel copy the bytes."""
        sink.flush()
        with open_seen(self.path) as source:
            copy_range(source.fileno(), self.offset, sink.fileno(), sink.tell(), self.length)
        sink.seek(self.length, os.SEEK_CUR)


@dataclass(frozen=True)
class InMemory:
    """An array that was made here."""

    array: Array = field(repr=False)

    def __len__(self) -> int:
        return int(self.array.nbytes)

    def read(self) -> memoryview:
        """Give the array's own bytes."""
        return np.ascontiguousarray(self.array).reshape(-1).view(np.uint8).data

    def copy_to(self, sink: IO[bytes]) -> None:
        """Write the bytes."""
        sink.write(self.read())


@dataclass(frozen=True)
class Cut:
    """What stays of a tensor of `width` bytes per element and the shape `dims`, by axis."""

    source: Payload
    width: int
    dims: tuple[int, ...]
    keeps: Mapping[int, Keep] = field(repr=False)

    @property
    def shape(self) -> tuple[int, ...]:
        """The dimensions of what stays."""
        return tuple(int(np.count_nonzero(self.keeps[k])) if k in self.keeps else d for k, d in enumerate(self.dims))

    def __len__(self) -> int:
        return math.prod(self.shape) * self.width

    def read(self) -> memoryview:
        """Cut the tensor, in memory."""
        return memoryview(b"".join(part.tobytes() for part in self._parts()))

    def copy_to(self, sink: IO[bytes]) -> None:
        """Cut and write a few rows at a time."""
        for part in self._parts():
            sink.write(part.data.cast("B") if part.flags.c_contiguous else part.tobytes())

    def _parts(self) -> Iterator[Array]:
        array: Array = np.frombuffer(self.source.read(), CODES[self.width]).reshape(self.dims)
        rows = np.flatnonzero(self.keeps[0]) if 0 in self.keeps else np.arange(self.dims[0])
        others = {axis: np.flatnonzero(keep) for axis, keep in self.keeps.items() if axis}
        step = max(1, CHUNK // max(1, math.prod(self.dims[1:]) * self.width))
        for start in range(0, len(rows), step):
            part = _rows(array, rows[start : start + step])
            for axis, index in others.items():
                part = part.take(index, axis=axis)
            yield np.ascontiguousarray(part)


def _rows(array: Array, rows: Array) -> Array:
    """Take rows, without a copy where they follow each other."""
    first, last = int(rows[0]), int(rows[-1])
    return array[first : last + 1] if last - first == len(rows) - 1 else array.take(rows, axis=0)


def copy_range(source: int, start: int, sink: int, at: int, length: int) -> None:
    """Copy bytes between two files by their descriptors, in the kernel where it can."""
    done = 0
    while done < length:
        try:
            n = os.copy_file_range(source, sink, length - done, start + done, at + done)
        except (OSError, AttributeError):
            # Across some file systems, and on other systems, it does not exist. A full disk shows in the write.
            n = 0
        if n == 0:
            part = os.pread(source, min(CHUNK, length - done), start + done)
            if not part:
                raise OSError(f"the source ends {length - done} bytes early")
            n = os.pwrite(sink, part, at + done)
        done += n
