"""Options that commands share, and how their values are written."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, TypeVar

import click

F = TypeVar("F", bound=Callable[..., Any])


def name_and_shape(text: str) -> tuple[str, tuple[int, ...]]:
    """Read `NAME=1,3,224,224`; a name may hold `=` itself."""
    name, equals, sizes = text.rpartition("=")
    parts = [size.strip() for size in sizes.replace("x", ",").split(",")]
    if not equals or not name or not all(size.isdecimal() for size in parts):
        raise click.BadParameter(f"{text!r} is not of the form NAME=1,3,224,224")
    return name, tuple(int(size) for size in parts)


def metric_and_fraction(text: str) -> tuple[str, float]:
    """Read `METRIC=F`."""
    metric, equals, fraction = text.rpartition("=")
    try:
        value = float(fraction)
    except ValueError:
        equals = ""
        value = 0.0
    if not equals or not metric.strip():
        raise click.BadParameter(f"{text!r} is not of the form METRIC=F, such as macs=0.5")
    return metric.strip(), value


def layer_setting(text: str) -> tuple[str, str, Any]:
    """Read `GLOB:KEY=VALUE`; a glob may hold colons, and so may a value such as 2:4."""
    found = re.fullmatch(r"(.+):([A-Za-z][\w-]*)=(.*)", text)
    if not found:
        raise click.BadParameter(f"{text!r} is not of the form GLOB:KEY=VALUE, such as 'head*:sparsity=0.25'")
    glob, key, value = found.groups()
    return glob, key.replace("-", "_"), _plain(value)


def _plain(text: str) -> Any:
    if text in ("true", "false"):
        return text == "true"
    if re.fullmatch(r"[+-]?\d+", text):
        return int(text)
    return float(text) if re.fullmatch(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", text) else text


def integer_or_auto(text: str) -> int | str:
    """Read a whole number or `auto`."""
    if text != "auto" and not text.isdecimal():
        raise click.BadParameter(f"{text!r} is neither a whole number nor auto")
    return text if text == "auto" else int(text)


def comma_list(text: str) -> tuple[str, ...]:
    """Read names separated by commas."""
    return tuple(name for name in (part.strip() for part in text.split(",")) if name)


def flat(_: click.Context, __: click.Parameter, value: tuple[tuple[str, ...], ...]) -> tuple[str, ...] | None:
    """Join the lists of a repeated option; None when it was not given."""
    return tuple(name for names in value for name in names) if value else None


def distinct(_: click.Context, param: click.Parameter, value: tuple[tuple[str, Any], ...]) -> dict[str, Any] | None:
    """Make a dictionary of repeated `NAME=VALUE`; None when it was not given."""
    result: dict[str, Any] = {}
    for name, item in value:
        if result.setdefault(name, item) != item:
            raise click.BadParameter(f"{name} is given twice, with different values", param=param)
    return result or None


def by_layer(
    _: click.Context, __: click.Parameter, value: tuple[tuple[str, str, Any], ...]
) -> dict[str, dict[str, Any]] | None:
    """Make a dictionary of settings by glob, in the order given; a later value for the same key wins."""
    result: dict[str, dict[str, Any]] = {}
    for glob, key, item in value:
        result.setdefault(glob, {})[key] = item
    return result or None


def model_argument(function: F) -> F:
    """Add the argument MODEL."""
    return click.argument("model", type=click.Path())(function)


def input_shape_option(function: F) -> F:
    """Add `--input-shape`."""
    return click.option(
        "--input-shape",
        "input_shapes",
        metavar="NAME=1,3,224,224",
        type=name_and_shape,
        multiple=True,
        callback=distinct,
        help="Size of an input with dynamic axes, for the analysis. Repeatable.",
    )(function)


def group_options(function: F) -> F:
    """Add `--include`, `--exclude` and `--kinds`."""
    function = click.option(
        "--kinds",
        metavar="LIST",
        type=comma_list,
        multiple=True,
        callback=flat,
        help="Kinds of dimension: channels, features, heads, head_dim, hidden, groups, embedding.",
    )(function)
    function = click.option("--exclude", metavar="GLOB", multiple=True, help="Leave these out. Repeatable.")(function)
    return click.option(
        "--include",
        metavar="GLOB",
        multiple=True,
        help="Only these groups, by group, node or initializer name. Repeatable.",
    )(function)


def search_options(function: F) -> F:
    """Add `--max-drop`, `--metric`, `--minimize` and `--threads`."""
    function = click.option("--threads", metavar="N", type=click.IntRange(min=1), help="Threads of onnxruntime.")(
        function
    )
    function = click.option("--minimize", metavar="METRIC", help="With --max-drop: params, bytes or macs (default).")(
        function
    )
    function = click.option(
        "--metric", metavar="FILE.py:FUNCTION", help="Your measure: takes a session, gives a number, higher is better."
    )(function)
    return click.option(
        "--max-drop",
        metavar="X",
        type=float,
        help="The smallest model whose --metric loses at most X.",
    )(function)


def output_options(function: F) -> F:
    """Add `--external-data/--single-file`."""
    return click.option(
        "--external-data/--single-file",
        default=None,
        help="Where the weights go. Default: one file, unless they lay outside already or exceed 2 GB.",
    )(function)


def common_options(function: F) -> F:
    """Add `--json`, `--quiet` and `--debug`."""
    function = click.option("--debug", is_flag=True, help="Show a traceback with an error.")(function)
    function = click.option("--quiet", is_flag=True, help="No progress on stderr.")(function)
    return click.option("--json", "as_json", is_flag=True, help="One JSON document on stdout, not a table.")(function)
