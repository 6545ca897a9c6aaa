"""Which groups may be pruned at all, and how far: kinds, exactness, globs, chains, bounds and alignment."""

from __future__ import annotations

import fnmatch
import functools
import math
from collections.abc import Collection as AnyCollection
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ..axes.analysis import Analysis, Group
from ..axes.naming import KINDS
from ..errors import OptionError, unknown_name

AUTO_SMALLEST = 16


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

    "auto" aligns widths for onnxruntime's blocked CPU kernels and leaves alone small groups, and heads and convolution
    groups, whose width is a product with another axis.
    """
    if round_to is None:
        return 1
    if round_to == "auto":
        whole = group.kind in ("heads", "groups") or group.width < AUTO_SMALLEST
        return 1 if whole else auto_step()
    if isinstance(round_to, bool) or not isinstance(round_to, int) or round_to < 1:
        raise OptionError(f"round_to must be a positive integer or 'auto', not {round_to!r}")
    return round_to


@functools.cache
def auto_step() -> int:
    """Give the channel block of onnxruntime's convolutions on this machine: 16 with AVX-512, else 8.

    Source: NchwcGetBlockSize in onnxruntime/core/mlas.
    """
    try:
        flags = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return 8
    return 16 if "avx512f" in flags.split() else 8


def aligned_removal(size: int, wanted: int, limit: Limits) -> int:
    """Give the most units that may go, at most `wanted`, so that what stays keeps the step."""
    kept = math.ceil((size - min(wanted, limit.removable)) / limit.step) * limit.step
    return size - kept if kept < size else 0
