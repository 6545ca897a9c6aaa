"""What a dead unit gives where it is no constant: a combination of signals that are the same for all units.

A constant minus the mean over all channels, divided by their deviation, is no constant; but of many such units any two
say all that the others do. `Moving` holds the coefficients; followers carry them through a graph.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ..axes.op import Value
from ..registry import Registry
from .known import Array, Known, Mask

if TYPE_CHECKING:
    from .facts import Facts, Step

Signal = tuple[str, ...]
ONE: Signal = ()
MOST_TERMS = 64


@dataclass(frozen=True)
class Moving:
    """`mask` is True where an element is the sum of `terms`, coefficients (float64) by signal.

    A signal is a product of values, the empty one the number one. All arrays have the value's rank and one shape, as in
    `Known`; no signal runs along an axis that is stored longer than one, so every index there meets the same. With
    `moments`, one signal at a time is one and all others are zero: the coefficients are all that an element can be.
    """

    mask: Mask
    terms: Mapping[Signal, Array]
    moments: bool = False

    @staticmethod
    def of(known: Known) -> Moving:
        """Take what is known for a multiple of one."""
        return Moving(known.mask, {ONE: np.where(known.mask, known.value, 0).astype(np.float64)})

    @staticmethod
    def signal(name: str) -> Moving:
        """Take a value as it is."""
        return Moving(np.ones((), dtype=bool), {(name,): np.ones(())})

    @property
    def shape(self) -> tuple[int, ...]:
        """Stored lengths of the axes."""
        return tuple(self.mask.shape)

    @property
    def constant(self) -> bool:
        """Say whether the number one is the only signal."""
        return set(self.terms) <= {ONE}


Follower = Callable[["Step"], "list[Moving | None]"]
followers: Registry[Follower] = Registry("follower")


def follows(*op_types: str) -> Callable[[Follower], Follower]:
    """Register what operators make of combinations: a function from `Step` to one `Moving` or None per output."""
    return followers.register(*op_types)


@follows("Reshape", "Flatten", "Squeeze", "Unsqueeze", "Transpose", "Identity", "Slice", "Gather", "Split", "Dropout")
def moved(step: Step) -> list[Moving | None]:
    """Move the coefficients of every signal as the operator moves elements, the signals along with them."""
    x = step.facts.moving(step.op.x().name) if step.op.given(0) else None
    if x is None:
        return []
    masks: list[Mask] = []
    terms: list[dict[Signal, Array]] = []
    for signal, array in x.terms.items():
        found = step.seeing(Known(x.mask, array)).known()
        rows = [row for row in found if row is not None]
        if len(rows) < len(found):
            return []
        masks = [row.mask & mask for row, mask in zip(rows, masks or [row.mask for row in rows], strict=True)]
        terms = terms or [{} for _ in rows]
        for y, term, row in zip(step.op.outputs, terms, rows, strict=False):
            # A signal at other places is another signal.
            name = "" if y is None else y.name
            term[(f"{name}:{'*'.join(signal)}",) if signal else ONE] = row.value
    return [Moving(mask, term, x.moments) for mask, term in zip(masks, terms, strict=True)]


@follows("Add", "Sub", "Mul", "Div")
def computed(step: Step) -> list[Moving | None]:
    """Add or multiply combinations; a value that does not run along what is known is a signal."""
    return [_computed(step)] if step.op.given(0) and step.op.given(1) else []


def _computed(step: Step) -> Moving | None:
    kind = step.op.node.op
    a, b = (_operand(step.facts, step.op.x(k)) for k in (0, 1))
    if a is None and b is None:
        return None
    if a is None:
        a = _as_signal(step.facts, step.op.x(0), b)
    if b is None:
        b = _as_signal(step.facts, step.op.x(1), a, inverted=kind == "Div")
    elif kind == "Div":
        b = _inverse(b)
    if a is None or b is None or (a.constant and b.constant):
        return None
    rank = step.op.y().ndim
    a, b = _with_rank(a, rank), _with_rank(b, rank)
    shape = np.broadcast_shapes(a.shape, b.shape)
    if not all(m.constant or m.shape == shape or len(m.terms) == m.mask.size == 1 for m in (a, b)):
        return None
    if kind in ("Add", "Sub"):
        return _sum(a, b, -1.0 if kind == "Sub" else 1.0, shape)
    return _product(a, b, shape)


def _operand(facts: Facts, value: Value) -> Moving | None:
    moving, known = facts.moving(value.name), facts.known(value.name)
    return moving if moving is not None or known is None else Moving.of(known)


def _as_signal(facts: Facts, value: Value, other: Moving | None, *, inverted: bool = False) -> Moving | None:
    """Take an unknown operand for a signal, where it is one number along all axes that the other is told apart on."""
    source = facts.before_expand(value)
    if other is None:
        return None
    apart = [len(other.shape) - k for k, d in enumerate(other.shape) if d > 1]
    if not apart or any(k <= source.ndim and source.shape[source.ndim - k] != 1 for k in apart):
        return None
    return Moving.signal(f"1/{source.name}" if inverted else source.name)


def _inverse(divisor: Moving) -> Moving | None:
    if not divisor.constant or not divisor.mask.all() or (divisor.terms[ONE] == 0).any():
        return None
    return Moving(divisor.mask, {ONE: 1 / divisor.terms[ONE]})


def _with_rank(moving: Moving, rank: int) -> Moving:
    lead = (1,) * (rank - len(moving.shape))
    terms = {signal: term.reshape(lead + term.shape) for signal, term in moving.terms.items()}
    return Moving(moving.mask.reshape(lead + moving.shape), terms, moving.moments)


def _sum(a: Moving, b: Moving, sign: float, shape: tuple[int, ...]) -> Moving | None:
    terms = {signal: np.broadcast_to(term, shape) for signal, term in a.terms.items()}
    for signal, term in b.terms.items():
        terms[signal] = terms.get(signal, 0) + np.broadcast_to(sign * term, shape)
    return _kept(np.broadcast_to(a.mask & b.mask, shape), terms, moments=False)


def _product(a: Moving, b: Moving, shape: tuple[int, ...]) -> Moving | None:
    if min(len(a.terms), len(b.terms)) > 1 and len(a.terms) * len(b.terms) > MOST_TERMS:
        return None
    terms: dict[Signal, Array] = {}
    for left, one in a.terms.items():
        for right, two in b.terms.items():
            signal = tuple(sorted((*left, *right)))
            terms[signal] = terms.get(signal, 0) + np.broadcast_to(one * two, shape)
    scaled = (a.moments and b.constant) or (b.moments and a.constant)
    return _kept(np.broadcast_to(a.mask & b.mask, shape), terms, moments=scaled)


def _kept(mask: Mask, terms: Mapping[Signal, Array], *, moments: bool) -> Moving | None:
    return Moving(mask, terms, moments) if mask.any() else None
