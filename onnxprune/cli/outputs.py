"""Outputs that cannot be written, refused before the work begins."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import OptionError

if TYPE_CHECKING:
    from ..graph.model import Model


def check_outputs(outputs: Mapping[str, str | None], inputs: Mapping[str, str | None]) -> None:
    """Check paths to write by option name against paths to read by what they are; None stands for none.

    Raises `OptionError` for a folder, a device, a missing folder, one that cannot be written to, an input, or two
    outputs in one file.
    """
    taken = {Path(path).resolve(): f"would overwrite {what}" for what, path in inputs.items() if path is not None}
    for option, path in outputs.items():
        if path is None:
            continue
        target = Path(path)
        why = _unwritable(target) or taken.get(target.resolve())
        if why is not None:
            raise OptionError(f"{option} {path}: {why}; choose another path")
        taken[target.resolve()] = f"is the file of {option} as well"


def check_against_source(model: Model, outputs: Mapping[str, str | None]) -> None:
    """Refuse outputs that are one of the model's files, its external data included."""
    from ..api import refuse_source

    for path in outputs.values():
        if path is not None:
            refuse_source(model, Path(path))


def _unwritable(target: Path) -> str | None:
    if target.is_dir():
        return "is a folder"
    if target.exists() and not target.is_file():
        return "is no regular file"
    folder = target.parent
    if not folder.is_dir():
        return f"the folder {str(folder)!r} does not exist"
    if not os.access(folder, os.W_OK | os.X_OK):
        return f"the folder {str(folder)!r} cannot be written to"
    try:
        with tempfile.TemporaryFile(dir=folder):
            return None
    except OSError as error:
        return f"the folder {str(folder)!r} cannot be written to ({error.strerror or error})"
