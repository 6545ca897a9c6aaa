"""Scores of units by gradients: what the loss changes by when the weights of a unit go.

There are no labels, and towards its own outputs a model has no gradient at all. So targets are drawn: a class as
likely as the model says, or the outputs with noise as large as they vary. The mean square of the gradients towards
such targets is the Fisher information. Source: Kunstner et al., Limitations of the empirical Fisher approximation,
NeurIPS 2019, section 2.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import islice
from typing import Any

import numpy as np

from ..autograd import need_torch
from ..axes.analysis import Analysis
from ..axes.groups import Group, Member
from ..calibration.probe import Probe
from ..criteria.data import GradientCriterion
from ..criteria.registry import Rows
from ..criteria.units import group_scores
from ..data import Data, Feed
from .curve import score_unseen
from .outputs import Head, Outputs, heads
from .scores import MOST_FEEDS, Scored, saved

FLOATS = (1, 10, 11, 16)
TINY = 1e-30


def score_by_gradients(
    analysis: Analysis,
    groups: Sequence[Group],
    criterion: GradientCriterion,
    data: Data,
    *,
    metrics: Sequence[str] = (),
    seed: int = 0,
    threads: int | None = None,
) -> Scored:
    """Score the units of every group: (size,) numbers, higher is worth keeping, and what was used.

    A unit's score is the sum of the saliencies of its weights: those that produce it and those that read it both say
    what is lost, and count half each. With `metrics` it is divided by the part of these costs that the unit saves.
    Raises `OptionError` without torch, `ModelError` for an operator that cannot be differentiated.
    """
    need_torch(f"criterion {criterion.name!r}")
    members = {g.id: _members(analysis, g) for g in groups}
    wanted = {m.initializer for found in members.values() for m in found}
    feeds = list(islice(iter(data), MOST_FEEDS))
    means = _mean_gradients(analysis, feeds, wanted, criterion.needs[0], seed, threads)
    found: Scored = {}
    assert criterion.saliency is not None
    for group in groups:
        used: dict[str, Any] = {"criterion": criterion.name, "seed": seed}
        if not members[group.id]:
            scores, _ = group_scores(analysis, group, "l2", seed)
            found[group.id] = scores, {**used, "instead": "l2", "why": "no weight of its units has a gradient"}
            continue
        reached = [m for m in members[group.id] if m.initializer in means]
        if not reached:
            found[group.id] = score_unseen(analysis, group, criterion, seed)
            continue
        roles: dict[str, Rows] = {}
        for m in reached:
            weight = analysis.model.array(m.initializer).astype(np.float64)
            part = per_unit(criterion.saliency(weight, means[m.initializer]), m, group.size)
            roles[m.role] = roles.get(m.role, np.zeros(group.size)) + part
        scores = np.mean(list(roles.values()), axis=0)
        found[group.id] = scores / (saved(analysis, group, metrics) if metrics else 1.0), used
    return found


def per_unit(saliency: Rows, member: Member, size: int) -> Rows:
    """Sum what a weight's elements are worth over the elements of every unit: (size,)."""
    slices = np.moveaxis(saliency, member.axis, 0).reshape(saliency.shape[member.axis], -1).sum(axis=1)
    inside = member.unit >= 0
    return np.asarray(np.bincount(member.unit[inside], weights=slices[inside], minlength=size), np.float64)


def _members(analysis: Analysis, group: Group) -> list[Member]:
    """List the weights that produce or read the units, each once."""
    tensors = analysis.model.tensors
    found: dict[tuple[str, int], Member] = {}
    for m in group.members:
        if m.role in ("output", "input") and tensors[m.initializer].data_type in FLOATS:
            found.setdefault((m.initializer, m.axis), m)
    return list(found.values())


def _mean_gradients(
    analysis: Analysis, feeds: Sequence[Feed], wanted: Iterable[str], need: str, seed: int, threads: int | None
) -> Mapping[str, Rows]:
    """Give the mean "absolute" or "squared" gradient of every weight that some sample reaches."""
    import torch

    from ..autograd.network import Network
    from ..autograd.tensors import limited_threads, to_tensor

    probe = Probe(analysis.model)
    ends = heads(probe)
    built, _ = probe.build([h.name for h in ends], {})
    network = Network(built, set(wanted))
    variances = Outputs(probe, list(feeds), threads).variances
    generator = torch.Generator().manual_seed(seed)
    sums: dict[str, Any] = {}
    with limited_threads(threads):
        for feed in feeds:
            made = network({n: to_tensor(a) for n, a in feed.items()})
            loss = sum(_drawn(h, y, v, generator) for h, y, v in zip(ends, made, variances, strict=True) if v > 0)
            if not isinstance(loss, torch.Tensor) or not loss.requires_grad:
                continue
            names = list(network.weights)
            slopes = torch.autograd.grad(loss, [network.weights[n] for n in names], allow_unused=True)
            for name, slope in zip(names, slopes, strict=True):
                if slope is not None:
                    value = slope.double().abs() if need == "absolute" else slope.double().square()
                    sums[name] = value if name not in sums else sums[name] + value
    return {name: (total / len(feeds)).numpy() for name, total in sums.items()}


def _drawn(head: Head, y: Any, variance: float, generator: Any) -> Any:
    """Give the negative log-likelihood of targets drawn from what the model says, y."""
    import torch

    if head.squash in ("Softmax", "LogSoftmax"):
        log_p = torch.log_softmax(y, head.axis).movedim(head.axis, -1)
        flat = log_p.reshape(-1, log_p.shape[-1])
        label = torch.multinomial(flat.detach().exp(), 1, generator=generator)
        return -flat.gather(1, label).mean()
    noise = torch.randn(y.shape, generator=generator, dtype=y.dtype)
    return -(noise * y).mean() / max(variance, TINY) ** 0.5
