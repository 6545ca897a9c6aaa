"""Criteria: how the importance of a unit is computed from its weights. Higher is worth keeping."""

from .registry import Criterion, criteria, criterion
from .units import group_scores, unit_scores

__all__ = ["Criterion", "criteria", "criterion", "group_scores", "unit_scores"]
