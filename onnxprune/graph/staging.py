"""Outputs that appear whole or not at all: written beside their targets, flushed, renamed."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

from ..errors import OptionError


class Stage:
    """Temporary files beside their targets, renamed together at the end."""

    def __init__(self) -> None:
        self.paths: dict[Path, Path] = {}

    def __call__(self, target: Path, content: bytes | None) -> None:
        """Open a temporary file for `target`, with `content` if that is known already."""
        handle, name = tempfile.mkstemp(prefix=f".{target.name}.", suffix=".partial", dir=target.parent)
        os.close(handle)
        self.paths[target] = Path(name)
        if content is not None:
            Path(name).write_bytes(content)


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
        mask = os.umask(0)
        os.umask(mask)
        for temporary in stage.paths.values():
            temporary.chmod(0o666 & ~mask)
            with open(temporary, "rb") as f:
                os.fsync(f.fileno())
        for final, temporary in stage.paths.items():
            temporary.replace(final)
    except OSError as error:
        raise OptionError(f"{target}: cannot be written ({error.strerror or error})") from error
    finally:
        for temporary in stage.paths.values():
            temporary.unlink(missing_ok=True)


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write a text file whole or not at all; raises `OptionError` when it cannot be written."""
    with staged(Path(path)) as stage:
        stage(Path(path), text.encode())
