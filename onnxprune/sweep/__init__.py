"""Sensitivity: what pruning one group alone, at several ratios, does to the model."""

from .result import Sensitivity, SensitivityCell, SensitivityGroup
from .run import Settings, measure_sensitivity
from .workers import Workers

__all__ = ["Sensitivity", "SensitivityCell", "SensitivityGroup", "Settings", "Workers", "measure_sensitivity"]
