"""The steps: Adam on the weights of the smaller model, judged now and then on samples held out."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from ..autograd.network import Network
from ..autograd.tensors import to_tensor
from .batches import Batch
from .loss import Loss

Array = np.ndarray[Any, Any]
Tensor = Any
RATE = 3e-3
LEAST_SCALE = 1e-2
WARM = 0.05
JUDGED = 20
PATIENCE = 4
LOWER = 3.0
LOWEST = 0.1
BETAS = (0.9, 0.99)
CLIP = 1.0
ANCHORED = 1.0


@dataclass(frozen=True)
class Course:
    """How tuning went: steps done, the best one, and the loss on samples held out before and at the best."""

    steps: int
    best: int
    before: float
    after: float


def train(
    network: Network,
    loss: Loss,
    learn: Iterator[list[Batch]],
    judge: Sequence[Batch],
    steps: int,
    progress: Callable[[int, int], None] | None = None,
) -> Course:
    """Tune the weights of `network` in place: they end as they were at the step that did best on `judge`.

    Each tensor learns at a rate in proportion to its own size. The rate rises over the first steps and falls as a
    cosine. When samples held out have not gained for long, it goes back to the best step and on at a third of the rate;
    the third time it ends.
    Source: Kingma and Ba, Adam, ICLR 2015; rates in proportion as in Shazeer and Stern, Adafactor, ICML 2018, sec. 8.
    """
    weights = list(network.weights.values())
    rates = [RATE * max(float(w.detach().square().mean().sqrt()), LEAST_SCALE) for w in weights]
    groups = [{"params": [w], "lr": r} for w, r in zip(weights, rates, strict=True)]
    adam = torch.optim.Adam(groups, betas=BETAS)
    held = [([to_tensor(a) for a in b.wanted], {n: to_tensor(a) for n, a in b.feed.items()}, b.n) for b in judge]

    def judged() -> tuple[float, float]:
        parts = np.zeros(2)
        with torch.no_grad():
            for wanted, feed, n in held:
                made = network(feed)
                parts += [n * float(part(made, wanted)) for part in (loss.at_outputs, loss.at_anchors)]
        parts /= sum(n for _, _, n in held)
        return (float(parts[0]) if math.isfinite(parts[0]) else math.inf), float(parts[1])

    lowest, inside = judged()
    first = lowest
    if 0 < inside < math.inf and lowest < math.inf:
        # Neither the inside nor the outside outweighs the other, whatever their errors are to begin with.
        loss.weight = ANCHORED * lowest / inside
    best, kept = 0, [w.detach().clone() for w in weights]
    every = max(1, steps // JUDGED)
    done, since, scale = 0, 0, 1.0
    for step in range(1, steps + 1):
        batches = next(learn)
        n_rows = sum(b.n for b in batches)
        adam.zero_grad()
        for batch in batches:
            made = network({n: to_tensor(a) for n, a in batch.feed.items()})
            (loss(made, [to_tensor(a) for a in batch.wanted]) * (batch.n / n_rows)).backward()
        torch.nn.utils.clip_grad_norm_([w for w in weights if w.grad is not None], CLIP)
        factor = scale * _factor(step, steps)
        for group, rate in zip(adam.param_groups, rates, strict=True):
            group["lr"] = rate * factor
        adam.step()
        done = step
        if progress is not None:
            progress(step, steps)
        if step % every == 0 or step == steps:
            value, _ = judged()
            if value < lowest:
                lowest, best, since, kept = value, step, step, [w.detach().clone() for w in weights]
            elif step - since >= PATIENCE * every:
                scale, since = scale / LOWER, step
                if scale < LOWEST:
                    break
                _put(weights, kept)
                adam.state.clear()
    _put(weights, kept)
    return Course(done, best, first, lowest)


def _put(weights: Sequence[Tensor], values: Sequence[Tensor]) -> None:
    with torch.no_grad():
        for w, value in zip(weights, values, strict=True):
            w.copy_(value)


def _factor(step: int, steps: int) -> float:
    warm = max(1, int(WARM * steps))
    if step <= warm:
        return step / warm
    return 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, steps - warm)))
