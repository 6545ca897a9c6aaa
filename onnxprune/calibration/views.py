"""Views: how an inner tensor becomes rows of features, the vectors that a weight multiplies.

A view names the tensors it reads and turns their values for one feed into chunks (groups, rows, features), so that
memory stays bounded however many positions a convolution has.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

Array = np.ndarray[Any, Any]
Shape = tuple[int, ...] | None
CHUNK_BYTES = 32 << 20


@dataclass(frozen=True)
class Source:
    """A tensor by flat name, with the scale and zero point ("" for none) that its integer codes stand for."""

    name: str
    scale: str = ""
    zero_point: str = ""

    @property
    def names(self) -> tuple[str, ...]:
        """Names of all tensors that are read."""
        return tuple(n for n in (self.name, self.scale, self.zero_point) if n)

    def values(self, tensors: Sequence[Array]) -> Array:
        """Give the values as float32 (float64 stays), out of the tensors that `names` lists."""
        given = dict(zip(self.names, tensors, strict=True))
        values = given[self.name]
        if self.zero_point:
            values = values.astype(np.float32) - given[self.zero_point].astype(np.float32)
        values = values if values.dtype == np.float64 else values.astype(np.float32, copy=False)
        return values * given[self.scale].astype(np.float32) if self.scale else values


class View(Protocol):
    """What every view offers; views are values and compare equal when they read the same rows."""

    @property
    def names(self) -> tuple[str, ...]:
        """Flat names of the tensors to fetch, in the order `chunks` takes them."""
        ...

    def extent(self, shapes: Sequence[Shape]) -> tuple[int, int] | None:
        """Give the numbers of groups and features for tensors of these shapes; None when that is not known."""
        ...

    def chunks(self, tensors: Sequence[Array]) -> Iterator[Array]:
        """Cut the tensors of one feed into arrays (groups, rows, features), float32 or float64."""
        ...


def _cut(rows: Array) -> Iterator[Array]:
    """Cut (groups, rows, features) along the rows."""
    groups, n, features = rows.shape
    step = max(1, CHUNK_BYTES // max(1, groups * features * rows.itemsize))
    for start in range(0, n, step):
        yield rows[:, start : start + step]


def _at(slices: Sequence[slice]) -> tuple[slice, ...]:
    """Index every channel, and the axes after it by `slices`."""
    return (slice(None), *slices)


@dataclass(frozen=True)
class Arranged:
    """The features are one or more axes of the tensor, in row-major order; what is left is rows.

    `groups` are axes whose every index has statistics of its own. Axes count from the end, so that batch axes in front
    do not matter; a group axis that the tensor lacks, or of size 1, is shared by the `n_groups` groups.
    """

    source: Source
    features: tuple[int, ...]
    groups: tuple[int, ...] = ()
    n_groups: int = 1

    @property
    def names(self) -> tuple[str, ...]:
        """Flat names of the tensors to fetch."""
        return self.source.names

    def extent(self, shapes: Sequence[Shape]) -> tuple[int, int] | None:
        """Give the numbers of groups and features."""
        shape = shapes[0]
        if shape is None or not all(-len(shape) <= a < len(shape) for a in self.features):
            return None
        return self.n_groups, math.prod(shape[a] for a in self.features)

    def chunks(self, tensors: Sequence[Array]) -> Iterator[Array]:
        """Move the groups first and the features last."""
        values = self.source.values(tensors)
        # A vector has no row axis before its features.
        features = tuple(a if a >= -values.ndim else -1 for a in self.features)
        groups = tuple(a for a in self.groups if a >= -values.ndim and values.shape[a] > 1)
        n_features = math.prod(values.shape[a] for a in features)
        order = [a % values.ndim for a in (*groups, *features)]
        rows = [k for k in range(values.ndim) if k not in order]
        values = values.transpose(*order[: len(groups)], *rows, *order[len(groups) :])
        values = values.reshape(math.prod(values.shape[: len(groups)]), -1, n_features)
        if values.shape[0] != self.n_groups:
            values = np.broadcast_to(values[:1], (self.n_groups, *values.shape[1:]))
        yield from _cut(values)


@dataclass(frozen=True)
class Patches:
    """The features are what a kernel sees at one position: (channels of a group, *kernel) in row-major order.

    Groups are those of the convolution; zeros of the padding count as values. `pads` are all begins, then all ends.
    With `auto_pad` other than "" they follow from the input. A transposed convolution, which has `upsample` for its
    strides, is the convolution of the input with zeros put between neighbors, seen through a flipped window.
    Source: ONNX Conv and ConvTranspose, opset 22.
    """

    source: Source
    group: int
    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    pads: tuple[int, ...]
    auto_pad: str = ""
    upsample: tuple[int, ...] = ()
    output_shape: tuple[int, ...] = ()
    output_padding: tuple[int, ...] = ()
    channels_last: bool = False

    @property
    def names(self) -> tuple[str, ...]:
        """Flat names of the tensors to fetch."""
        return self.source.names

    def extent(self, shapes: Sequence[Shape]) -> tuple[int, int] | None:
        """Give the numbers of groups and features."""
        if shapes[0] is None:
            return None
        return self.group, shapes[0][-1 if self.channels_last else 1] // self.group * math.prod(self.kernel)

    def chunks(self, tensors: Sequence[Array]) -> Iterator[Array]:
        """Cut by sample and by the first spatial axis of the output: (groups, positions, channels * kernel)."""
        values = self.source.values(tensors)
        if self.channels_last:
            values = np.moveaxis(values, -1, 1)
        for sample in values:
            yield from self._sample(sample)

    def _sample(self, x: Array) -> Iterator[Array]:
        """Cut one sample (channels, *space)."""
        x = self._padded(x)
        rank = len(self.kernel)
        reach = tuple(d * (k - 1) + 1 for k, d in zip(self.kernel, self.dilations, strict=True))
        windows = np.lib.stride_tricks.sliding_window_view(x, reach, axis=tuple(range(1, rank + 1)))
        at = tuple(slice(None, None, s) for s in self.strides)
        inside = tuple(slice(None, None, d) for d in self.dilations)
        windows = windows[_at([*at, *inside])]
        if self.upsample:
            windows = np.flip(windows, tuple(range(1 + rank, 1 + 2 * rank)))
        channels, first = x.shape[0], windows.shape[1]
        size = channels * math.prod(self.kernel) * math.prod(windows.shape[2 : 1 + rank]) * x.itemsize
        step = max(1, CHUNK_BYTES // max(1, size))
        for start in range(0, first, step):
            part = windows[:, start : start + step]
            grouped = part.reshape(self.group, channels // self.group, *part.shape[1:])
            # Positions last: the copy runs along whole lines of the input, and products take the transpose as it is.
            order = (0, 1, *range(2 + rank, 2 + 2 * rank), *range(2, 2 + rank))
            columns = grouped.transpose(order).reshape(self.group, channels // self.group * math.prod(self.kernel), -1)
            yield columns.swapaxes(1, 2)

    def _padded(self, x: Array) -> Array:
        """Give what the windows slide over: stretched, then padded, or cut where a padding is negative."""
        space = x.shape[1:]
        pads = self._transposed_pads(space) if self.upsample else self._same(space) if self.auto_pad else self.pads
        if self.upsample:
            size = (1 + (n - 1) * u for n, u in zip(space, self.upsample, strict=True))
            stretched = np.zeros((x.shape[0], *size), dtype=x.dtype)
            stretched[_at([slice(None, None, u) for u in self.upsample])] = x
            x = stretched
        ends = list(zip(pads[: len(space)], pads[len(space) :], strict=True))
        x = x[_at([slice(max(0, -a), n - max(0, -b)) for (a, b), n in zip(ends, x.shape[1:], strict=True)])]
        return np.pad(x, [(0, 0), *((max(0, a), max(0, b)) for a, b in ends)])

    def _same(self, space: Sequence[int]) -> tuple[int, ...]:
        """Pad so that the output has ceil(size / stride) positions."""
        ends = []
        for n, k, s, d in zip(space, self.kernel, self.strides, self.dilations, strict=True):
            total = max(0, (-(-n // s) - 1) * s + d * (k - 1) + 1 - n)
            small = total // 2
            ends.append((small, total - small) if self.auto_pad == "SAME_UPPER" else (total - small, small))
        return (*(a for a, _ in ends), *(b for _, b in ends))

    def _transposed_pads(self, space: Sequence[int]) -> tuple[int, ...]:
        """Pad the stretched input so that a window lies at every position of the output."""
        low, high = list(self.pads[: len(space)]), list(self.pads[len(space) :])
        reach = [d * (k - 1) for k, d in zip(self.kernel, self.dilations, strict=True)]
        for i, (n, u) in enumerate(zip(space, self.upsample, strict=True)):
            if self.output_shape or self.auto_pad:
                wish = self.output_shape[i] if self.output_shape else n * u
                total = max(0, u * (n - 1) + self.output_padding[i] + reach[i] + 1 - wish)
                small = total // 2
                low[i], high[i] = (small, total - small) if self.auto_pad == "SAME_UPPER" else (total - small, small)
        first = [r - a for r, a in zip(reach, low, strict=True)]
        last = [r - b + p for r, b, p in zip(reach, high, self.output_padding, strict=True)]
        return (*first, *last)


@dataclass(frozen=True)
class Steps:
    """The features are the last axis of a sequence, (time, batch, features); steps beyond `lengths` are no rows."""

    source: Source
    lengths: str
    batch_first: bool

    @property
    def names(self) -> tuple[str, ...]:
        """Flat names of the tensors to fetch."""
        return (*self.source.names, *((self.lengths,) if self.lengths else ()))

    def extent(self, shapes: Sequence[Shape]) -> tuple[int, int] | None:
        """Give the numbers of groups and features."""
        return None if shapes[0] is None else (1, shapes[0][-1])

    def chunks(self, tensors: Sequence[Array]) -> Iterator[Array]:
        """Give the steps that count: (1, rows, features)."""
        count = len(self.source.names)
        x = self.source.values(tensors[:count])
        x = x if self.batch_first else x.swapaxes(0, 1)
        if self.lengths:
            x = x[within(x.shape[1], tensors[count])]
        yield from _cut(x.reshape(1, -1, x.shape[-1]))


def within(n_steps: int, lengths: Array) -> Array:
    """Give a mask (batch, time) of the steps before each sequence's length."""
    return np.asarray(np.arange(n_steps)[None, :] < np.asarray(lengths).reshape(-1, 1))


@dataclass(frozen=True)
class States:
    """The features are the hidden state that a recurrent layer reads at each step; every direction is a group.

    `output` is the layer's Y: (time, directions, batch, hidden), or (batch, time, directions, hidden) batch first. The
    state before a step is the output of the step before it in the direction's order, at first `initial` or zero.
    """

    output: str
    initial: str
    lengths: str
    batch_first: bool
    direction: str

    @property
    def names(self) -> tuple[str, ...]:
        """Flat names of the tensors to fetch."""
        return tuple(n for n in (self.output, self.initial, self.lengths) if n)

    def extent(self, shapes: Sequence[Shape]) -> tuple[int, int] | None:
        """Give the numbers of groups and features."""
        return None if shapes[0] is None else (shapes[0][2 if self.batch_first else 1], shapes[0][-1])

    def chunks(self, tensors: Sequence[Array]) -> Iterator[Array]:
        """Shift the output by one step: (directions, rows, hidden)."""
        given = dict(zip(self.names, tensors, strict=True))
        y = Source(self.output).values([given[self.output]])
        y = np.moveaxis(y, 0, 1) if self.batch_first else y.transpose(0, 2, 1, 3)
        n_steps, n, n_directions, hidden = y.shape
        first = np.zeros((n_directions, n, hidden), dtype=y.dtype)
        if self.initial:
            given_first = given[self.initial].astype(y.dtype)
            first = given_first.swapaxes(0, 1) if self.batch_first else given_first
        lengths = given[self.lengths].reshape(-1) if self.lengths else np.full(n, n_steps)
        counts = within(n_steps, lengths).T
        rows = []
        for k in range(n_directions):
            backward = self.direction == "reverse" or k == 1
            before = np.concatenate([y[1:, :, k], first[k][None]]) if backward else _forward(y[:, :, k], first[k])
            if backward:
                # The first step in reverse is the last one of each sequence.
                before[np.maximum(lengths - 1, 0), np.arange(n)] = first[k]
            rows.append(before[counts])
        yield from _cut(np.stack(rows))


def _forward(y: Array, first: Array) -> Array:
    return np.concatenate([first[None], y[:-1]])


@dataclass(frozen=True)
class Lookups:
    """The features are the rows of a table, and a row is one look-up: 1 at what is read, 0 elsewhere."""

    indices: str
    n_entries: int

    @property
    def names(self) -> tuple[str, ...]:
        """Flat names of the tensors to fetch."""
        return (self.indices,)

    def extent(self, shapes: Sequence[Shape]) -> tuple[int, int] | None:  # noqa: ARG002  the table's size is known
        """Give the numbers of groups and features."""
        return 1, self.n_entries

    def chunks(self, tensors: Sequence[Array]) -> Iterator[Array]:
        """Count the reads of every table row: (1, look-ups, entries) as counts, see `Sums.add_lookups`."""
        indices = tensors[0].reshape(-1).astype(np.int64)
        counts = np.bincount(np.where(indices < 0, indices + self.n_entries, indices), minlength=self.n_entries)
        yield counts[None, None]
