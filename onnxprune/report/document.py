"""Reading and writing of reports: JSON with the fields of `--json`, and HTML made of it."""

from __future__ import annotations

import importlib.util
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .._version import __version__
from ..errors import DataError, OptionError, unknown_name
from ..graph.staging import write_text

SCHEMA = "onnxprune.report/1"
COMMANDS = ("prune", "sensitivity")
SUFFIXES = (".html", ".htm", ".json")


def check_report(path: str | os.PathLike[str]) -> None:
    """Refuse a report that cannot be written: `OptionError` for another ending, or where matplotlib is missing."""
    suffix = Path(path).suffix.lower()
    if suffix not in SUFFIXES:
        raise OptionError(f"{path}: a report is .html or .json, not {suffix or 'a file without an ending'}")
    if suffix != ".json" and importlib.util.find_spec("matplotlib") is None:
        raise OptionError(
            f"{path}: the plots of a page need matplotlib: pip install 'onnxprune[report]', or give .json"
        )


def write_report(document: Mapping[str, Any], path: str | os.PathLike[str]) -> int:
    """Write the document of a run as a report, whole or not at all; gives its size in bytes.

    `document` is what `--json` prints, and may hold the fields of `report_details` and "sensitivity" beside it. What
    differs from run to run though the result is the same is left out. Raises `OptionError` as `check_report` does.
    """
    check_report(path)
    whole = {"schema": SCHEMA, "onnxprune": __version__, **document}
    whole.pop("seconds", None)
    whole.pop("run", None)
    if Path(path).suffix.lower() == ".json":
        text = json.dumps(whole, indent=1) + "\n"
    else:
        from .page import page

        text = page(whole)
    write_text(path, text)
    return len(text.encode())


def read_report(path: str | os.PathLike[str], *, sensitivity: str | os.PathLike[str] | None = None) -> dict[str, Any]:
    """Read what `--json` or a report in JSON wrote; `sensitivity` is shown with it.

    Raises `DataError` for a file that is missing or holds no such document.
    """
    document = _read(path)
    if sensitivity is not None:
        beside = _read(sensitivity)
        if beside["command"] != "sensitivity":
            raise DataError(f"{sensitivity}: is the result of {beside['command']}, not of sensitivity")
        if document["command"] != "prune":
            raise DataError(f"{path}: is the result of {document['command']}; a sensitivity goes beside one of prune")
        mine = document["plan"].get("source_sha256")
        if mine != beside["source_sha256"]:
            raise DataError(f"{sensitivity}: was measured on another model than {path}")
        document["sensitivity"] = beside
    return document


def _read(path: str | os.PathLike[str]) -> dict[str, Any]:
    try:
        document = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: not JSON ({error})") from error
    if not isinstance(document, dict) or "command" not in document:
        raise DataError(f"{path}: not the result of a run; give what --json or --report FILE.json wrote")
    command = document["command"]
    if command not in COMMANDS:
        raise DataError(f"{path}: no page can be made of it; {unknown_name('command', str(command), COMMANDS)}")
    needed = _NEEDED[command]
    missing = [name for name in needed if name not in document]
    if missing:
        raise DataError(f"{path}: lacks {', '.join(map(repr, missing))}; is it the whole result?")
    return document


_NEEDED = {
    "prune": ("model", "plan", "params", "macs", "bytes"),
    "sensitivity": ("model", "source_sha256", "figure", "original", "ratios", "groups"),
}
