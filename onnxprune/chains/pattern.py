"""The words a chain of nodes is written in: operators, wildcards, repetition, choice and branches.

A chain is a tuple of steps read from left to right along the data: each step is entered by a value that the step
before it gives. `("Conv", Optional("Relu"), "MaxPool", "Conv")` is a pattern; so is

    Branch(("Sigmoid",), ()), "Mul"                      x * sigmoid(x)
    "Conv", Branch(("Relu", "Conv"), ()), "Add"          a residual block

Patterns are values: they can be nested in one another, compared and reused, and know nothing of any graph.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias, Union

from onnxprune.errors import OptionError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    import onnx_graphsurgeon as gs

#: A step of a chain. A string is an operator ("Conv", "com.microsoft::Gelu") or a registered name ("activation.silu").
Step: TypeAlias = Union[
    str, "Op", "Any", "Optional", "Repeat", "OneOf", "Branch", "Output", "Part", "Pattern", tuple["Step", ...]
]

#: Operators that leave every axis in place: chains of the default table read through them.
TRANSPARENT = ("Identity", "Dropout", "Cast", "QuantizeLinear", "DequantizeLinear")


class Op:
    """Match one node whose operator is among `names`.

    A name stands for the ONNX domain, `"com.microsoft::Gelu"` for another. `where` is asked last and gets the node.
    `input` is the slot that the chain must enter by and `output` the one it must leave by (None: any).
    Raises `OptionError` when no name is given.
    """

    def __init__(
        self,
        *names: str,
        where: Callable[[gs.Node], bool] | None = None,
        input: int | None = None,  # noqa: A002 the ONNX word
        output: int | None = None,
    ) -> None:
        if not names or not all(isinstance(name, str) and name for name in names):
            raise OptionError(f"Op takes operator names such as 'Conv', not {names!r}")
        self.names = tuple(names)
        self.where = where
        self.input = input
        self.output = output

    def __repr__(self) -> str:
        return "|".join(self.names)


@dataclass(frozen=True)
class Any:
    """Match between `min` and `max` nodes of any operator; `max` is finite so that a search ends."""

    min: int = 1
    max: int = 1

    def __post_init__(self) -> None:
        _check_counts("Any", self.min, self.max)


class Optional:
    """Match `steps` where they can be matched, and nothing otherwise."""

    def __init__(self, *steps: Step) -> None:
        self.steps = _checked("Optional", steps)

    def __repr__(self) -> str:
        return f"[{_joined(self.steps)}]"


class Repeat:
    """Match `step` between `min` and `max` times in a row."""

    def __init__(self, step: Step, min: int = 1, max: int = 8) -> None:  # noqa: A002 the words of `Any`
        _check_counts("Repeat", min, max)
        self.steps = _checked("Repeat", (step,))
        self.min = min
        self.max = max

    def __repr__(self) -> str:
        return f"({_joined(self.steps)}){{{self.min},{self.max}}}"


class OneOf:
    """Match any of the alternatives; where two match the same nodes, the first gives the match its name."""

    def __init__(self, *alternatives: Step) -> None:
        self.alternatives = tuple(_checked("OneOf", (step,)) for step in alternatives)
        if not self.alternatives:
            raise OptionError("OneOf takes at least one alternative")

    def __repr__(self) -> str:
        return f"({' | '.join(_joined(steps) for steps in self.alternatives)})"


class Branch:
    """Match paths that leave one value and all enter the node of the next step.

    The paths share no node. An empty path is the value itself (a skip connection). With `ordered` the paths enter the
    joining node by inputs 0, 1, … in the order given, as in `Branch((), ("Tanh",), ordered=True), "Sub"`: x - tanh(x).
    Raises `OptionError` for fewer than two paths.
    """

    def __init__(self, *paths: Step, ordered: bool = False) -> None:
        if len(paths) < 2:
            raise OptionError("Branch takes at least two paths, () for the value itself")
        self.paths = tuple(_as_steps(path) for path in paths)
        self.ordered = ordered

    def __repr__(self) -> str:
        return f"<{' , '.join(_joined(path) for path in self.paths)}>"


@dataclass(frozen=True)
class Output:
    """Match where the value reached is an output of the graph; takes no node."""

    def __repr__(self) -> str:
        return "output"


class Part:
    """Give `steps` a name that a match reports: the class of layers, or `class.variant`."""

    def __init__(self, name: str, *steps: Step) -> None:
        self.name = name
        self.steps = _checked(f"Part {name!r}", steps)

    def __repr__(self) -> str:
        return self.name


@dataclass(frozen=True)
class Pattern:
    """A chain with its settings.

    `name` is what matches are called; `{part}` in it stands for the variant of that part that was found, so that
    `conv-{activation}-conv` gives `conv-silu-conv`. Nodes whose operator is in `through` may stand between two steps.
    With `exclusive`, no value inside the match has a consumer outside of it or is an output of the graph.
    """

    steps: tuple[Step, ...]
    name: str = ""
    through: tuple[str, ...] = ()
    exclusive: bool = False

    def __post_init__(self) -> None:
        steps = _checked("a pattern", _as_steps(self.steps))
        if isinstance(steps[-1], Branch):
            raise OptionError(f"the pattern {_joined(steps)} ends in a Branch; name the node where its paths meet")
        object.__setattr__(self, "steps", steps)
        object.__setattr__(self, "name", self.name or _joined(steps))


def _checked(what: str, steps: Iterable[Step]) -> tuple[Step, ...]:
    steps = tuple(steps)
    if not steps:
        raise OptionError(f"{what} takes at least one step")
    for step, following in zip(steps, (*steps[1:], None), strict=True):
        if not isinstance(step, (str, Op, Any, Optional, Repeat, OneOf, Branch, Output, Part, Pattern, tuple)):
            raise OptionError(f"{what}: {step!r} is no step. Write an operator name, a tuple or onnxprune.chains.Op(…)")
        if isinstance(step, Branch) and isinstance(following, (Branch, Output)):
            raise OptionError(f"{what}: {step!r} must be followed by the node where its paths meet, not {following!r}")
    return steps


def _as_steps(path: Step) -> tuple[Step, ...]:
    return path if isinstance(path, tuple) else (path,)


def _check_counts(what: str, low: int, high: int) -> None:
    if not 0 <= low <= high or high < 1:
        raise OptionError(f"{what} takes 0 <= min <= max and max >= 1, not min={low}, max={high}")


def _joined(steps: tuple[Step, ...]) -> str:
    return "-".join(step if isinstance(step, str) else _joined(step) if isinstance(step, tuple) else repr(step)
                    for step in steps) or "()"  # fmt: skip
