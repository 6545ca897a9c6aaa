"""The steps: Adam on the weights of the smaller model, judged now and then on samples held out."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch

from ..autograd.network import Network
from ..autograd.tensors import to_tensor
from .batches import Batch
from .loss import Loss

Array = np.ndarray[Any, Any]
Tensor = Any
RATES = (3e-3, 1e-3)
LEAST_SCALE = 1e-2
WARM = 0.05
JUDGED = 20
PATIENCE = 10
CLIP = 1.0
ANCHORED = 1.0
BETAS = (0.9, 0.99)


@dataclass(frozen=True)
class Course:
    """How tuning went: steps done, the best one, and the loss on samples held out before and at the best."""

    steps: int
    best: int
    before: float
    after: float


class Errors(NamedTuple):
    """What samples held out say: the squared error of the outputs, all of their loss, and the anchors' error."""

    squared: float
    outputs: float
    anchors: float


def train(
    network: Network,
    loss: Loss,
    learn: Iterator[list[Batch]],
    judge: Sequence[Batch],
    steps: int,
    progress: Callable[[int, int], None] | None = None,
) -> Course:
    """Tune the weights of `network` in place: they end as they were at the step that did best on `judge`.

    Each tensor learns at a rate in proportion to its own size, which rises over the first steps and falls as a cosine.
    The best step is one of less loss without a larger squared error; tuning ends early when it lies half of the steps
    back. Where there is none, tuning begins once more at a third of the rate.
    Source: Kingma and Ba, Adam, ICLR 2015; rates in proportion as in Shazeer and Stern, Adafactor, ICML 2018, sec. 8.
    """
    weights = list(network.weights.values())
    held = [(_tensors(b.feed), [to_tensor(a) for a in b.wanted], b.n) for b in judge]
    first = _judged(network, loss, held)
    if 0 < first.anchors < math.inf and first.outputs < math.inf:
        # Neither the inside nor the outside outweighs the other, whatever their errors are to begin with.
        loss.weight = ANCHORED * first.outputs / first.anchors
    lowest, best, done = first.outputs, 0, 0
    kept = [w.detach().clone() for w in weights]
    every = max(1, steps // JUDGED)
    for rate in RATES:
        adam, rates = _optimizer(weights, rate)
        for step in range(1, steps + 1):
            for group, full in zip(adam.param_groups, rates, strict=True):
                group["lr"] = full * _factor(step, steps)
            _step(network, loss, adam, next(learn))
            done += 1
            if progress is not None:
                progress(step, steps)
            if step % every and step != steps:
                continue
            found = _judged(network, loss, held)
            if found.outputs < lowest and found.squared < first.squared:
                lowest, best, kept = found.outputs, step, [w.detach().clone() for w in weights]
            elif best and step - best >= PATIENCE * every:
                break
        _put(weights, kept)
        if best:
            break
    return Course(done, best, first.outputs, lowest)


def _optimizer(weights: Sequence[Tensor], rate: float) -> tuple[Any, list[float]]:
    rates = [rate * max(float(w.detach().square().mean().sqrt()), LEAST_SCALE) for w in weights]
    return torch.optim.Adam([{"params": [w]} for w in weights], betas=BETAS), rates


def _step(network: Network, loss: Loss, adam: Any, batches: Sequence[Batch]) -> None:
    n_rows = sum(b.n for b in batches)
    adam.zero_grad()
    for batch in batches:
        made = network(_tensors(batch.feed))
        (loss(made, [to_tensor(a) for a in batch.wanted]) * (batch.n / n_rows)).backward()
    torch.nn.utils.clip_grad_norm_([w for w in network.weights.values() if w.grad is not None], CLIP)
    adam.step()


def _judged(network: Network, loss: Loss, held: Sequence[tuple[Mapping[str, Tensor], list[Tensor], int]]) -> Errors:
    sums = np.zeros(3)
    with torch.no_grad():
        for feed, wanted, n in held:
            made = network(feed)
            sums += [n * float(part(made, wanted)) for part in (loss.squared, loss.at_outputs, loss.at_anchors)]
    sums /= sum(n for _, _, n in held)
    return Errors(*(float(v) if math.isfinite(v) else math.inf for v in sums))


def _tensors(feed: Mapping[str, Array]) -> dict[str, Tensor]:
    return {name: to_tensor(array) for name, array in feed.items()}


def _put(weights: Sequence[Tensor], values: Sequence[Tensor]) -> None:
    with torch.no_grad():
        for w, value in zip(weights, values, strict=True):
            w.copy_(value)


def _factor(step: int, steps: int) -> float:
    warm = max(1, int(WARM * steps))
    if step <= warm:
        return step / warm
    return 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, steps - warm)))
