"""`gather`: run a model over samples, and accumulate what is wanted about its inner tensors.

Memory holds, besides the model: the tensors fetched for one feed, those of the feeds that run ahead of it, and the
sums, each at most `memory_bytes` as far as shapes are known beforehand (one tensor or one Gram matrix that is larger
comes alone), and chunks of a few times 32 MB.
What does not fit together is gathered in several passes over the feeds.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..data import Data, Feed, load_data
from ..errors import OptionError
from ..graph.model import Model
from ..graph.shapes import Shapes
from ..ordered import in_order
from .probe import Probe
from .reading import read, reads_state
from .session import Session
from .statistics import Statistics, Wanted, union
from .sums import Sums
from .views import Lookups, View

Array = np.ndarray[Any, Any]
Weights = Mapping[str, Array]
Progress = Callable[[int, int], None]
MEMORY_BYTES = 512 << 20


def gather(
    model: Model | Probe,
    wanted: Sequence[Wanted],
    feeds: Any,
    *,
    weights: Weights | None = None,
    reference: Weights | None = None,
    memory_bytes: int = MEMORY_BYTES,
    threads: int | None = None,
    progress: Progress | None = None,
) -> dict[Wanted, Statistics]:
    """Accumulate statistics over all feeds, for every `Wanted` in the order given.

    `feeds` is any source that `load_data` takes. It is read once for its shapes and once per pass; what can be read
    only once is kept in memory. `weights` gives other values to initializers or Constants by flat name; `reference`
    those of the model that "cross" compares with, by default the model as it is. What cannot be gathered gets a
    `Statistics` that says why. `progress(done, total)` is called after every feed. Give a `Probe` to analyze a model
    once for several calls. `threads` feeds run at once (None: one for each core, up to 8), which does not change a bit.

    Raises `DataError` for feeds that do not fit the model or hold nothing, `OptionError` for a `Wanted` without a node,
    `UnknownNameError` for a weight that is none, `ModelError` when onnxruntime does not run the model.
    """
    if memory_bytes < 1:
        raise OptionError(f"memory_bytes must be at least 1, not {memory_bytes}")
    probe = model if isinstance(model, Probe) else Probe(model)
    data = load_data(feeds, probe.model)
    survey = _survey(data, probe)
    shapes = _shapes(probe, survey)
    readings = {w: _reading(w, probe, shapes) for w in dict.fromkeys(wanted)}
    needs: defaultdict[View, list[frozenset[str]]] = defaultdict(list)
    for w, view in readings.items():
        if not isinstance(view, str):
            needs[view].append(w.needs)
    jobs = [_job(view, union(asked), shapes) for view, asked in needs.items()]
    passes = _passes(jobs, memory_bytes)
    done, total = 0, len(passes) * survey.n_feeds
    for together in passes:
        for _ in _run(probe, together, data, (dict(weights or {}), dict(reference or {})), threads, memory_bytes):
            done += 1
            if progress is not None:
                progress(done, total)
    found = {job.view: job.sums for job in jobs}
    return {
        w: Statistics(survey.n_samples, missing=view)
        if isinstance(view, str)
        else found[view].statistics(survey.n_samples, w.needs)
        for w, view in readings.items()
    }


def gather_in_order(
    model: Model | Probe,
    wanted: Sequence[Wanted],
    feeds: Any,
    *,
    weights: Weights,
    reference: Weights | None = None,
    memory_bytes: int = MEMORY_BYTES,
    threads: int | None = None,
    progress: Progress | None = None,
) -> Iterator[dict[Wanted, Statistics]]:
    """Gather layer by layer, so that every layer sees what the changed layers before it give.

    Yields, in the order of the nodes, the statistics of what reads the same tensors. Put the new values of these
    layers into `weights` before asking for the next: they are read anew each time. Every step runs the model up to its
    layer. `progress(done, total)` counts steps; the rest is as in `gather`.
    """
    probe = model if isinstance(model, Probe) else Probe(model)
    steps: defaultdict[str, list[Wanted]] = defaultdict(list)
    for w in sorted(dict.fromkeys(wanted), key=lambda w: (w.node, w.slot)):
        node = probe.node(w.node)
        is_own = reads_state(node, w.slot) or w.slot >= len(node.input)
        steps[f"{w.node}/{w.slot}" if is_own else node.input[w.slot]].append(w)
    data = load_data(feeds, probe.model)
    for done, together in enumerate(steps.values()):
        yield gather(
            probe,
            together,
            data,
            weights=weights,
            reference=reference,
            memory_bytes=memory_bytes,
            threads=threads,
        )
        if progress is not None:
            progress(done + 1, len(steps))


def _reading(wanted: Wanted, probe: Probe, shapes: Shapes) -> View | str:
    """Give the view of a `Wanted` whose tensors can all be fetched, or the reason why there is none."""
    view = read(wanted, probe.node(wanted.node), probe.flat, shapes)
    if isinstance(view, str):
        return view
    if isinstance(view, Lookups) and wanted.needs & {"gram", "cross"}:
        return "the Gram matrix of look-ups is diagonal; ask for 'square'"
    for name in view.names:
        why = probe.why_hidden(name)
        if why:
            return why
    return view


# --- planning ---


@dataclass(frozen=True)
class _Survey:
    """What the feeds look like: the largest size of every axis of every input, and how much there is."""

    largest: dict[str, tuple[int, ...]]
    n_feeds: int
    n_samples: int


def _survey(feeds: Data, probe: Probe) -> _Survey:
    largest: dict[str, tuple[int, ...]] = {}
    n_feeds = n_samples = 0
    for feed in feeds:
        n_feeds += 1
        shapes = {name: np.shape(array) for name, array in feed.items() if name in probe.inputs}
        n_samples += next((shape[0] for shape in shapes.values() if shape), 1)
        for name, shape in shapes.items():
            seen = largest.get(name, shape)
            largest[name] = tuple(map(max, seen, shape)) if len(seen) == len(shape) else shape
    return _Survey(largest, n_feeds, n_samples)


def _shapes(probe: Probe, survey: _Survey) -> Shapes:
    """Give the shapes at the largest feed, or at usual sizes where no single feed could be that large.

    Shapes only divide the work into passes and say where axes lie; a symbol may be two sizes in feeds that run.
    """
    try:
        return probe.shapes(survey.largest)
    except OptionError:
        return probe.shapes({})


@dataclass(frozen=True, eq=False)
class _Job:
    """One view with its sums; bytes of its tensors for one feed, and of its sums, None where not known."""

    view: View
    tensor_bytes: Mapping[str, int | None]
    sum_bytes: int
    sums: Sums = field(compare=False)


def _job(view: View, needs: frozenset[str], shapes: Shapes) -> _Job:
    sizes = [shapes.sizes.get(name) for name in view.names]
    twice = 2 if "cross" in needs else 1
    tensors = {n: None if s is None else 4 * twice * math.prod(s) for n, s in zip(view.names, sizes, strict=True)}
    groups, features = view.extent(sizes) or (1, 1)
    per_group = features * max(1, features * len(needs & {"gram", "cross"}))
    return _Job(view, tensors, 8 * groups * per_group, Sums(needs))


def _passes(jobs: Sequence[_Job], limit: int) -> list[list[_Job]]:
    """Divide the jobs, in their order, into passes that fit; tensors of unknown size take a pass of their own."""
    passes: list[list[_Job]] = []
    held: dict[str, int] = {}
    sums = 0
    for job in jobs:
        new = {n: limit if size is None else size for n, size in job.tensor_bytes.items() if n not in held}
        if not passes or sum(held.values()) + sum(new.values()) > limit or sums + job.sum_bytes > limit:
            passes.append([])
            held, sums = {}, 0
            new = {n: limit if size is None else size for n, size in job.tensor_bytes.items()}
        passes[-1].append(job)
        held |= new
        sums += job.sum_bytes
    return passes


# --- running ---


def _run(
    probe: Probe,
    jobs: Sequence[_Job],
    feeds: Data,
    weights: tuple[Weights, Weights],
    threads: int | None,
    memory_bytes: int,
) -> Iterator[None]:
    """Run one pass, with the reference beside it where it is needed; yields after every feed."""
    names = list(dict.fromkeys(name for job in jobs for name in job.view.names))
    crossed = list(dict.fromkeys(name for job in jobs if "cross" in job.sums.needs for name in job.view.names))
    fetch = _Fetch(probe, names, weights[0], threads)
    beside = _Fetch(probe, crossed, weights[1], threads) if crossed else None

    def both(feed: Feed) -> tuple[dict[str, Array], dict[str, Array]]:
        return fetch(feed), beside(feed) if beside is not None else {}

    at_once = min(f.threads for f in (fetch, beside) if f is not None)
    for values, others in in_order(both, feeds, at_once, ahead_bytes=memory_bytes):
        for job in jobs:
            tensors = [values[name] for name in job.view.names]
            # The branch of an If that did not run gives empty tensors.
            if not any(tensor.size == 0 for tensor in tensors):
                _add(job, tensors, [others[name] for name in job.view.names if "cross" in job.sums.needs])
        yield


class _Fetch:
    """Tensors of one model by name: constants, inputs, and what a session gives."""

    def __init__(self, probe: Probe, names: Sequence[str], weights: Weights, threads: int | None) -> None:
        self.fixed = {name: value for name in names if (value := probe.constant(name, weights)) is not None}
        self.given = [name for name in names if name in probe.inputs]
        self.run = [name for name in names if name not in self.fixed and name not in probe.inputs]
        self.threads = 1
        if self.run:
            built, outputs = probe.build(self.run, weights)
            self.outputs = [outputs[name] for name in self.run]
            self.session = Session(built, probe.model.label, threads)
            self.threads = self.session.threads

    def __call__(self, feed: Feed) -> dict[str, Array]:
        values = self.fixed | {name: np.asarray(feed[name]) for name in self.given}
        if self.run:
            values.update(zip(self.run, self.session.run(self.outputs, feed), strict=True))
        return values


def _add(job: _Job, tensors: Sequence[Array], others: Sequence[Array]) -> None:
    if isinstance(job.view, Lookups):
        for chunk in job.view.chunks(tensors):
            job.sums.add_lookups(chunk)
    elif others:
        for chunk, other in zip(job.view.chunks(tensors), job.view.chunks(others), strict=True):
            job.sums.add(chunk, other)
    else:
        for chunk in job.view.chunks(tensors):
            job.sums.add(chunk)
