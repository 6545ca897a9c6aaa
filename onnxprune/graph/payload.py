"""The data of a tensor that is not held in memory: bytes of a file, or what is cut from such a tensor.

A whole payload is read through a memory map. Passes over all data read windows of it into a buffer that stays in a
processor's cache, and writing is left to the kernel or done in such windows: no step holds more than it works on.
"""

from __future__ import annotations

import math
import mmap
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from .seen import open_seen

Array = np.ndarray[Any, Any]
Keep = np.ndarray[Any, np.dtype[np.bool_]]
WINDOW = 1 << 20
CODES = {1: np.uint8, 2: np.uint16, 4: np.uint32, 8: np.uint64, 16: np.complex128}


class Payload(Protocol):
    """Data of a known length that can be read as a whole and written without holding it."""

    def __len__(self) -> int:
        """Give the length in bytes."""

    def read(self) -> memoryview:
        """Give the bytes, mapped where they lie in a file."""

    def windows(self, size: int) -> Iterator[memoryview]:
        """Give the bytes, `size` at a time and the rest at the end; the next may overwrite the last."""

    def copy_to(self, sink: int, at: int) -> None:
        """Write the bytes at a place of an open file."""


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

    def windows(self, size: int) -> Iterator[memoryview]:
        """Read into one buffer; raises `OSError` where the file ends early."""
        buffer = memoryview(bytearray(min(size, self.length)))
        with open_seen(self.path) as source:
            source.seek(self.offset)
            for start in range(0, self.length, size):
                part = buffer[: self.length - start]
                if source.readinto(part) != len(part):
                    raise OSError(f"the file ends before byte {self.offset + self.length}")
                yield part

    def copy_to(self, sink: int, at: int) -> None:
        """Have the kernel copy the bytes."""
        with open_seen(self.path) as source:
            copy_range(source.fileno(), self.offset, sink, at, self.length)


@dataclass(frozen=True)
class InMemory:
    """An array that was made here."""

    array: Array = field(repr=False)

    def __len__(self) -> int:
        return int(self.array.nbytes)

    def read(self) -> memoryview:
        """Give the array's own bytes."""
        return np.ascontiguousarray(self.array).reshape(-1).view(np.uint8).data

    def windows(self, size: int) -> Iterator[memoryview]:
        """Give slices of the array."""
        return _slices(self.read(), size)

    def copy_to(self, sink: int, at: int) -> None:
        """Write the bytes."""
        write_at(sink, self.read(), at)


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

    def windows(self, size: int) -> Iterator[memoryview]:
        """Give slices of the tensor, which is cut in memory."""
        return _slices(self.read(), size)

    def copy_to(self, sink: int, at: int) -> None:
        """Cut and write a few rows at a time."""
        for part in self._parts():
            write_at(sink, part.reshape(-1).view(np.uint8).data, at)
            at += part.nbytes

    def _parts(self) -> Iterator[Array]:
        """Cut the source a window at a time; the leading axes are one where a row of the first alone is too long."""
        split = split_axis(self.dims, WINDOW // self.width)
        row, index = self.dims[split:], _leading(self.dims[:split], self.keeps)
        inner = {axis - split + 1: np.flatnonzero(keep) for axis, keep in self.keeps.items() if axis >= split}
        width = max(1, math.prod(row)) * self.width
        step = max(1, WINDOW // width)
        for first, window in zip(range(0, len(index), step), self.source.windows(step * width), strict=False):
            part: Array = np.frombuffer(window, CODES[self.width]).reshape(-1, *row)
            kept = index[first : first + step]
            if not kept.all():
                part = part.take(np.flatnonzero(kept), axis=0)
            for axis, chosen in inner.items():
                part = part.take(chosen, axis=axis)
            yield np.ascontiguousarray(part)


def split_axis(dims: Sequence[int], most: int) -> int:
    """Give the first axis, from 1 on, from which on a tensor has at most `most` elements per index before."""
    return next((k for k in range(1, len(dims)) if math.prod(dims[k:]) <= most), max(1, len(dims) - 1))


def _leading(dims: tuple[int, ...], keeps: Mapping[int, Keep]) -> Keep:
    """Say of every index of the leading axes, as one axis, whether it stays."""
    stays = np.ones(dims, dtype=bool)
    for axis in range(len(dims)):
        if axis in keeps:
            stays &= keeps[axis].reshape([-1 if k == axis else 1 for k in range(len(dims))])
    return stays.reshape(-1)


def _slices(content: memoryview, size: int) -> Iterator[memoryview]:
    return (content[start : start + size] for start in range(0, len(content), size))


def write_at(sink: int, content: bytes | memoryview, at: int) -> None:
    """Write all bytes at a place of an open file."""
    rest = memoryview(content)
    while rest:
        done = os.pwrite(sink, rest, at)
        rest, at = rest[done:], at + done


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
            part = os.pread(source, min(WINDOW, length - done), start + done)
            if not part:
                raise OSError(f"the source ends {length - done} bytes early")
            write_at(sink, part, at + done)
            n = len(part)
        done += n
