"""Calibration: statistics of the data that flows into weights, gathered by running the model on samples."""

from .gather import gather, gather_in_order
from .probe import Probe
from .statistics import NEEDS, Statistics, Wanted, wanted

__all__ = ["NEEDS", "Probe", "Statistics", "Wanted", "gather", "gather_in_order", "wanted"]
