"""Outputs that appear whole or not at all: written beside their targets, flushed, renamed.

A file in the making is named `.NAME.….partial` and locked. What a killed run left is recognized by having no lock, and
removed by the next run that writes to the same target.
"""

from __future__ import annotations

import contextlib
import filecmp
import glob
import mmap
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from ..errors import OptionError

if sys.platform != "win32":  # where nothing is locked, and what a killed run left stays
    import fcntl

SUFFIX = ".partial"


class Stage:
    """Temporary files beside their targets, renamed together at the end."""

    def __init__(self) -> None:
        self.paths: dict[Path, Path] = {}
        self._locks: list[int] = []
        self._obsolete: list[Path] = []

    def __call__(self, target: Path, content: bytes | None) -> None:
        """Open a temporary file for `target`, with `content` if that is known already."""
        _remove_left(target)
        while True:
            handle, name = tempfile.mkstemp(prefix=f".{target.name}.", suffix=SUFFIX, dir=target.parent)
            self._locks.append(handle)
            self.paths[target] = Path(name)
            if _locked(handle) and Path(name).exists():
                break
        if content is not None:
            Path(name).write_bytes(content)

    def put_in_place(self) -> None:
        """Flush all files, and rename them to their targets.

        The last, a model, comes after its data file: with it the new state begins.
        """
        mask = os.umask(0)
        os.umask(mask)
        for temporary in self.paths.values():
            temporary.chmod(0o666 & ~mask)
            with open(temporary, "rb") as f:
                os.fsync(f.fileno())
        for final, temporary in self.paths.items():
            temporary.replace(final)
        for folder in {final.parent for final in self.paths}:
            _flush_folder(folder)
        for old in self._obsolete:
            old.unlink(missing_ok=True)

    def settle(self, data: Path, model: Path) -> Path:
        """Give the data file written for `data` a name that the `model` which stands there now does not read.

        Renaming two files takes two steps. Between them the old model must still find its own data, so that other
        content takes the name beside it, and the old data goes at the very end.
        """
        other = data.with_name(f"{model.name}.1.data")
        read = [path for path in (data, other) if path.exists() and _mentions(model, path.name)]
        temporary = self.paths.pop(data)
        same = [path for path in read if filecmp.cmp(path, temporary, shallow=False)]
        free = [path for path in (data, other) if path not in read]
        chosen = (same + free + [data])[0]
        self.paths[chosen] = temporary
        self._obsolete = [path for path in (data, other) if path != chosen]
        return chosen

    def clear(self) -> None:
        """Remove what was not put in place."""
        for temporary in self.paths.values():
            temporary.unlink(missing_ok=True)
        for handle in self._locks:
            os.close(handle)


@contextlib.contextmanager
def staged(target: Path) -> Iterator[Stage]:
    """Give a stage whose files replace their targets on success and vanish on failure."""
    if target.is_dir():
        raise OptionError(f"{target}: is a folder; give the output a file name")
    if target.exists() and not target.is_file():
        raise OptionError(f"{target}: is no regular file; give the output a file name")
    if not target.parent.is_dir():
        raise OptionError(f"{target}: the folder {str(target.parent)!r} does not exist")
    stage = Stage()
    try:
        yield stage
        stage.put_in_place()
    except OSError as error:
        raise OptionError(f"{target}: cannot be written ({error.strerror or error})") from error
    finally:
        stage.clear()


def _mentions(model: Path, name: str) -> bool:
    """Say whether a file holds a name, as a model does that reads a data file of that name."""
    try:
        with open(model, "rb") as f, mmap.mmap(f.fileno(), 0, access=mmap.ACCESS_READ) as content:
            return content.find(name.encode()) >= 0
    except (OSError, ValueError):  # ValueError: an empty file
        return False


def _locked(handle: int) -> bool:
    """Lock an open file for as long as this process lives; False when another has it."""
    if sys.platform == "win32":
        return True
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # a file system without locks
        return True
    return True


def _remove_left(target: Path) -> None:
    """Remove what runs that were killed left of files for `target`: those that nobody has locked."""
    if sys.platform == "win32":
        return
    for left in target.parent.glob(f".{glob.escape(target.name)}.*{SUFFIX}"):
        with contextlib.suppress(OSError), open(left, "rb") as f:
            fcntl.flock(f.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
            left.unlink()


def _flush_folder(folder: Path) -> None:
    """Have the new names survive a loss of power, where folders can be flushed."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write a text file whole or not at all; raises `OptionError` when it cannot be written."""
    with staged(Path(path)) as stage:
        stage(Path(path), text.encode())
