"""One small registry class: criteria, mask patterns and operator rules are kept in one each."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

from .errors import OptionError, unknown_name

T = TypeVar("T")


class Registry(Generic[T]):
    """Entries by name, extended by users with a decorator and never by editing the package.

    `what` names the kind of entry in error messages ("criterion", "operator rule").
    """

    def __init__(self, what: str) -> None:
        self.what = what
        self._entries: dict[str, T] = {}

    def register(self, *names: str, replace: bool = False) -> Callable[[T], T]:
        """Return a decorator that files its argument under each of `names`.

        Raises `OptionError` for a name that is taken, unless `replace` is true.
        """

        def file(entry: T) -> T:
            for name in names:
                if name in self._entries and not replace:
                    raise OptionError(f"{self.what} {name!r} is already registered; pass replace=True to replace it")
                self._entries[name] = entry
            return entry

        return file

    def get(self, name: str) -> T | None:
        """Give the entry called `name`, or None."""
        return self._entries.get(name)

    def __getitem__(self, name: str) -> T:
        """Give the entry called `name`; raises `UnknownNameError` with the nearest names."""
        if name not in self._entries:
            raise unknown_name(self.what, name, self._entries)
        return self._entries[name]

    def __contains__(self, name: object) -> bool:
        return name in self._entries

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self._entries))

    def __len__(self) -> int:
        return len(self._entries)
