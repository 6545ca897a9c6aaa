"""Turn a pattern into linked instructions, the form that the matcher walks.

The same idea as a regular expression's program (Thompson 1968): every instruction knows the one that follows, so the
matcher needs no stack of its own for the nesting of a pattern.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

from onnxprune.errors import OptionError

from .pattern import Any, Branch, OneOf, Op, Optional, Output, Part, Pattern, Repeat, Step

#: Gives the step that a string stands for.
Lookup: TypeAlias = Callable[[str], Step]


@dataclass(frozen=True, eq=False)
class Take:
    """Enter a node that `op` accepts (None: any node). `core` is false inside what may be left out."""

    op: Op | None
    core: bool
    then: Instruction


@dataclass(frozen=True, eq=False)
class Fork:
    """Go on with each of `ways`, in order; `needs` has for each way the operators without which it leads nowhere."""

    ways: tuple[Instruction, ...]
    needs: tuple[tuple[frozenset[str], ...], ...]


@dataclass(frozen=True, eq=False)
class Fan:
    """Walk every path from the same value, then go on with all the values they end in."""

    paths: tuple[Instruction, ...]
    ordered: bool
    then: Instruction


@dataclass(frozen=True, eq=False)
class PathEnd:
    """One path of a `Fan` is walked."""


@dataclass(frozen=True, eq=False)
class Open:
    """The nodes from here to its `Close` belong to `label`: a part's name, or the index of a top-level step."""

    label: str | int
    then: Instruction


@dataclass(frozen=True, eq=False)
class Close:
    """End what was opened last."""

    then: Instruction


@dataclass(frozen=True, eq=False)
class AtOutput:
    """Go on only if the value is an output of the graph."""

    then: Instruction


@dataclass(frozen=True, eq=False)
class Done:
    """All steps are matched."""


Instruction: TypeAlias = "Take | Fork | Fan | PathEnd | Open | Close | AtOutput | Done"


def compile_pattern(pattern: Pattern, lookup: Lookup) -> Instruction:
    """Give the first instruction of `pattern`.

    Raises what `lookup` raises, and `OptionError` for a pattern that contains itself.
    """
    then: Instruction = Done()
    try:
        for index in reversed(range(len(pattern.steps))):
            then = Open(index, _compile(pattern.steps[index], Close(then), lookup, core=True))
    except RecursionError:
        raise OptionError(f"the node chain {pattern.name!r} is nested too deep, or names itself") from None
    return then


def _compile(step: Step, then: Instruction, lookup: Lookup, *, core: bool) -> Instruction:  # noqa: PLR0911 one case a step
    match step:
        case str():
            return _compile(lookup(step), then, lookup, core=core)
        case tuple():
            return _sequence(step, then, lookup, core=core)
        case Op():
            return Take(step, core, then)
        case Any():
            return _repeated((None,), step.min, step.max, then, lookup, core=core)
        case Repeat():
            return _repeated(step.steps, step.min, step.max, then, lookup, core=core)
        case Optional():
            return _fork((_sequence(step.steps, then, lookup, core=False), then))
        case OneOf():
            return _fork(tuple(_sequence(steps, then, lookup, core=core) for steps in step.alternatives))
        case Branch():
            return Fan(tuple(_sequence(path, PathEnd(), lookup, core=core) for path in step.paths), step.ordered, then)
        case Output():
            return AtOutput(then)
        case Part():
            return Open(step.name, _sequence(step.steps, Close(then), lookup, core=core))
        case Pattern():
            return _sequence(step.steps, then, lookup, core=core)
    raise OptionError(f"{step!r} is no step of a chain")


def _sequence(steps: tuple[Step | None, ...], then: Instruction, lookup: Lookup, *, core: bool) -> Instruction:
    for step in reversed(steps):
        then = Take(None, core, then) if step is None else _compile(step, then, lookup, core=core)
    return then


def _repeated(
    steps: tuple[Step | None, ...], low: int, high: int, then: Instruction, lookup: Lookup, *, core: bool
) -> Instruction:
    end = then
    for _ in range(high - low):
        then = _fork((_sequence(steps, then, lookup, core=False), end))
    for _ in range(low):
        then = _sequence(steps, then, lookup, core=core)
    return then


def _fork(ways: tuple[Instruction, ...]) -> Fork:
    return Fork(ways, tuple(_needs(way) for way in ways))


def _needs(instruction: Instruction) -> tuple[frozenset[str], ...]:
    """List sets of operators; `instruction` fails where a value's readers miss any of the sets."""
    match instruction:
        case Take(op=Op() as op):
            return (frozenset(op.names),)
        case Fork(needs=needs):
            return (frozenset(name for way in needs for name in way[0]),) if all(needs) else ()
        case Fan(paths=paths, then=then):
            skips = any(isinstance(path, PathEnd) for path in paths)
            return tuple(need for part in (*paths, *((then,) if skips else ())) for need in _needs(part))
        case Open(then=then) | Close(then=then):
            return _needs(then)
        case _:
            return ()


def first_operators(instruction: Instruction) -> frozenset[str] | None:
    """Give every operator that the first node of a match can have; None if it can be any."""
    names: set[str] = set()
    todo: list[Instruction] = [instruction]
    while todo:
        match todo.pop():
            case Take(op=None):
                return None
            case Take(op=Op() as op):
                names.update(op.names)
            case Fork(ways=ways):
                todo.extend(ways)
            case Fan(paths=paths, then=then):
                todo.extend((*paths, then))
            case Open(then=then) | Close(then=then) | AtOutput(then=then):
                todo.append(then)
            case _:
                pass
    return frozenset(names)
