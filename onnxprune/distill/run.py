"""`distill`: tune the weights that a plan leaves, already repaired by least squares, against the original's outputs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np

from ..autograd import need_torch
from ..axes.analysis import Analysis, Keep
from ..calibration.probe import Probe
from ..calibration.session import Session
from ..data import load_data
from ..errors import ModelError, OptionError
from ..planfile import Plan
from ..recover import Recovery, Tuning, recover
from ..recover.masked import masked_weights
from ..recover.outputs import Outputs, heads
from ..recover.run import MOST_FEEDS
from ..recover.split import split
from ..rewrite.apply import apply_plan
from .anchors import Anchor, candidates, chosen
from .batches import Teacher, can_join, endless, joined
from .tunable import Places, tunable

if TYPE_CHECKING:
    from ..autograd.network import Network
    from ..data import Feed
    from ..graph.model import Model

DISTILL = "distill"
STEPS = 400
BATCH = 16
COMPARED = 8
TOLERANCE = 1e-2
Progress = Callable[[int, int], None]
Array = np.ndarray[Any, Any]


def distill(
    analysis: Analysis,
    plan: Plan,
    data: Any,
    *,
    steps: int | None = None,
    seed: int = 0,
    threads: int | None = None,
    progress: Progress | None = None,
) -> Recovery:
    """Give new values for the weights that `plan` leaves: least squares first, then `steps` of gradients (400).

    Three of four feeds are learned from; those held out say when to stop, and undo all tuning when the error at the
    outputs has not fallen there. `progress(done, total)` counts stages, then steps. With one thread the same call gives
    the same values.

    Raises `OptionError` without torch or for a number of steps below 1, `ModelError` for an operator that cannot be
    differentiated, and what `recover` raises.
    """
    need_torch("recover='distill'")
    steps = STEPS if steps is None else steps
    if steps < 1:
        raise OptionError(f"distill-steps must be at least 1, not {steps}; --recover lstsq repairs without any")
    closed = recover(analysis, plan, data, "lstsq", threads=threads, progress=progress)
    if plan.empty:
        return replace(closed, how=DISTILL)
    feeds = list(islice(iter(load_data(data, analysis.model)), MOST_FEEDS))
    return _Distiller(analysis, plan, closed, feeds, threads).run(steps, seed, progress)


def check_network(network: Network, model: Model, feed: Feed, threads: int | None) -> None:
    """Run one feed in torch and in onnxruntime; raises `ModelError` where they give other numbers."""
    import torch

    from ..autograd.tensors import to_tensor

    with torch.no_grad():
        made = network({n: to_tensor(a) for n, a in feed.items()})
    session = Session(model, model.label, threads)
    for name, y, z in zip(network.outputs, made, session.run(network.outputs, feed), strict=True):
        wrong = np.abs(y.numpy().astype(np.float64) - z).max(initial=0.0) if y.shape == z.shape else np.inf
        if z.dtype.kind == "f" and not wrong <= TOLERANCE * max(float(np.ptp(z)) if z.size else 0.0, TOLERANCE):
            raise ModelError(
                f"{model.label}: {name!r} differs between torch and onnxruntime by {wrong:.3g}, so its gradients would "
                "be those of another model. Repair without gradients (--recover lstsq)"
            )


class _Distiller:
    """One tuning of one model that was cut and repaired."""

    def __init__(
        self, analysis: Analysis, plan: Plan, closed: Recovery, feeds: list[Feed], threads: int | None
    ) -> None:
        self.analysis, self.plan, self.closed, self.threads = analysis, plan, closed, threads
        self.learn, self.held = split(feeds)
        self.probe = Probe(analysis.model)
        self.smaller = Probe(apply_plan(analysis, plan, closed.values))
        self.heads = heads(self.probe)
        self.outputs = Outputs(self.probe, self.held, threads)

    def run(self, steps: int, seed: int, progress: Progress | None) -> Recovery:
        """Tune, widen to the shapes of the original, and keep what is better on the feeds held out."""
        from ..autograd.network import Network
        from ..autograd.tensors import limited_threads
        from .loss import Loss
        from .train import train

        alive = self.analysis.alive({g.id: g.removed for g in self.plan.groups})
        places = Places(self.analysis, alive)
        names = [h.name for h in self.heads]
        anchors = self._anchors(alive, names)
        asked = [*names, *(a.name for a in anchors)]
        built, fetched = self.smaller.build(asked, {})
        tuned = places.known(tunable(self.smaller), self.analysis.model.tensors)
        network = Network(built, tuned)
        if not network.weights:
            raise ModelError(
                f"{self.probe.model.label}: it has no weight to tune, which is a float tensor that stands for one of "
                "the original's and is no mask. Repair without gradients (--recover lstsq)"
            )
        assert [fetched[n] for n in asked] == network.outputs
        check_network(network, built, self.held[0], self.threads)
        teacher = Teacher(self.probe, names, anchors, self.threads)
        joins = can_join(teacher, self.learn)
        with limited_threads(self.threads):
            course = train(
                network,
                Loss(self.heads, self.outputs.variances, anchors),
                endless(teacher, self.learn, BATCH, np.random.default_rng(seed), joins=joins),
                joined(teacher, self.held, BATCH if joins else 1),
                steps,
                progress,
            )
        found = {name: w.detach().numpy() for name, w in network.weights.items()}
        masked = masked_weights(self.analysis, alive)
        whole = {n: self.closed.values.get(n, masked.get(n, self.analysis.model.array(n))) for n in found}
        values = {**self.closed.values, **places.widened(found, whole)}
        before = self.outputs.distance({}, self.smaller)
        after = self.outputs.distance({}, Probe(apply_plan(self.analysis, self.plan, values)))
        kept = course.best > 0 and after < before
        tuning = Tuning(course.steps, course.best, len(found), before, after, kept=kept)
        if not kept:
            return replace(self.closed, how=DISTILL, tuning=tuning)
        return replace(self.closed, how=DISTILL, values=values, after=after, tuning=tuning)

    def _anchors(self, alive: Keep, names: Sequence[str]) -> list[Anchor]:
        """Choose tensors to hold on to, by what both models give for some feeds."""
        found = candidates(self.analysis, alive, self.probe, self.smaller, names)
        asked = [a.name for a in found]
        rows = []
        for probe in (self.smaller, self.probe):
            built, outputs = probe.build(asked, {})
            session = Session(built, probe.model.label, self.threads)
            rows.append(list(session.each([outputs[n] for n in asked], self.learn[:COMPARED])))
        return chosen(found, *rows) if found else []
