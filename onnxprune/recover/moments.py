"""Moments of the data that flows into products, and rows of it, from as many rows as it takes and no more.

A convolution sees one row per position, and neighbors say nearly the same. Rows are taken at an even stride, so that
every product has several times as many of them as it has features.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from ..calibration.probe import Probe
from ..calibration.reading import read
from ..calibration.statistics import Wanted, wanted
from ..calibration.views import Patches, View
from ..data import Feed
from ..errors import OptionError
from ..graph.shapes import Shapes
from .products import Array, Floats, Product

ROWS_PER_FEATURE = 6
ROWS_AT_LEAST = 4096
ROWS_TO_JUDGE = 4096
ROWS_AT_ONCE = 2048


def view_of(product: Product, probe: Probe, shapes: Shapes) -> View | str:
    """Give the view of a product's data, or why there is none."""
    ask: Wanted = wanted(product.node, product.slot, axis=product.axis)
    view = read(ask, probe.node(product.node), probe.flat, shapes)
    if isinstance(view, str):
        return view
    hidden = (probe.why_hidden(name) for name in view.names)
    return next((why for why in hidden if why), view)


@dataclass
class Sampler:
    """Takes every `stride`-th row of a product's data, about `most` in all over `n_feeds` feeds."""

    view: View
    most: int
    n_feeds: int
    stride: int = 0
    _at: int = 0

    def rows(self, *given: Mapping[str, Array]) -> Iterator[list[Array]]:
        """Give chunks (groups, rows, features) of the same rows of one or more runs of a feed."""
        tensors = [[values[name] for name in self.view.names] for values in given]
        if any(t.size == 0 for ts in tensors for t in ts):
            return
        if not self.stride:
            n = sum(len(places) for places in self._places(tensors[0]))
            self.stride = max(1, n * self.n_feeds // self.most)
        if _is_plain_window(self.view):
            yield from self._windows(tensors)
            return
        for chunks in zip(*(self.view.chunks(ts) for ts in tensors), strict=True):
            taken = self._taken(chunks[0].shape[1])
            if len(taken):
                yield [chunk[:, taken] for chunk in chunks]

    def _places(self, tensors: Sequence[Array]) -> Iterator[range]:
        """Give the numbers of rows, part by part."""
        if _is_plain_window(self.view):
            for windows in _windows(self.view, tensors):
                yield range(math.prod(windows.shape[1 : windows.ndim // 2 + 1]))
        else:
            yield from (range(chunk.shape[1]) for chunk in self.view.chunks(tensors))

    def _taken(self, n: int) -> range:
        """Give the rows to take out of the next n."""
        start = -self._at % self.stride
        self._at += n
        return range(start, n, self.stride)

    def _windows(self, tensors: Sequence[Sequence[Array]]) -> Iterator[list[Array]]:
        """Copy the windows at the places that are taken, and no others."""
        assert isinstance(self.view, Patches)
        group = self.view.group
        for parts in zip(*(_windows(self.view, ts) for ts in tensors), strict=True):
            rank = parts[0].ndim // 2
            space = parts[0].shape[1 : rank + 1]
            taken = self._taken(math.prod(space))
            for start in range(0, len(taken), ROWS_AT_ONCE):
                at = np.unravel_index(np.array(taken[start : start + ROWS_AT_ONCE]), space)
                taken_here = (slice(None), *at)
                yield [_as_rows(part[taken_here], group) for part in parts]


def _as_rows(taken: Array, group: int) -> Array:
    """Bring windows (channels, rows, *kernel) to (groups, rows, channels of a group * kernel)."""
    n = taken.shape[1]
    by_group = taken.reshape(group, taken.shape[0] // group, n, -1)
    return np.asarray(by_group.transpose(0, 2, 1, 3).reshape(group, n, -1))


def _is_plain_window(view: View) -> bool:
    """Say whether rows are windows of the input as it is, zeros around it."""
    return (
        isinstance(view, Patches) and not (view.upsample or view.auto_pad or view.channels_last) and min(view.pads) >= 0
    )


def _windows(view: View, tensors: Sequence[Array]) -> Iterator[Array]:
    """Give, for every sample, what the kernel sees at every place, without a copy: (channels, *space, *kernel)."""
    assert isinstance(view, Patches)
    rank = len(view.kernel)
    reach = tuple(d * (k - 1) + 1 for k, d in zip(view.kernel, view.dilations, strict=True))
    steps = (1, *view.strides, *view.dilations)
    at = tuple(slice(None, None, step) for step in steps)
    for x in view.source.values(tensors):
        padded = np.pad(x, [(0, 0), *zip(view.pads[:rank], view.pads[rank:], strict=True)])
        windows = np.lib.stride_tricks.sliding_window_view(padded, reach, axis=tuple(range(1, rank + 1)))
        yield windows[at]


@dataclass
class Gathered:
    """Sums of x x^T, x z^T, x and z over rows, x of the pruned model and z of the original; (groups, features, ...)."""

    n_rows: int = 0
    xx: Floats | None = None
    xz: Floats | None = None
    x: Floats | None = None
    z: Floats | None = None
    _waiting: list[tuple[Array, Array]] = field(default_factory=list)
    _held: int = 0

    def add(self, x: Array, z: Array | None = None) -> None:
        """Add rows (groups, rows, features); without `z` only moments of x are kept."""
        self._waiting.append((x, x if z is None else z))
        self._held += x.shape[1]
        if self._held >= ROWS_AT_ONCE:
            self.settle(crossed=z is not None)

    def settle(self, *, crossed: bool) -> None:
        """Add what waits."""
        if not self._waiting:
            return
        x = np.concatenate([a for a, _ in self._waiting], axis=1)
        z = np.concatenate([b for _, b in self._waiting], axis=1) if crossed else x
        self._waiting, self._held = [], 0
        self.n_rows += x.shape[1]
        turned = np.ascontiguousarray(x.swapaxes(1, 2))
        # What is not finite is found in the sums.
        with np.errstate(over="ignore", invalid="ignore"):
            self.xx = _added(self.xx, turned @ x)
            self.x = _added(self.x, x.sum(axis=1, dtype=np.float64))
            if crossed:
                self.xz = _added(self.xz, turned @ z)
                self.z = _added(self.z, z.sum(axis=1, dtype=np.float64))

    @property
    def is_finite(self) -> bool:
        """Say whether there is something, and all of it is finite."""
        return (
            self.xx is not None
            and bool(np.isfinite(self.xx).all())
            and (self.xz is None or bool(np.isfinite(self.xz).all()))
        )


def _added(total: Floats | None, part: Array) -> Floats:
    return part.astype(np.float64) if total is None else total + part


def rows_wanted(product: Product) -> int:
    """Count the rows that moments of a product are made from."""
    return max(ROWS_AT_LEAST, ROWS_PER_FEATURE * product.shape[2])


def rows_judged(product: Product) -> int:
    """Count the rows that repairs of a product are judged by: no more than a few million numbers."""
    return min(ROWS_TO_JUDGE, max(256, (1 << 22) // (product.shape[0] * product.shape[2])))


def feed_shapes(probe: Probe, feeds: Sequence[Feed]) -> Shapes:
    """Give the shapes of all values at the largest sizes of the feeds."""
    largest: dict[str, tuple[int, ...]] = {}
    for feed in feeds:
        for name in probe.inputs & feed.keys():
            shape = np.shape(feed[name])
            seen = largest.get(name, shape)
            largest[name] = tuple(map(max, seen, shape)) if len(seen) == len(shape) else shape
    try:
        return probe.shapes(largest)
    except OptionError:
        # Axes of one name that differ on the samples; the model runs on them, so only the shapes are not known.
        return probe.shapes({})


def gram_bytes(product: Product) -> int:
    """Count the bytes of a product's Gram matrices."""
    return 8 * math.prod((product.shape[0], product.shape[2], product.shape[2]))
