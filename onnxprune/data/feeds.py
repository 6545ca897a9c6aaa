"""`Data`: feeds that can be iterated any number of times."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from ..errors import DataError
from .inputs import Array

Feed = dict[str, Array]


@dataclass
class Data:
    """An iterable of feed dictionaries, input name → array, already in the model's types and shapes.

    `start` begins a pass. `n_feeds` is None until it is known: given by the source, or counted by the first whole pass.
    A later pass that gives another number of feeds raises `DataError`, since stages would see different samples.
    """

    label: str
    start: Callable[[], Iterator[Feed]] = field(repr=False)
    n_feeds: int | None = None

    def __iter__(self) -> Iterator[Feed]:
        n = 0
        for feed in self.start():
            n += 1
            yield feed
        if n == 0:
            raise DataError(f"{self.label}: holds no samples")
        if self.n_feeds is not None and n != self.n_feeds:
            raise DataError(
                f"{self.label}: gave {self.n_feeds} feeds, then {n} on a later pass; "
                "give a list, or a callable that starts anew each time"
            )
        self.n_feeds = n

    def __len__(self) -> int:
        if self.n_feeds is None:
            raise TypeError(f"{self.label}: the number of feeds is not known before the first pass")
        return self.n_feeds

    def __length_hint__(self) -> int:
        return self.n_feeds or 0

    def __bool__(self) -> bool:
        return True


def remembered(source: Iterator[Feed]) -> Callable[[], Iterator[Feed]]:
    """Make an iterator that can be read once into passes that can be started again; what was read stays in memory."""
    seen: list[Feed] = []

    def start() -> Iterator[Feed]:
        k = 0
        while True:
            if k == len(seen):
                try:
                    seen.append(next(source))
                except StopIteration:
                    return
            yield seen[k]
            k += 1

    return start
