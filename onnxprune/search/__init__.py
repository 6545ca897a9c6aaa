"""Search: sizes that only a measurement can tell, the time of a run or a metric of the caller's."""

from .clock import Clock
from .decide import decide
from .drop import keep_metric
from .latency import meet_latency
from .sizes import Sizes

__all__ = ["Clock", "Sizes", "decide", "keep_metric", "meet_latency"]
