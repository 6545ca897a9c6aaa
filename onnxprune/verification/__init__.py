"""Proof of what a pruned model is: valid, runnable, equal to the masked twin, smaller, faster.

Shares no code with the rewriting it judges.
"""

from ..graph.session import open_session, run
from .checks import Check
from .compare import Comparison, OutputComparison
from .latency import Latency, measure_latency
from .metric import load_metric
from .twin import mask, masked_twin
from .verdict import Verdict
from .verifier import verify

__all__ = [
    "Check",
    "Comparison",
    "Latency",
    "OutputComparison",
    "Verdict",
    "load_metric",
    "mask",
    "masked_twin",
    "measure_latency",
    "open_session",
    "run",
    "verify",
]
