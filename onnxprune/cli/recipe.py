"""Recipes: a TOML file with the same keys as the command line, which wins over it."""

from __future__ import annotations

import sys
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, TypeVar

import click
from click.core import ParameterSource

from ..errors import OptionError, unknown_name
from .failures import failure
from .options import by_layer, distinct

tomllib = import_module("tomllib" if sys.version_info >= (3, 11) else "tomli")

F = TypeVar("F", bound=Callable[..., Any])


def config_option(function: F) -> F:
    """Add `--config FILE`."""

    def load(ctx: click.Context, _: click.Parameter, path: str | None) -> None:
        if path is not None:
            try:
                ctx.default_map = read_recipe(path, ctx.command.params)
            except OptionError as error:
                raise failure(error) from error

    return click.option(
        "--config",
        metavar="FILE",
        type=click.Path(),
        is_eager=True,
        expose_value=False,
        callback=load,
        help="Recipe in TOML with the same keys as these options; the command line wins.",
    )(function)


def command_line_wins(ctx: click.Context, rivals: Mapping[str, Collection[str]]) -> dict[str, Any]:
    """Give the command's parameters. One on the command line puts its rivals out of force that the recipe names."""
    params = dict(ctx.params)
    source = {name: ctx.get_parameter_source(name) for name in params}
    for name, others in rivals.items():
        if source[name] is ParameterSource.COMMANDLINE:
            for other in others:
                if source[other] is ParameterSource.DEFAULT_MAP:
                    params[other] = None
    return params


def read_recipe(path: str, params: Sequence[click.Parameter]) -> dict[str, Any]:
    """Read a recipe into values for `params`, by parameter name, as click takes them for defaults.

    Raises `OptionError` for a file that is missing or no TOML, an unknown key and a value of the wrong type.
    """
    try:
        document = tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise OptionError(f"{path}: cannot read the recipe ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise OptionError(f"{path}: the recipe is not UTF-8 text ({error.reason} at byte {error.start})") from error
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise OptionError(f"{path}: the recipe is not TOML ({error})") from error
    keys = {key: (param, positive) for param in params for key, positive in _keys(param)}
    result: dict[str, Any] = {}
    for key, value in document.items():
        name = key.replace("_", "-")
        if name not in keys:
            raise OptionError(f"{path}: {unknown_name('key', key, keys)}")
        param, positive = keys[name]
        assert param.name is not None
        if param.name in result:
            raise OptionError(f"{path}: key {key!r} is given twice, in two spellings")
        result[param.name] = _default(path, key, param, value, positive=positive)
    return result


def _keys(param: click.Parameter) -> Iterator[tuple[str, bool]]:
    """Give the keys of an option, without dashes in front, and whether each means yes."""
    if isinstance(param, click.Option) and param.name not in ("help", "config"):
        for names, positive in ((param.opts, True), (param.secondary_opts, False)):
            yield from ((name[2:], positive) for name in names if name.startswith("--"))


def _default(path: str, key: str, param: click.Parameter, value: Any, *, positive: bool) -> Any:
    assert isinstance(param, click.Option)
    if param.is_flag:
        if not isinstance(value, bool):
            raise OptionError(f"{path}: key {key!r} is true or false, not {value!r}")
        return value == positive
    if isinstance(value, Mapping) and param.callback not in (distinct, by_layer):
        raise OptionError(f"{path}: key {key!r} takes no table")
    rows = _texts(path, key, value)
    if not param.multiple and (len(rows) != 1 or isinstance(value, (list, dict))):
        raise OptionError(f"{path}: key {key!r} takes one value, not {value!r}")
    try:
        for row in rows:
            param.type.convert(row, param, None)
    except click.BadParameter as error:
        raise OptionError(f"{path}: key {key!r}: {error.message}") from error
    return rows if param.multiple else rows[0]


def _texts(path: str, key: str, value: Any) -> list[str]:
    """Spell a TOML value as the command line would: a list as repeated options, a table as NAME=VALUE."""
    if isinstance(value, Mapping):
        if any(isinstance(item, Mapping) for item in value.values()):
            return [row for glob, table in value.items() for row in _layer_texts(path, f"{key}.{glob}", glob, table)]
        return [f"{name}={_text(path, key, item)}" for name, item in value.items()]
    return [_text(path, key, item) for item in value] if isinstance(value, list) else [_text(path, key, value)]


def _text(path: str, key: str, value: Any) -> str:
    if isinstance(value, list) and value and all(isinstance(item, int) for item in value):
        return ",".join(map(str, value))
    if isinstance(value, bool) or not isinstance(value, (str, int, float)):
        raise OptionError(f"{path}: key {key!r} cannot be {value!r}")
    return str(value)


def _layer_texts(path: str, key: str, glob: str, table: Any) -> list[str]:
    """Spell the settings of some layers as GLOB:KEY=VALUE."""
    if not isinstance(table, Mapping):
        raise OptionError(f"{path}: key {key!r} takes a table of settings, not {table!r}")
    texts = {k: str(v).lower() if isinstance(v, bool) else _text(path, f"{key}.{k}", v) for k, v in table.items()}
    return [f"{glob}:{name}={text}" for name, text in texts.items()]
