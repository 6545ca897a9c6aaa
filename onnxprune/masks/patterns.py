"""The registry of patterns and the spelling of patterns as text."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any, TypeVar

from ..errors import OptionError, unknown_name
from ..registry import Registry
from .band import NearlyDiagonal
from .blocks import Blocks, PerRow, heads
from .groups import NofM, VNofM
from .pattern import Custom, Pattern
from .transposable import Transposable

Entry = TypeVar("Entry", bound=Callable[..., Any])

# What makes a pattern, or an object with a method `keep`, from the arguments in its text.
patterns: Registry[Callable[..., Any]] = Registry("mask pattern")
patterns.register("per_row")(PerRow)
patterns.register("heads")(heads)
patterns.register("nearly_diagonal")(NearlyDiagonal)

_N_OF_M = re.compile(r"(\d+):(\d+)")
_V_N_M = re.compile(r"(\d+):(\d+):(\d+)")
_BLOCK = re.compile(r"(\d+|\*|channel)x(\d+|\*|channel)")
_CALL = re.compile(r"([^()]+?)\((.*)\)")
_SPELLINGS = ("N:M", "RxC", "channelx1", "1xchannel", "V:N:M")


@patterns.register("unstructured")
def unstructured() -> Blocks:
    """Make the pattern of single weights."""
    return Blocks()


@patterns.register("input_channel")
def input_channel() -> Blocks:
    """Make the pattern of whole input channels: all outputs, all kernel pixels."""
    return Blocks(None, 1, whole_kernel=True)


@patterns.register("output_channel")
def output_channel() -> Blocks:
    """Make the pattern of whole output rows, which are filters: all inputs, all kernel pixels."""
    return Blocks(1, None, whole_kernel=True)


@patterns.register("transposable")
def transposable(n_of_m: str = "2:4", method: str = "auto") -> Transposable:
    """Make the transposable pattern from "N:M" and a method."""
    found = _N_OF_M.fullmatch(str(n_of_m))
    if not found:
        raise OptionError(f"transposable({n_of_m}) is none; write N kept of M, such as transposable(2:4)")
    return Transposable(int(found[1]), int(found[2]), method)  # type: ignore[arg-type]


def pattern(name: str, *, replace: bool = False) -> Callable[[Entry], Entry]:
    """Register a pattern of your own under `name`: a function or a class.

    A function gets (scores, sparsity) and returns the keep mask: a boolean array of the scores' shape, True where
    the weight survives. A class has such a method `keep`, or derives from `Pattern`; text such as `name(3, wide=true)`
    makes an instance. Raises `OptionError` for a name that is taken, unless `replace` is true.
    """

    def file(entry: Entry) -> Entry:
        usable = callable(entry) and (not inspect.isclass(entry) or callable(getattr(entry, "keep", None)))
        if not usable:
            raise OptionError(
                f"pattern {name!r} is registered with {entry!r}; give a function of (scores, sparsity), or a class "
                "with a method keep(scores, sparsity)"
            )
        make = entry if inspect.isclass(entry) else lambda: Custom(name, entry)
        patterns.register(name, replace=replace)(make)
        return entry

    return file


def parse_pattern(pattern: str | Pattern | Any, zeros_per_block: int | None = None) -> Pattern:
    """Read a pattern: a `Pattern`, an object with a method `keep`, a function of (scores, sparsity), or text.

    Text: `unstructured`; `RxC` blocks of R outputs by C inputs at one kernel pixel, `channel` or `*` for a whole axis,
    such as `channelx1` and `1xchannel`; `input_channel` and `output_channel`, all kernel pixels of one; `N:M`, N kept
    of M; `V:N:M`; a registered name, with arguments in parentheses: `heads(64)`, `transposable(2:4)`,
    `nearly_diagonal(3)`. `zeros_per_block` is for blocks alone.

    Raises `UnknownNameError` for an unknown name and `OptionError` for one that cannot be.
    """
    result = _parsed(pattern.strip()) if isinstance(pattern, str) else _given(pattern)
    if zeros_per_block is None:
        return result
    if not isinstance(result, Blocks):
        raise OptionError(f"zeros_per_block belongs to block patterns such as 1x4, not to {pattern!r}")
    return replace(result, zeros=zeros_per_block)


def _given(value: Any) -> Pattern:
    if isinstance(value, Pattern):
        return value
    if callable(getattr(value, "keep", None)) and not inspect.isclass(value):
        return Custom(type(value).__name__, value)
    if callable(value) and not inspect.isclass(value):
        return Custom(getattr(value, "__name__", "function"), value)
    raise OptionError(f"{value!r} is no mask pattern; give text such as '2:4' or an object with a method keep")


def _parsed(text: str) -> Pattern:
    if text in patterns:
        return _made(text, text, (), {})
    if found := _BLOCK.fullmatch(text):
        sizes = [int(part) if part.isdigit() else None for part in found.groups()]
        return Blocks(sizes[0], sizes[1])
    if found := _N_OF_M.fullmatch(text):
        return NofM(int(found[1]), int(found[2]))
    if found := _V_N_M.fullmatch(text):
        return VNofM(int(found[1]), int(found[2]), int(found[3]))
    if (found := _CALL.fullmatch(text)) and found[1].strip() in patterns:
        given = [part.strip() for part in found[2].split(",") if part.strip()]
        named = dict(part.split("=", 1) for part in given if "=" in part)
        return _made(
            text,
            found[1].strip(),
            tuple(_value(part) for part in given if "=" not in part),
            {key.strip(): _value(value.strip()) for key, value in named.items()},
        )
    raise unknown_name("mask pattern", found[1].strip() if found else text, (*patterns, *_SPELLINGS))


def _made(text: str, name: str, given: tuple[Any, ...], named: dict[str, Any]) -> Pattern:
    make = patterns[name]
    try:
        made = make(*given, **named)
    except TypeError as error:
        raise OptionError(f"the arguments of pattern {text!r} do not fit: {error}") from error
    return made if isinstance(made, Pattern) else Custom(name, made)


def _value(text: str) -> int | bool | str:
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    return int(text) if re.fullmatch(r"-?\d+", text) else text
