"""The journal: every finished cell as one line of a file, so that an interrupted run goes on where it ended."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, fields
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, BinaryIO

from ..errors import OptionError
from .bench import Figures
from .cells import Cell

if TYPE_CHECKING:
    from typing_extensions import Self

SCHEMA = "onnxprune.sensitivity-journal/1"
_NAMES = {f.name for f in fields(Figures)} - {"error"}


class Journal:
    """Finished cells in a file of JSON lines: a header that says of what run, then one line per cell.

    A line is written whole and flushed to the disk before the next cell counts. What a crash left of a last line is
    cut off. Cells of other ratios or groups of the same model, data and metric are kept, and used when asked for.
    Without a path nothing is read or written.

    Raises `OptionError` for a file that cannot be read or written, is no journal, or is one of another run.
    """

    def __init__(self, path: str | os.PathLike[str] | None, run: Mapping[str, Any]) -> None:
        self._done: dict[str, Figures] = {}
        self._file: BinaryIO | None = None
        if path is None:
            return
        self._path = Path(path)
        header = {"schema": SCHEMA, **run}
        try:
            whole = self._read(header)
            file = self._path.open("r+b") if self._path.exists() else self._path.open("w+b")
            self._file = file
            file.truncate(whole)
            file.seek(whole)
            if whole == 0:
                self._append(header)
        except OSError as error:
            raise OptionError(f"{path}: the journal cannot be used ({error.strerror or error})") from error

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._file is not None:
            self._file.close()

    def get(self, cell: Cell) -> Figures | None:
        """Give what an earlier run found, None where it did not come to this cell."""
        return self._done.get(cell.key)

    def add(self, cell: Cell, figures: Figures) -> None:
        """Write a finished cell; one that failed is not written, so that it is tried again."""
        if figures.error is None:
            self._append({"cell": cell.key, **{k: v for k, v in asdict(figures).items() if k in _NAMES}})

    def _append(self, row: Mapping[str, Any]) -> None:
        if self._file is None:
            return
        self._file.write(_line(row))
        self._file.flush()
        os.fsync(self._file.fileno())

    def _read(self, header: Mapping[str, Any]) -> int:
        """Read whole lines; give their length in bytes."""
        if not self._path.exists():
            return 0
        content = self._path.read_bytes()
        whole = content.rfind(b"\n") + 1
        lines = content[:whole].splitlines()
        if not lines and not _line(header).startswith(content):
            raise OptionError(f"{self._path}: is no journal; choose another file")
        for k, line in enumerate(lines):
            row = self._row(k, line)
            if k == 0:
                self._compare(row, header)
            else:
                key = row.pop("cell")
                self._done[key] = Figures(**row)
        return whole

    def _row(self, k: int, line: bytes) -> dict[str, Any]:
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            row = None
        if not isinstance(row, dict) or (k > 0 and row.keys() - {"cell"} != _NAMES):
            raise OptionError(f"{self._path}: line {k + 1} is no line of a journal; choose another file")
        return row

    def _compare(self, found: Mapping[str, Any], header: Mapping[str, Any]) -> None:
        if found.get("schema") != SCHEMA:
            raise OptionError(f"{self._path}: is no journal of schema {SCHEMA!r}; choose another file")
        differs = [name for name in header if found.get(name) != header[name]]
        if differs:
            raise OptionError(
                f"{self._path}: is the journal of another run, with another {', '.join(differs)}; "
                "choose another file, or delete it"
            )


def _line(row: Mapping[str, Any]) -> bytes:
    return json.dumps(row).encode() + b"\n"
