"""`load_data`: from any form of source to `Data`."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import DataError, OptionError
from ..graph.model import Model
from .arrays import Part, check_part, count, cut, in_memory
from .feeds import Data, Feed, remembered
from .files import is_test_data_set, npy_part, npz_part, read_test_data_set
from .inputs import InputSpec, fit_feed, input_specs
from .synthetic import random_feeds
from .usercode import load_attribute

BATCH_SIZE = 8
RANDOM_FEEDS = 8


def load_data(
    source: Any,
    model: Model,
    *,
    batch_size: int = BATCH_SIZE,
    seed: int = 0,
    input_shapes: Mapping[str, Sequence[int]] | None = None,
) -> Data:
    """Open calibration data for `model`.

    `source` is one of:
    - a path to an `.npz` keyed by input name, samples along axis 0; to an `.npy` for a single input; or to a folder of
      those, of `test_data_set_*` folders with `input_*.pb`, or holding `input_*.pb` itself;
    - `module:attribute` or `file.py:attribute`, naming any of the objects below or a callable that returns one;
    - `random` or `random:N`, N feeds drawn with `seed`, dynamic axes taken from `input_shapes`;
    - an iterable of feed dictionaries, or a reader with `get_next()` that ends with None;
    - a dictionary of arrays, or one array for a single input, samples along axis 0.

    Samples are stacked up to `batch_size`, or to the size the model fixes for its first axis; feed dictionaries are
    fed as they come, and split where the model takes one sample at a time. Files are checked by their headers here,
    objects feed by feed; raises `DataError` naming the array, the input and what does not fit.
    """
    if isinstance(source, Data):
        return source
    if batch_size < 1:
        raise OptionError(f"batch_size must be at least 1, not {batch_size}")
    specs = input_specs(model)
    if not isinstance(source, (str, os.PathLike)):
        return _object(source, specs, batch_size, "data")
    text = os.fspath(source)
    if text == "random" or text.startswith("random:"):
        feeds = random_feeds(model, _random_count(text), seed=seed, input_shapes=input_shapes)
        return Data(text, lambda: iter(feeds), len(feeds))
    path = Path(text)
    if path.exists():
        return _path(path, specs, batch_size)
    if ":" in text:
        return _object(load_attribute(text, DataError), specs, batch_size, text)
    raise DataError(f"{text}: no such file or folder. Data is an .npz, a folder, FILE.py:NAME, MODULE:NAME or random:N")


def _random_count(text: str) -> int:
    _, colon, digits = text.partition(":")
    if not colon:
        return RANDOM_FEEDS
    if not digits.isdecimal() or int(digits) < 1:
        raise DataError(f"{text!r}: expected random or random:N with N at least 1")
    return int(digits)


def _path(path: Path, specs: Sequence[InputSpec], batch_size: int) -> Data:
    if path.is_file():
        return _parts(str(path), [_file_part(path, specs)], specs, batch_size)
    if not path.is_dir():
        raise DataError(f"{path}: is no regular file and no folder")
    sets = [path] if is_test_data_set(path) else sorted(d for d in path.glob("test_data_set_*") if is_test_data_set(d))
    if sets:
        return _test_data_sets(path, sets, specs)
    files = sorted(f for f in path.iterdir() if f.suffix in (".npz", ".npy"))
    if not files:
        raise DataError(f"{path}: holds no .npz, .npy or test_data_set_*/input_*.pb")
    return _parts(str(path), [_file_part(f, specs) for f in files], specs, batch_size)


def _file_part(path: Path, specs: Sequence[InputSpec]) -> Part:
    if path.suffix == ".npz":
        return npz_part(path)
    if path.suffix == ".npy":
        return npy_part(path, specs)
    raise DataError(f"{path}: unknown kind of data file; give .npz or .npy, or FILE.py:NAME for your own reader")


def _parts(label: str, parts: Sequence[Part], specs: Sequence[InputSpec], batch_size: int) -> Data:
    n_feeds = sum(count(check_part(part, specs), part, specs, batch_size) for part in parts)

    def start() -> Iterator[Feed]:
        for part in parts:
            yield from cut(part, specs, batch_size)

    return Data(label, start, n_feeds or None)


def _test_data_sets(path: Path, folders: Sequence[Path], specs: Sequence[InputSpec]) -> Data:
    def start() -> Iterator[Feed]:
        for folder in folders:
            yield from fit_feed(read_test_data_set(folder, specs), specs, str(folder))

    return Data(str(path), start)


def _object(source: Any, specs: Sequence[InputSpec], batch_size: int, label: str) -> Data:
    if isinstance(source, Mapping):
        return _parts(label, [in_memory(label, source)], specs, batch_size)
    if isinstance(source, np.ndarray):
        if len(specs) != 1:
            raise DataError(f"{label}: one array was given, the model has {len(specs)} inputs; give a dictionary")
        return _parts(label, [in_memory(label, {specs[0].name: source})], specs, batch_size)
    if callable(source) and not _is_reader(source):
        return _called(source, specs, batch_size, label)
    return Data(label, _passes(source, specs, label))


def _called(source: Callable[[], Any], specs: Sequence[InputSpec], batch_size: int, label: str) -> Data:
    """Call for each pass, so that what it gives need not stay in memory; a list is kept."""
    first = _call(source, label)
    if isinstance(first, (Mapping, np.ndarray)) or not (_is_reader(first) or isinstance(first, Iterator)):
        return _object(first, specs, batch_size, label)
    ready = [first]

    def start() -> Iterator[Feed]:
        return _fitted(_dictionaries(ready.pop() if ready else _call(source, label), label), specs, label)

    return Data(label, start)


def _call(source: Callable[[], Any], label: str) -> Any:
    try:
        value = source()
    except Exception as error:
        raise DataError(f"{label}: calling it failed ({type(error).__name__}: {error})") from error
    if callable(value) and not _is_reader(value):
        raise DataError(f"{label}: returned another callable; it must return feeds")
    return value


def _passes(source: Any, specs: Sequence[InputSpec], label: str) -> Callable[[], Iterator[Feed]]:
    rewind = getattr(source, "rewind", None)
    if _is_reader(source) and callable(rewind):

        def rewound() -> Iterator[Feed]:
            rewind()
            return _fitted(_dictionaries(source, label), specs, label)

        return rewound
    if _is_reader(source) or isinstance(source, Iterator):
        return remembered(_fitted(_dictionaries(source, label), specs, label))
    if not isinstance(source, Iterable) or isinstance(source, (str, bytes)):
        kind = type(source).__name__
        raise DataError(f"{label}: is a {kind}; expected feeds, a callable or a reader with get_next()")
    return lambda: _fitted(_dictionaries(source, label), specs, label)


def _is_reader(value: Any) -> bool:
    return callable(getattr(value, "get_next", None)) and not isinstance(value, type)


def _dictionaries(source: Any, label: str) -> Iterator[Any]:
    """Iterate the user's object; what it raises becomes a `DataError`."""
    try:
        if _is_reader(source):
            while (feed := source.get_next()) is not None:
                yield feed
        else:
            yield from source
    except Exception as error:
        raise DataError(f"{label}: reading it failed ({type(error).__name__}: {error})") from error


def _fitted(feeds: Iterable[Any], specs: Sequence[InputSpec], label: str) -> Iterator[Feed]:
    for k, feed in enumerate(feeds):
        where = f"{label}, feed {k}"
        if not isinstance(feed, Mapping):
            raise DataError(f"{where}: is a {type(feed).__name__}; expected a dictionary of input name to array")
        yield from fit_feed(feed, specs, where)
