"""Compact: remove what is dead or constant already, and leave every output as it was.

    facts → readers → decision → fold

`facts` runs the constants of a model through it, `readers` says where values are summed away and what each index adds,
`decide` which units can go and why the others stay, `fold` moves their constants into what stays.
"""

from .means import fold_means, wanted_means
from .result import CompactResult, GroupOutcome
from .run import compact

__all__ = ["CompactResult", "GroupOutcome", "compact", "fold_means", "wanted_means"]
