"""Samples along axis 0, from memory or from files, cut into feeds."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..errors import DataError
from .feeds import Feed
from .inputs import Array, InputSpec, check_dtype, check_names, check_shape, convert


@dataclass(frozen=True)
class Header:
    """Shape and type of an array that need not be in memory."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]


@dataclass(frozen=True)
class Part:
    """Arrays of samples for every input: `headers` say what `read` gives, so that a misfit shows before any run."""

    label: str
    headers: Mapping[str, Header]
    read: Callable[[], Mapping[str, Array]]


def in_memory(label: str, arrays: Mapping[str, Any]) -> Part:
    """Make a part of arrays that are there already."""
    given = {name: np.asarray(array) for name, array in arrays.items()}
    return Part(label, {name: Header(a.shape, a.dtype) for name, a in given.items()}, lambda: given)


@dataclass(frozen=True)
class _Layout:
    """How an array holds samples: `batched` along the input's own axis 0, `listed` along an axis the input lacks."""

    kind: str
    n: int


def check_part(part: Part, specs: Sequence[InputSpec]) -> int:
    """Count the samples of a part; raises `DataError` when names, types, shapes or counts do not fit the model."""
    return _samples(part.label, _layouts(part, specs))


def _layouts(part: Part, specs: Sequence[InputSpec]) -> dict[str, _Layout]:
    check_names(part.headers, specs, part.label)
    return {spec.name: _layout(part, spec) for spec in specs}


def _layout(part: Part, spec: InputSpec) -> _Layout:
    header, where = part.headers[spec.name], f"{part.label}[{spec.name!r}]"
    check_dtype(header.dtype, spec, where)
    rank = len(header.shape) if spec.shape is None else len(spec.shape)
    if rank == 0 and not header.shape:
        return _Layout("constant", 1)
    if len(header.shape) == rank + 1:
        check_shape(header.shape[1:], spec, f"{where}, one sample")
        return _Layout("listed", header.shape[0])
    check_shape(header.shape, spec, where, skip_axis=0)
    return _Layout("batched", header.shape[0])


def _samples(label: str, layouts: Mapping[str, _Layout]) -> int:
    counts = {name: layout.n for name, layout in layouts.items() if layout.kind != "constant"}
    if len(set(counts.values())) > 1:
        listing = ", ".join(f"{name!r} {n}" for name, n in counts.items())
        raise DataError(f"{label}: inputs hold different numbers of samples along axis 0: {listing}")
    return next(iter(counts.values()), 1)


def cut(part: Part, specs: Sequence[InputSpec], batch_size: int) -> Iterator[Feed]:
    """Give feeds of up to `batch_size` samples, or of exactly as many as the model's fixed batch axis says.

    Listed samples are fed one by one. A rest that does not fill a fixed batch is left out; raises `DataError` when
    that would be everything.
    """
    layouts = _layouts(part, specs)
    step = _step(specs, layouts, batch_size)
    n = _samples(part.label, layouts)
    fixed = step if _fixed(specs, layouts) else 1
    if n < fixed:
        raise DataError(f"{part.label}: holds {n} samples, the model takes {fixed} at a time; give more")
    arrays = part.read()
    for start in range(0, n - n % fixed, step):
        feed: Feed = {}
        for spec in specs:
            array, layout = arrays[spec.name], layouts[spec.name]
            if layout.kind != "constant":
                array = array[start] if layout.kind == "listed" else array[start : start + step]
            feed[spec.name] = convert(np.asarray(array), spec, f"{part.label}[{spec.name!r}]")
        yield feed


def count(n_samples: int, part: Part, specs: Sequence[InputSpec], batch_size: int) -> int:
    """Say how many feeds `cut` gives."""
    layouts = _layouts(part, specs)
    step = _step(specs, layouts, batch_size)
    return n_samples // step if _fixed(specs, layouts) else -(-n_samples // step)


def _fixed(specs: Sequence[InputSpec], layouts: Mapping[str, _Layout]) -> bool:
    return any(layouts[s.name].kind == "batched" and s.shape and isinstance(s.shape[0], int) for s in specs)


def _step(specs: Sequence[InputSpec], layouts: Mapping[str, _Layout], batch_size: int) -> int:
    if any(layout.kind == "listed" for layout in layouts.values()):
        sizes = {1}
    else:
        batched = [s.shape[0] for s in specs if s.shape and layouts[s.name].kind == "batched"]
        sizes = {size for size in batched if isinstance(size, int)} or {batch_size}
    if len(sizes) > 1:
        found = ", ".join(map(str, sorted(sizes)))
        raise DataError(f"the inputs' first axes have different fixed sizes ({found}); give feed dictionaries instead")
    return max(1, sizes.pop())
