"""Which groups may be pruned at all, and how far: kinds, exactness, globs, chains, bounds and alignment."""

from __future__ import annotations

import fnmatch
import math
from collections.abc import Collection as AnyCollection
from collections.abc import Sequence
from dataclasses import dataclass

from ..axes.analysis import Analysis
from ..axes.groups import Group
from ..axes.naming import KINDS
from ..errors import OptionError, unknown_name

BLOCK = 16
VECTOR = 8
PART_OF_BLOCK = 4


@dataclass(frozen=True)
class Limits:
    """`removable` is the most units that may go; what stays is a multiple of `step`, unless nothing goes.

    A step takes equally many units from every block of the group.
    """

    removable: int
    step: int


def eligible(
    analysis: Analysis,
    *,
    kinds: Sequence[str] | None = None,
    allow_inexact: bool = False,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    weights: AnyCollection[str] | None = None,
) -> dict[str, str | None]:
    """Say for every group why it is left alone, None for the ones that may be pruned.

    Inexact groups take part when asked for, by `allow_inexact` or by naming their kind. `weights` limits the groups
    to those one of these initializers produces. Raises `UnknownNameError` for a kind or a glob that names nothing.
    """
    for kind in kinds or ():
        if kind not in KINDS:
            raise unknown_name("kind", kind, KINDS)
    for glob in (*include, *exclude):
        _check_glob(analysis, glob)
    reasons: dict[str, str | None] = {}
    for group in analysis.groups:
        reason = None
        if kinds is not None and group.kind not in kinds:
            reason = f"kind {group.kind} was not asked for"
        elif include and not group.matches(include, consumers=False):
            reason = "not included"
        elif group.matches(exclude):
            reason = "excluded"
        elif weights is not None and not any(m.role == "output" and m.initializer in weights for m in group.members):
            reason = "on no matched chain"
        elif not group.exact and not allow_inexact and kinds is None:
            reason = f"inexact ({group.why_inexact}); allow it with --allow-inexact or --kinds {group.kind}"
        reasons[group.id] = reason
    return reasons


def _check_glob(analysis: Analysis, glob: str) -> None:
    if any(g.matches([glob]) for g in analysis.groups):
        return
    names = [g.id for g in analysis.groups]
    tensors = list(analysis.model.tensors)
    nodes = [op.node.name for op in analysis.collection.ops if op.node.name]
    if any(fnmatch.fnmatchcase(n, glob) for n in (*tensors, *nodes)):
        return
    raise unknown_name("group, node or initializer", glob, [*names, *tensors, *nodes])


def limits(group: Group, max_ratio: float, round_to: int | str | None) -> Limits:
    """Bound what one group may lose: at most `max_ratio` of it, one unit and one full step of every block staying."""
    step = step_of(group, round_to) * group.blocks
    least = max(math.ceil(group.size * (1 - max_ratio) - 1e-9), step, group.least * group.blocks)
    least = math.ceil(least / step) * step
    return Limits(max(0, group.size - least), step)


def step_of(group: Group, round_to: int | str | None) -> int:
    """Give the multiple that what stays of a group, or of each of its blocks, must be.

    "auto" gives widths that onnxruntime runs fast on any CPU, so that a plan does not depend on the machine it was made
    on: 16 for channels, the largest block of its convolutions, and 8 for others. Below a block, channels keep to 4, and
    others are left alone, as are heads and convolution groups, whose width is a product with another axis.

    Source: NchwcGetBlockSize in onnxruntime/core/mlas (8 with AVX, 16 with AVX-512 and on Arm), and the 4 that
    nchwc_transformer.cc asks of a convolution's input; joining channels by Concat asks for whole blocks.
    """
    if round_to is None:
        return 1
    if round_to == "auto":
        if group.kind == "channels":
            return BLOCK if group.width >= BLOCK else PART_OF_BLOCK
        return 1 if group.kind in ("heads", "groups") or group.width < BLOCK else VECTOR
    if isinstance(round_to, bool) or not isinstance(round_to, int) or round_to < 1:
        raise OptionError(f"round_to must be a positive integer or 'auto', not {round_to!r}")
    return round_to


def aligned_removal(size: int, wanted: int, limit: Limits) -> int:
    """Give the most units that may go, at most `wanted`, so that what stays keeps the step."""
    kept = math.ceil((size - min(wanted, limit.removable)) / limit.step) * limit.step
    return size - kept if kept < size else 0
