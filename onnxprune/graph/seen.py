"""Files as they were when models were opened from them: what is read later must be the same."""

from __future__ import annotations

import os
from io import BufferedReader
from pathlib import Path

from ..errors import ModelError

# Device, inode, size and time.
_Signature = tuple[int, int, int, int]
_seen: dict[Path, _Signature] = {}


def remember(path: Path) -> None:
    """Note what a file is now; `path` is resolved."""
    _seen[path] = _signature(path.stat())


def open_seen(path: Path) -> BufferedReader:
    """Open a file that a model lies in; one that this process has not seen yet is noted.

    Raises `ModelError` when it is not the file that it was: replaced, made a link, or written to.
    """
    target = path.resolve()
    try:
        handle = os.open(target, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0))
    except OSError as error:
        raise ModelError(f"{path}: cannot be read ({error.strerror})") from None
    stream = os.fdopen(handle, "rb")
    now = _signature(os.fstat(handle))
    if _seen.setdefault(target, now) != now:
        stream.close()
        raise ModelError(f"{path}: changed after the model was opened; run again when nothing writes to it")
    return stream


def refuse_changed(path: Path) -> None:
    """Refuse a file that was written to or replaced since it was seen."""
    open_seen(path).close()


def _signature(status: os.stat_result) -> _Signature:
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns
