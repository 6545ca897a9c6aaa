"""Criteria: how the importance of a unit is computed from its weights. Higher is worth keeping."""

from .data import Consumer, DataCriterion, data_criterion
from .registry import Criterion, criteria, criterion
from .units import group_scores, unit_scores

__all__ = [
    "Consumer",
    "Criterion",
    "DataCriterion",
    "criteria",
    "criterion",
    "data_criterion",
    "group_scores",
    "unit_scores",
]
