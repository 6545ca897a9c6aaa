"""`Walk`: run a model from its inputs on, a piece at a time, and keep what the next piece needs.

Repairs go layer by layer, and each sees what the repaired layers before it give. Running every time from the inputs
would cost as many runs as there are layers; a walk costs one, and a few more where what is kept grows too large.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence

import numpy as np
import onnx

from ..calibration.probe import Probe
from ..calibration.session import Session
from ..data import Feed
from ..graph.model import Model
from .products import Array

KEEP_BYTES = 96 << 20


class Walk:
    """One model with one set of weights on its way through some feeds.

    `weights` may gain new values between two steps, for nodes that no step has run yet.
    """

    def __init__(self, probe: Probe, feeds: Sequence[Feed], weights: Mapping[str, Array], threads: int | None) -> None:
        self._probe = probe
        self._feeds = feeds
        self._weights = weights
        self._threads = threads
        self._maker = {out: k for k, node in enumerate(probe.flat.nodes) for out in node.output if out}
        self._done: set[int] = set()
        self._kept: list[Feed] = [{} for _ in feeds]

    def step(self, names: Sequence[str], again: Collection[int] = ()) -> Iterator[dict[str, Array]]:
        """Give the tensors `names` for every feed; what they are made from is taken as run, less the nodes `again`."""
        fixed = {n: c for n in names if (c := self._probe.constant(n, self._weights)) is not None}
        given = [n for n in names if n in self._probe.inputs]
        run = [n for n in names if n not in fixed and n not in self._probe.inputs]
        goes_on = self._probe.is_laid_open
        after = self._ancestors(run) - set(again) if goes_on else set()
        edge = sorted(self._edge(self._done | after)) if goes_on else []
        known = set(self._kept[0]) if self._kept else set()
        fetch = [n for n in dict.fromkeys([*run, *edge]) if n not in known]
        session, outputs = self._session(fetch, known) if fetch else (None, {})
        size = 0
        rows: list[Feed] = []
        runs: Iterable[list[Array]] = [[] for _ in self._feeds]
        if session is not None:
            used = (self._used(session, feed, k) for k, feed in enumerate(self._feeds))
            runs = session.each([outputs[n] for n in fetch], used)
        for kept, feed, found in zip(self._kept, self._feeds, runs, strict=True):
            values = {**kept, **dict(zip(fetch, found, strict=True))}
            yield {**fixed, **{n: np.asarray(feed[n]) for n in given}, **{n: values[n] for n in run}}
            if goes_on and size <= KEEP_BYTES:
                rows.append({n: values[n] for n in edge})
                size += sum(a.nbytes for a in rows[-1].values())
        if goes_on and size <= KEEP_BYTES:
            self._done |= after
            self._kept = rows

    def _used(self, session: _Piece, feed: Feed, k: int) -> Feed:
        return {n: (self._kept[k][n] if n in self._kept[k] else feed[n]) for n in session.inputs}

    def _ancestors(self, names: Sequence[str]) -> set[int]:
        """List the nodes that make `names`, less those that have run."""
        found: set[int] = set()
        waiting = [self._maker[n] for n in names if n in self._maker]
        while waiting:
            k = waiting.pop()
            if k in found or k in self._done:
                continue
            found.add(k)
            waiting += [self._maker[n] for n in self._probe.flat.nodes[k].input if n in self._maker]
        return found

    def _edge(self, done: set[int]) -> set[str]:
        """List what nodes that have run hand on to others and to the outputs."""
        nodes = self._probe.flat.nodes
        read = {n for k, node in enumerate(nodes) if k not in done for n in node.input if n}
        read |= {o.name for o in self._probe.model.skeleton.graph.output}
        return {n for n in read if self._maker.get(n) in done and self._probe.constant(n, {}) is None}

    def _session(self, fetch: Sequence[str], known: set[str]) -> tuple[_Piece, dict[str, str]]:
        built, outputs = self._probe.build(fetch, self._weights)
        if known:
            _start_from(built.proto.graph, known, self._probe)
        piece = _Piece(built, self._probe.model.label, self._threads)
        return piece, outputs


class _Piece(Session):
    """A session that knows which inputs it reads."""

    def __init__(self, model: Model, label: str, threads: int | None) -> None:
        super().__init__(model, label, threads)
        held = {t.name for t in model.proto.graph.initializer}
        self.inputs = [v.name for v in model.proto.graph.input if v.name not in held]


def _start_from(graph: onnx.GraphProto, known: set[str], probe: Probe) -> None:
    """Make the tensors `known` inputs, and drop what only they were made from."""
    needed = {o.name for o in graph.output}
    kept: list[onnx.NodeProto] = []
    for node in reversed(graph.node):
        if any(out in needed and out not in known for out in node.output):
            kept.append(node)
            needed.update(n for n in node.input if n)
            for attribute in node.attribute:
                needed |= _captured(attribute)
    nodes = [onnx.NodeProto.FromString(n.SerializeToString()) for n in reversed(kept)]
    made = {out for n in nodes for out in n.output}
    tensors = [onnx.TensorProto.FromString(t.SerializeToString()) for t in graph.initializer if t.name in needed]
    del graph.node[:], graph.initializer[:]
    graph.node.extend(nodes)
    graph.initializer.extend(tensors)
    shapes = probe.shapes({})
    for name in sorted((known & needed) - made):
        kind = shapes.types.get(name, onnx.TensorProto.FLOAT)
        graph.input.append(onnx.helper.make_tensor_value_info(name, kind, None))


def _captured(attribute: onnx.AttributeProto) -> set[str]:
    bodies = [attribute.g] if attribute.type == onnx.AttributeProto.GRAPH else list(attribute.graphs)
    found: set[str] = set()
    for body in bodies:
        for node in body.node:
            found.update(n for n in node.input if n)
            for inner in node.attribute:
                found |= _captured(inner)
    return found
