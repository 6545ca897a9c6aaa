"""Reports: a run as JSON with everything a reader asks, and as one self-contained HTML page."""

from .details import report_details
from .document import check_report, read_report, write_report

__all__ = ["check_report", "read_report", "report_details", "write_report"]
