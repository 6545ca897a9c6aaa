"""The Python interface: one function per stage, and their composition.

load → analyze → plan → apply → verify → save, and beside it sparsify, which needs no analysis
"""

from ..axes.costs import change
from ..graph.model import refuse_source
from ..graph.staging import write_text
from ..select.eligible import eligible
from .compaction import compact
from .pruning import PruneResult, prune
from .reports import check_report, read_report, report_details, write_report
from .sparsity import save_masks, sparse_eligibility, sparsify, stored_weights, unpack
from .stages import analyze, apply, error_curves, load, mask, plan, repair, save, verify
from .sweep import sensitivity

__all__ = [
    "PruneResult",
    "analyze",
    "apply",
    "change",
    "check_report",
    "compact",
    "eligible",
    "error_curves",
    "load",
    "mask",
    "plan",
    "prune",
    "read_report",
    "refuse_source",
    "repair",
    "report_details",
    "save",
    "save_masks",
    "sensitivity",
    "sparse_eligibility",
    "sparsify",
    "stored_weights",
    "unpack",
    "verify",
    "write_report",
    "write_text",
]
