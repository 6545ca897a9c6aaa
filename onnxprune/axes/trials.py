"""Trials of one node in onnxruntime: which indices of its axes can go, found out by cutting them.

Nothing is taken from the node's name. A slice of an input is changed, and which outputs move says what may belong
together. That is only a guess. It holds when the node, run on inputs that lack some indices, gives what it gave before
less those indices, for every pair of indices apart and at many sizes. A node that counts positions, takes a statistic,
carries a size in an attribute or draws random numbers does not pass.

Runs in a process of its own, see `probe`: what an operator brings down or holds up is that alone.
"""

from __future__ import annotations

import os
import pickle
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any, NamedTuple

import numpy as np

Array = np.ndarray[Any, Any]
Feed = dict[int, Array]
Keep = np.ndarray[Any, np.dtype[np.int64]]

SEED = 20240229
N_DRAWS = 4
LEAST_DRAWS = 2
N_JOINT = 4
ALL_SIZES_BELOW = 33
MAX_SUMS = 24


class Spot(NamedTuple):
    """One axis of the node: `side` is "x" for an input or "y" for an output, `slot` its position."""

    side: str
    slot: int
    axis: int


@dataclass(frozen=True)
class Tensor:
    """A value of the node: its slot, its name in the one-node model, its shape and its numpy type.

    An output is given without its type, and without its shape when that is what is asked for.
    """

    slot: int
    name: str
    shape: tuple[int, ...]
    dtype: str = ""


@dataclass(frozen=True)
class Question:
    """A model of one node whose axes are all open, the inputs to vary and the outputs to watch.

    With `shapes` only the shapes and types of the outputs are asked for.
    """

    model: bytes
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    shapes: bool = False


@dataclass(frozen=True)
class Facts:
    """What was seen of a node.

    `ties` are axes that lose the same indices, `sums` input axes that run together and are summed away, `zeros` when an
    output index is zero, as `Op.zeros` takes it. `frozen` gives a reason for every other axis longer than one.
    `outputs` are the outputs with their shapes and types, where those were asked for.
    """

    ties: tuple[tuple[Spot, ...], ...] = ()
    sums: tuple[tuple[Spot, ...], ...] = ()
    zeros: tuple[str, tuple[int, ...]] | None = None
    frozen: tuple[tuple[Spot, str], ...] = ()
    outputs: tuple[Tensor, ...] = ()


def nothing(question: Question, why: str) -> Facts:
    """Freeze every axis for one reason."""
    return Facts(frozen=tuple((spot, why) for spot, _ in _spots(question)))


def establish(question: Question) -> Facts:
    """Find out which indices can go together, and prove it; what is not certain is frozen with what was seen."""
    try:
        return _measured(question) if question.shapes else _Trial(question).facts()
    except _RefusedError as refusal:
        return nothing(question, str(refusal))


def _measured(question: Question) -> Facts:
    """Give the outputs with the shapes and types that all draws agree on."""
    run = _opened(question)
    first, *others = [run({x.slot: _numbers(x, k) for x in question.inputs}) for k in range(N_DRAWS)]
    if any([y.shape for y in gave] != [y.shape for y in first] for gave in others):
        raise _RefusedError("the shape of its output depends on its input's values")
    pairs = zip(question.outputs, first, strict=True)
    return Facts(outputs=tuple(Tensor(y.slot, y.name, gave.shape, gave.dtype.name) for y, gave in pairs))


class _RefusedError(Exception):
    """The node cannot be tried, or a trial speaks against what it was to prove; the message says how."""


@dataclass
class _Trial:
    question: Question
    run: Callable[[Feed], list[Array]] = field(init=False)
    feeds: list[Feed] = field(init=False, default_factory=list)
    gave: list[list[Array]] = field(init=False, default_factory=list)
    size: dict[Spot, int] = field(init=False)
    moving: set[Spot] = field(init=False, default_factory=set)

    def facts(self) -> Facts:
        self.run = _opened(self.question)
        self.size = dict(_spots(self.question))
        self._draw()
        frozen: dict[Spot, str] = {}
        ties = self._proved(self._guesses(frozen), self._check_tie, frozen)
        used = {spot for tie in ties for spot in tie}
        sums: list[tuple[Spot, ...]] = []
        for guess in self._sums_to_try(used):
            if not used & set(guess) and self._proved([guess], self._check_sum, {}):
                sums.append(guess)
                used |= set(guess)
        self._check_together(ties, sums)
        self._check_repeats(0)
        for spot in self.size:
            moves = spot in self.moving if spot.side == "x" else bool(self.moving)
            frozen.setdefault(spot, "other indices move with it" if moves else "no output moves with it")
        left = tuple((s, why) for s, why in frozen.items() if s not in used)
        return Facts(tuple(ties), tuple(sums), self._zeros(ties), left)

    # --- inputs ---

    def _draw(self) -> None:
        """Draw inputs of several kinds, and keep those on which the node gives finite numbers, twice the same."""
        problem = ""
        for k in range(N_DRAWS):
            feed = {x.slot: _numbers(x, k) for x in self.question.inputs}
            try:
                gave = self.run(feed)
            except _RefusedError as refusal:
                problem = problem or str(refusal)
                continue
            for y, found in zip(self.question.outputs, gave, strict=True):
                if found.shape != y.shape:
                    raise _RefusedError(f"it gave an output of shape {list(found.shape)} for {list(y.shape)}")
            if all(np.isfinite(y).all() for y in gave if y.dtype.kind == "f"):
                self.feeds.append(feed)
                self.gave.append(gave)
                self._check_repeats(len(self.feeds) - 1)
        if len(self.feeds) < LEAST_DRAWS:
            raise _RefusedError(problem or "it gave no finite numbers")

    def _check_repeats(self, k: int) -> None:
        for before, now in zip(self.gave[k], self.run(self.feeds[k]), strict=True):
            if before.shape != now.shape or not np.array_equal(before, now):
                raise _RefusedError("it gave different outputs for the same inputs")

    # --- guesses ---

    def _guesses(self, frozen: dict[Spot, str]) -> list[tuple[Spot, ...]]:
        """Join the axes along which one input index moves that output index alone."""
        parts: dict[Spot, set[Spot]] = {}
        for spot, size in self.size.items():
            if spot.side == "x":
                local = self._moved_alone(spot, size)
                joined = set.union({spot}, *(parts.get(y, {y}) for y in local)) if local else set()
                parts.update((member, joined) for member in joined)
        found: list[tuple[Spot, ...]] = []
        for part in parts.values():
            row = tuple(sorted(part))
            if len({(s.side, s.slot) for s in row}) < len(row):
                frozen.update((s, "an index of it moves along two axes of one value") for s in row)
            elif row not in found:
                found.append(row)
        return found

    def _moved_alone(self, spot: Spot, size: int) -> set[Spot]:
        """Give the output axes of this size along which changing index u of an input axis moves index u, and no other.

        Three indices are tried here; the proof tries them all.
        """
        found = {s for s, n in self.size.items() if s.side == "y" and n == size}
        for u in sorted({0, size // 2, size - 1}):
            moved = self._moved(spot, u)
            if any(seen.any() for seen in moved):
                self.moving.add(spot)
            for s in sorted(found):
                seen = moved[self._position(s)]
                along = seen.any(axis=tuple(k for k in range(seen.ndim) if k != s.axis))
                if np.flatnonzero(along).tolist() != [u]:
                    found.discard(s)
        return found

    def _moved(self, spot: Spot, u: int) -> list[Array]:
        """Say, per output, which elements change when index u along an input axis does, in any draw."""
        moved: list[Array] = [np.zeros(y.shape, dtype=bool) for y in self.question.outputs]
        at = (slice(None),) * spot.axis + (u,)
        for k, feed in enumerate(self.feeds):
            changed = feed[spot.slot].copy()
            changed[at] = self.feeds[k - 1][spot.slot][at]
            now = self.run({**feed, spot.slot: changed})
            if any(a.shape != b.shape for a, b in zip(self.gave[k], now, strict=True)):
                raise _RefusedError("the shape of its output depends on its input's values")
            moved = [seen | (a != b) for seen, a, b in zip(moved, self.gave[k], now, strict=True)]
        return moved

    def _position(self, spot: Spot) -> int:
        return next(k for k, y in enumerate(self.question.outputs) if y.slot == spot.slot)

    def _sums_to_try(self, used: set[Spot]) -> Iterator[tuple[Spot, ...]]:
        """Give sets of unused input axes of one size, at most one axis of each input: the larger sets first."""
        by_size: dict[int, list[Spot]] = {}
        for spot, size in self.size.items():
            if spot.side == "x" and spot not in used and self._is_float(spot.slot):
                by_size.setdefault(size, []).append(spot)
        tries = [
            row
            for spots in by_size.values()
            for count in range(min(len(spots), 3), 0, -1)
            for row in combinations(spots, count)
            if len({s.slot for s in row}) == count
        ]
        yield from tries[:MAX_SUMS]

    def _is_float(self, slot: int) -> bool:
        return bool(self.feeds[0][slot].dtype.kind == "f")

    # --- proofs ---

    def _proved(
        self,
        guesses: Sequence[tuple[Spot, ...]],
        check: Callable[[tuple[Spot, ...], Keep, int], None],
        frozen: dict[Spot, str],
    ) -> list[tuple[Spot, ...]]:
        """Keep the guesses that hold for every subset of indices; the others are frozen with what was seen."""
        found = []
        for guess in guesses:
            why = self._counterexample(guess, check)
            if why is None:
                found.append(guess)
            else:
                frozen.update((spot, why) for spot in guess)
        return found

    def _counterexample(
        self, guess: tuple[Spot, ...], check: Callable[[tuple[Spot, ...], Keep, int], None]
    ) -> str | None:
        try:
            for k, keep in enumerate(subsets(self.size[guess[0]])):
                check(guess, keep, k % len(self.feeds))
        except _RefusedError as refusal:
            return str(refusal)
        return None

    def _check_tie(self, tie: tuple[Spot, ...], keep: Keep, draw: int) -> None:
        """Compare the outputs without some indices with the outputs for inputs without them."""
        cuts = dict.fromkeys(tie, keep)
        self._compare(self.run(_cut(self.feeds[draw], cuts)), _cut_outputs(self.question, self.gave[draw], cuts))

    def _check_sum(self, axes: tuple[Spot, ...], keep: Keep, draw: int) -> None:
        """Compare the outputs for inputs without some indices with those for zeros there in any one of the inputs."""
        found = self.run(_cut(self.feeds[draw], dict.fromkeys(axes, keep)))
        for spot in axes:
            self._compare(found, self.run(_zeroed(self.feeds[draw], spot, keep)), terms=self.size[spot])

    def _check_together(self, ties: Sequence[tuple[Spot, ...]], sums: Sequence[tuple[Spot, ...]]) -> None:
        """Cut along all axes at once: what holds at one size of the others need not hold at another."""
        if len(ties) + len(sums) < 2:
            return
        rng = np.random.default_rng(SEED)
        for draw in range(N_JOINT):
            k = draw % len(self.feeds)
            feed, terms = self.feeds[k], 1
            cuts: dict[Spot, Keep] = {}
            for axes in [*ties, *sums]:
                n = self.size[axes[0]]
                keep = np.sort(rng.permutation(n)[: rng.integers(1, n)])
                cuts.update((spot, keep) for spot in axes)
                if axes in sums:
                    feed, terms = _zeroed(feed, axes[0], keep), terms * n
            expected = _cut_outputs(self.question, self.run(feed), cuts)
            try:
                self._compare(self.run(_cut(self.feeds[k], cuts)), expected, terms=terms)
            except _RefusedError as refusal:
                raise _RefusedError(f"cut along several axes at once, {refusal}") from refusal

    def _compare(self, found: Sequence[Array], expected: Sequence[Array], terms: int = 1) -> None:
        for y, before in zip(found, expected, strict=True):
            if y.shape != before.shape:
                raise _RefusedError(f"without some indices it gave {list(y.shape)} for {list(before.shape)}")
            if y.dtype.kind != "f":
                same = np.array_equal(y, before)
            else:
                slack = 64 * float(np.finfo(y.dtype).eps) * np.sqrt(terms) * max(1e-30, float(np.abs(before).max()))
                same = bool(np.isfinite(y).all()) and float(np.abs(y - before).max()) <= slack
            if not same:
                raise _RefusedError("without some indices it gave other numbers for the rest")

    # --- zeros ---

    def _zeros(self, ties: Sequence[tuple[Spot, ...]]) -> tuple[str, tuple[int, ...]] | None:
        """Find which inputs must be zero at an index for the outputs to be, for all ties alike."""
        if any(y.dtype.kind != "f" for y in self.gave[0]):
            return None
        slots = [tuple(s.slot for s in tie if s.side == "x" and self._is_float(s.slot)) for tie in ties]
        pairs = list(zip(ties, slots, strict=True))
        enough = tuple(
            s
            for s in sorted({s for row in slots for s in row})
            if all(self._is_zero(t, (s,)) for t, row in pairs if s in row)
        )
        if enough:
            return "any", enough
        for tie, row in pairs:
            least = row
            for s in row:
                fewer = tuple(other for other in least if other != s)
                if fewer and self._is_zero(tie, fewer):
                    least = fewer
            if least and all(self._is_zero(t, least) for t, r in pairs if set(least) <= set(r)):
                return "all", least
        return None

    def _is_zero(self, tie: tuple[Spot, ...], slots: tuple[int, ...]) -> bool:
        """Say whether zeros at some indices of these inputs make the outputs zero there, for every draw."""
        n = self.size[tie[0]]
        keep = np.arange(1, n, 2)
        gone = np.setdiff1d(np.arange(n), keep)
        for feed in self.feeds:
            changed = feed
            for spot in tie:
                if spot.side == "x" and spot.slot in slots:
                    changed = _zeroed(changed, spot, keep)
            gave = self.run(changed)
            for spot in tie:
                if spot.side == "y" and np.any(np.take(gave[self._position(spot)], gone, axis=spot.axis) != 0):
                    return False
        return True


def subsets(n: int) -> list[Keep]:
    """Give index sets to keep of 0..n-1: every two indices part in some set, and sizes of every kind occur."""
    every = np.arange(n)
    found = [every[(every >> bit) & 1 == side] for bit in range((n - 1).bit_length()) for side in (0, 1)]
    near = {1, 2, 3, 5, 7, n // 3, n // 2 - 1, n // 2, n // 2 + 1, 3 * n // 4, n - 3, n - 2, n - 1}
    sizes = range(1, n) if n < ALL_SIZES_BELOW else sorted(k for k in near if 0 < k < n)
    rng = np.random.default_rng(SEED)
    found += [np.sort(rng.permutation(n)[:k]) for k in sizes]
    return [keep for keep in found if 0 < len(keep) < n]


def _spots(question: Question) -> list[tuple[Spot, int]]:
    sides = [("x", x) for x in question.inputs] + [("y", y) for y in question.outputs]
    return [(Spot(side, t.slot, k), n) for side, t in sides for k, n in enumerate(t.shape) if n > 1]


def _cut(feed: Mapping[int, Array], cuts: Mapping[Spot, Keep]) -> Feed:
    found = dict(feed)
    for spot, keep in cuts.items():
        if spot.side == "x":
            found[spot.slot] = np.take(found[spot.slot], keep, axis=spot.axis)
    return found


def _cut_outputs(question: Question, outputs: Sequence[Array], cuts: Mapping[Spot, Keep]) -> list[Array]:
    found = list(outputs)
    for k, y in enumerate(question.outputs):
        for spot, keep in cuts.items():
            if spot.side == "y" and spot.slot == y.slot:
                found[k] = np.take(found[k], keep, axis=spot.axis)
    return found


def _zeroed(feed: Mapping[int, Array], spot: Spot, keep: Keep) -> Feed:
    """Put zeros outside `keep` along one axis of one input."""
    changed = np.zeros_like(feed[spot.slot])
    at = (slice(None),) * spot.axis + (keep,)
    changed[at] = feed[spot.slot][at]
    return {**feed, spot.slot: changed}


def _numbers(x: Tensor, draw: int) -> Array:
    """Draw an input: normal, positive (what a root or a logarithm takes), wide, or positive and wide."""
    rng = np.random.default_rng((SEED, draw, x.slot))
    dtype = np.dtype(x.dtype)
    if dtype.kind == "b":
        return np.asarray(rng.random(x.shape) < 0.5)
    if dtype.kind in "iu":
        info = np.iinfo(dtype)
        return rng.integers(info.min, info.max, x.shape, dtype=dtype, endpoint=True)
    low, high = (0.5, 1.5) if draw == 1 else (0.1, 6.0)
    drawn = rng.uniform(low, high, x.shape) if draw % 2 else rng.standard_normal(x.shape) * (1.0 if draw == 0 else 6.0)
    return np.asarray(drawn).astype(dtype)


def _opened(question: Question) -> Callable[[Feed], list[Array]]:
    """Load the one-node model; the function given back runs it and raises `_RefusedError` where it does not run."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    try:
        session = ort.InferenceSession(question.model, options, providers=["CPUExecutionProvider"])
    except Exception as error:
        raise _RefusedError(f"onnxruntime does not load it alone: {_first_line(error)}") from error
    names = {x.slot: x.name for x in question.inputs}
    wanted = [y.name for y in question.outputs]

    def run(feed: Feed) -> list[Array]:
        try:
            gave = session.run(wanted, {names[slot]: np.ascontiguousarray(x) for slot, x in feed.items()})
        except Exception as error:
            raise _RefusedError(f"onnxruntime does not run it: {_first_line(error)}") from error
        if not all(isinstance(y, np.ndarray) for y in gave):
            raise _RefusedError("it gives something other than tensors")
        return list(gave)

    return run


def _first_line(error: Exception) -> str:
    text = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
    return text.split(" : ", 3)[-1][:160]


def main() -> None:
    """Answer the pickled questions on standard input, one after the other, on what was standard output.

    Whatever an operator prints goes to standard error.
    """
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    questions: list[Question] = pickle.load(sys.stdin.buffer)  # noqa: S301 - our own parent writes it
    for question in questions:
        pickle.dump(establish(question), answers)
        answers.flush()
    answers.close()
