"""Recover: what samples tell about units, and new values for the weights that stay.

Nothing is trained. Both come from moments of the data that flows into weights, and need no labels.
"""

from .result import Recovery, Repair, Tuning
from .run import RECOVERIES, recover
from .scores import score_groups, with_data

__all__ = ["RECOVERIES", "Recovery", "Repair", "Tuning", "recover", "score_groups", "with_data"]
