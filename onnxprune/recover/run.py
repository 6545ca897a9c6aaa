"""`recover`: new values for the weights that stay, layer by layer, from the inputs on.

Every product is fitted to give what it gave in the original, on the data that the pruned and repaired layers before it
give: asymmetric least squares. What does not help on samples held out is not done.
Source: He et al., Channel Pruning for Accelerating Very Deep Neural Networks, ICCV 2017, section 3.1.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import islice
from typing import Any

import numpy as np

from ..axes.analysis import Analysis, Keep
from ..calibration.probe import Probe
from ..calibration.views import View
from ..data import Feed, load_data
from ..errors import DataError, OptionError, unknown_name
from ..planfile import Plan
from .fit import Fit, Moments, error, proposals
from .masked import hidden_from_masks, masked_weights
from .moments import Gathered, Sampler, feed_shapes, rows_judged, rows_wanted, view_of
from .outputs import Outputs
from .products import Array, Product, find_products
from .result import Recovery, Repair
from .split import held_out, split
from .stages import stages
from .walk import Walk

RECOVERIES = ("none", "bias", "lstsq")
MOST_FEEDS = 256
FEWEST_SAMPLES = 2
UNDONE = "undone: all repairs together made the outputs worse on the samples held out"
MOST_FEATURES = 2600
Progress = Callable[[int, int], None]


def recover(
    analysis: Analysis,
    plan: Plan,
    data: Any,
    how: str = "lstsq",
    *,
    threads: int | None = None,
    progress: Progress | None = None,
) -> Recovery:
    """Give new values for the weights that `plan` leaves.

    `how` is "bias", which shifts biases by the mean of what is gone, or "lstsq", which refits weights and biases.
    `progress(done, total)` counts stages.

    Raises `UnknownNameError` for another way, `DataError` for data that does not fit or is too little.
    """
    if how not in RECOVERIES:
        raise unknown_name("way to recover", how, RECOVERIES)
    if how == "none" or plan.empty:
        return Recovery(how, {})
    if data is None:
        raise OptionError(f"recover={how!r} needs data to run the model on: give samples (--data SOURCE)")
    probe = Probe(analysis.model)
    feeds = list(islice(iter(load_data(data, probe.model)), MOST_FEEDS))
    count = sum(next((np.shape(a)[0] for a in feed.values() if np.ndim(a)), 1) for feed in feeds)
    if count < FEWEST_SAMPLES:
        raise DataError(
            f"{count} sample is too few to repair weights from; give at least {FEWEST_SAMPLES}, better 100 or more, or "
            "leave the weights as they are (--recover none)"
        )
    alive = analysis.alive({g.id: g.removed for g in plan.groups})
    if (hidden := hidden_from_masks(analysis, alive)) is not None:
        why = f"the cut of {hidden!r} cannot be followed: its zero points are computed, or differ"
        return Recovery(how, {}, tuple(Repair(p.name, p.weight, "none", why=why) for p in find_products(analysis)[0]))
    return _Recoverer(analysis, probe, alive, feeds, how, threads).run(progress)


class _Recoverer:
    """One recovery: `weights` are those of the model as far as it is repaired."""

    def __init__(
        self, analysis: Analysis, probe: Probe, alive: Keep, feeds: list[Feed], how: str, threads: int | None
    ) -> None:
        self.analysis, self.probe, self.alive = analysis, probe, alive
        self.feeds, self.how, self.threads = feeds, how, threads
        self.held_out = held_out(len(feeds))
        self.shapes = feed_shapes(probe, feeds)
        self.weights = masked_weights(analysis, alive)
        self.values: dict[str, Array] = {}
        self.repairs: list[Repair] = []

    def run(self, progress: Progress | None) -> Recovery:
        """Repair stage after stage, and compare the outputs."""
        found, refused = find_products(self.analysis)
        products = [p.by_channel() if p.shape[2] > MOST_FEATURES else p for p in found]
        outputs = Outputs(self.probe, split(self.feeds)[1], self.threads)
        before = outputs.distance(self.weights)
        rounds = stages(self.analysis, products, set(self.weights))
        now = Walk(self.probe, self.feeds, self.weights, self.threads)
        then = Walk(self.probe, self.feeds, {}, self.threads)
        for done, together in enumerate(rounds):
            self._stage(together, now, then)
            if progress is not None:
                progress(done + 1, len(rounds))
        after = outputs.distance(self.weights)
        skipped = [Repair(r.node, r.weight, "none", why=r.reason) for r in refused]
        repairs = (*_last(self.repairs), *skipped)
        n_held = sum(self.held_out)
        values = self.values
        if not after <= before:
            values, after = {}, before
            repairs = tuple(replace(r, how="none", after=r.before, why=r.why or UNDONE) for r in repairs)
        return Recovery(self.how, values, repairs, len(self.feeds) - n_held, n_held, before, after)

    def _stage(self, together: Sequence[Product], now: Walk, then: Walk) -> None:
        views: dict[Product, View] = {}
        for p in together:
            view = view_of(p, self.probe, self.shapes)
            if isinstance(view, str):
                self.repairs.append(Repair(p.name, p.weight, "none", why=view))
            else:
                views[p] = view
        n_held = sum(self.held_out)
        n_learn = len(self.feeds) - n_held
        learn = {p: Sampler(v, rows_wanted(p), n_learn) for p, v in views.items()}
        judge = {p: Sampler(v, rows_judged(p), n_held or n_learn) for p, v in views.items()}
        sums = {p: Gathered() for p in views}
        rows: dict[Product, list[list[Array]]] = {p: [] for p in views}
        names = list(dict.fromkeys(n for v in views.values() for n in v.names))
        again = {p.node for p in views if p.reads_state}
        for held, x, z in zip(self.held_out, now.step(names, again), then.step(names, again), strict=True):
            for p in views:
                if not held:
                    for part in learn[p].rows(x, z):
                        sums[p].add(*part)
                if held or not n_held:
                    rows[p] += judge[p].rows(x, z)
        for p in views:
            sums[p].settle(crossed=True)
            if not sums[p].is_finite or not rows[p]:
                why = "its data is not finite on the samples" if sums[p].n_rows else "no sample reaches it"
                self.repairs.append(Repair(p.name, p.weight, "none", why=why))
                continue
            seen, meant = (np.concatenate(part, axis=1) for part in zip(*rows.pop(p), strict=True))
            self._repair(p, sums.pop(p), seen, meant)

    def _repair(self, product: Product, sums: Gathered, x: Array, z: Array) -> None:
        original = product.matrices(self.analysis.model.array(product.weight))
        stored = self.weights.get(product.weight, self.analysis.model.array(product.weight))
        cut = product.matrices(stored)
        keep = product.kept_features(self.analysis, self.alive)
        rows = product.kept_outputs(self.analysis, self.alive)
        new, shift = cut.copy(), np.zeros(product.shape[:2])
        before = after = energy = 0.0
        ridges, hows = [], []
        assert sums.xx is not None
        assert sums.xz is not None
        assert sums.x is not None
        assert sums.z is not None
        n = sums.n_rows
        for k in range(product.shape[0]):
            if not rows[k].any():
                continue
            moments = Moments(sums.x[k] / n, sums.z[k] / n, sums.xx[k] / n, sums.xz[k] / n)
            wish = z[k] @ original[k][rows[k]].T.astype(np.float32)
            nothing = Fit(cut[k], np.zeros(product.shape[1]), "none")
            trials = [(error(nothing, wish, rows[k], x[k]), 0, nothing)]
            for fit in proposals(original[k], cut[k], keep[k], moments, bias=product.bias is not None, how=self.how):
                trials.append((error(fit, wish, rows[k], x[k]), len(trials), fit))
            best = min(trials, key=lambda t: t[:2])
            before, after = before + trials[0][0], after + best[0]
            energy += float(wish.var(axis=0, dtype=np.float64).sum())
            new[k], shift[k] = best[2].weight, best[2].shift
            new[k][~rows[k]] = 0
            shift[k][~rows[k]] = 0
            hows.append(best[2].how)
            ridges.append(best[2].ridge)
        how = next((h for h in ("lstsq", "bias") if h in hows), "none")
        scale = max(energy, float(np.finfo(np.float32).tiny))
        ridge = next((r for r in ridges if r is not None), None)
        self.repairs.append(Repair(product.name, product.weight, how, before / scale, after / scale, ridge))
        if how == "lstsq":
            self._put(product.weight, product.stored(new, stored))
        if how != "none" and product.bias is not None:
            name = product.bias.name
            held = self.weights.get(name, self.analysis.model.array(name))
            self._put(name, product.bias.shifted(held, product.per_bias(shift)))

    def _put(self, name: str, array: Array) -> None:
        self.weights[name] = self.values[name] = array


def _last(repairs: Sequence[Repair]) -> list[Repair]:
    """Sum up what was done to a product in several rounds: the error before the first and after the last."""
    found: dict[tuple[str, str], Repair] = {}
    for repair in repairs:
        key = repair.node, repair.weight
        first = found.get(key)
        if first is not None and first.how != "none":
            how = first.how if repair.how == "none" else repair.how
            repair = replace(repair, how=how, before=first.before, ridge=repair.ridge or first.ridge)  # noqa: PLW2901
        found[key] = repair
    return list(found.values())
