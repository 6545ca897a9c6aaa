"""What a model gave, feed by feed, kept until another model has run: in memory while it is little, else on disk.

So the models of a verification run one after the other, and only one of them is in memory.
"""

from __future__ import annotations

import pickle
import tempfile
import weakref
import zlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from ..data import Feed
from ..errors import DataError
from .compare import leaves

IN_MEMORY = 1 << 26


class Outputs:
    """Outputs in the order of the feeds, with a digest of each feed."""

    def __init__(self) -> None:
        self._file = tempfile.SpooledTemporaryFile(max_size=IN_MEMORY, prefix="onnxprune-")  # noqa: SIM115
        weakref.finalize(self, self._file.close)
        self.n_feeds = 0

    def __len__(self) -> int:
        return self.n_feeds

    def add(self, feed: Feed, outputs: Sequence[Any]) -> None:
        """Keep what a model gave on a feed."""
        if sum(array.nbytes for value in outputs for array in leaves(value)) > IN_MEMORY:
            # Not by way of memory, which would hold them twice.
            self._file.rollover()
        pickle.dump((_digest(feed), outputs), self._file, protocol=pickle.HIGHEST_PROTOCOL)
        self.n_feeds += 1

    def beside(self, feeds: Iterable[Feed], label: str) -> Iterator[tuple[Feed, Sequence[Any]]]:
        """Give every feed of a later pass with what was given on it, as far as outputs were kept.

        Raises `DataError` when a feed of that pass is another one.
        """
        records = self._records()
        # Every feed is asked for, so that a pass that gives another number of them is noticed.
        for k, feed in enumerate(feeds):
            if k == self.n_feeds:
                return
            digest, outputs = next(records)
            if digest != _digest(feed):
                raise DataError(
                    f"{label}: feed {k + 1} is another one on a later pass; give samples that do not change: "
                    "no shuffling, and nothing random without a seed"
                )
            yield feed, outputs

    def alone(self) -> Iterator[Sequence[Any]]:
        """Give what was kept, without another pass over the feeds."""
        return (outputs for _, outputs in self._records())

    def _records(self) -> Iterator[tuple[int, Sequence[Any]]]:
        self._file.seek(0)
        for _ in range(self.n_feeds):
            yield pickle.load(self._file)  # noqa: S301 - our own file


def _digest(feed: Feed) -> int:
    found = 0
    for name in sorted(feed):
        found = zlib.crc32(name.encode(), found)
        value: Any = feed[name]
        for part in value if isinstance(value, list) else [value]:
            if part is None:
                continue
            array = np.ascontiguousarray(part)
            content = repr(array.tolist()).encode() if array.dtype.hasobject else array.reshape(-1).view(np.uint8).data
            found = zlib.crc32(content, zlib.crc32(repr(np.shape(part)).encode(), found))
    return found
