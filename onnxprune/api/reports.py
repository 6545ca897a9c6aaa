"""Reports of runs, read and written."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from ..axes.analysis import Analysis
from ..planfile import Plan


def report_details(analysis: Analysis, plan: Plan) -> dict[str, Any]:
    """Give what a report says beyond the document of its run: frozen parts with reasons, and how scores are spread."""
    from ..report import report_details as details

    return details(analysis, plan, plan.scores)


def check_report(path: str | os.PathLike[str]) -> None:
    """Refuse a report that could not be written, before the work begins; see `write_report`."""
    from ..report import check_report as check

    check(path)


def write_report(document: Mapping[str, Any], path: str | os.PathLike[str]) -> int:
    """Write the document of a run as `.json` or as one self-contained `.html` page, and give its size in bytes.

    Raises `OptionError` for another ending, and where a page needs matplotlib and it is missing.
    """
    from ..report import write_report as write

    return write(document, path)


def read_report(path: str | os.PathLike[str], *, sensitivity: str | os.PathLike[str] | None = None) -> dict[str, Any]:
    """Read the document of a run, and that of a sensitivity of the same model beside it."""
    from ..report import read_report as read

    return read(path, sensitivity=sensitivity)
