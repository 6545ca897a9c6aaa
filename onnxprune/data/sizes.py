"""Sizes for dynamic axes: what the caller says, else what the axis most likely means."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ..errors import OptionError, unknown_name
from .inputs import InputSpec

BATCH = 2
SEQUENCE = 16
IMAGE = 64  # divisible by 32, the deepest stride of common backbones
CHANNELS = 3


def input_sizes(
    specs: Sequence[InputSpec],
    input_shapes: Mapping[str, Sequence[int]] | None = None,
    *,
    batch: int = BATCH,
    length: int | None = None,
) -> dict[str, tuple[int, ...]]:
    """Give every input a full shape; axes with the same symbol get the same size wherever they occur.

    A size in `input_shapes` wins and binds its symbol. Else: a first axis is `batch`, as is the second of a state like
    (layers, n, width); images are 64 by 64, axes that count what a cache already holds are 0, all others 16. With
    `length`, images and all others take that. Raises `OptionError` for an unknown input and for a shape
    that contradicts the model.
    """
    given = dict(input_shapes or {})
    for name in given:
        if name not in {spec.name for spec in specs}:
            raise unknown_name("input", name, [spec.name for spec in specs])
    symbols: dict[str, int] = {}
    for spec in specs:
        if spec.name in given:
            _bind(spec, given[spec.name], symbols)
    shapes = {}
    for spec in specs:
        if spec.name in given:
            shapes[spec.name] = tuple(int(size) for size in given[spec.name])
        elif spec.shape is None:
            raise OptionError(
                f"input {spec.name!r} has no shape in the model; say one: --input-shape {spec.name}=1,3,224,224"
            )
        else:
            shapes[spec.name] = tuple(_size(spec, axis, symbols, (batch, length)) for axis in range(len(spec.shape)))
    return shapes


def _bind(spec: InputSpec, sizes: Sequence[int], symbols: dict[str, int]) -> None:
    where = f"input shape {spec.name}={','.join(map(str, sizes))}"
    if spec.shape is not None and len(sizes) != len(spec.shape):
        raise OptionError(f"{where}: has {len(sizes)} axes; the model's input {spec} has {len(spec.shape)}")
    if min(sizes, default=0) < 0:
        raise OptionError(f"{where}: sizes must not be negative")
    for axis, dim in enumerate(spec.shape or ()):
        size = int(sizes[axis])
        if isinstance(dim, int) and dim != size:
            raise OptionError(f"{where}: axis {axis} is {dim} in the model")
        if isinstance(dim, str) and symbols.setdefault(dim, size) != size:
            raise OptionError(f"{where}: axis {axis} is {dim!r}, which another input shape sets to {symbols[dim]}")


Guess = tuple[int, int | None]


def _size(spec: InputSpec, axis: int, symbols: dict[str, int], batch: Guess) -> int:
    assert spec.shape is not None
    dim = spec.shape[axis]
    if isinstance(dim, int):
        return dim
    if dim is None:
        return _guess(spec, axis, "", batch)
    if dim not in symbols:
        terms = [term.strip() for term in dim.split("+")]
        if len(terms) > 1:
            # As Optimum writes them: "past_sequence_length + sequence_length".
            symbols[dim] = sum(int(t) if t.isdecimal() else _term(spec, axis, t, symbols, batch) for t in terms)
        else:
            symbols[dim] = _guess(spec, axis, dim.lower(), batch)
    return symbols[dim]


def _term(spec: InputSpec, axis: int, symbol: str, symbols: dict[str, int], batch: Guess) -> int:
    return symbols.setdefault(symbol, _guess(spec, axis, symbol.lower(), batch))


def _guess(spec: InputSpec, axis: int, symbol: str, guess: Guess) -> int:
    assert spec.shape is not None
    batch, length = guess
    rank = len(spec.shape)
    first = spec.shape[0] if rank else None
    is_state = rank == 3 and axis == 1 and isinstance(first, int) and first > 1 and isinstance(spec.shape[2], int)
    if "past" in symbol and "total" not in symbol:
        return 0
    if "batch" in symbol or axis == 0 or is_state:
        return batch
    image = rank == 4 and spec.dtype.kind == "f"
    if image and "seq" not in symbol:
        if spec.shape[3] in (1, 3, 4) and spec.shape[1] not in (1, 3, 4):
            return (length or IMAGE) if axis in (1, 2) else CHANNELS
        return (length or IMAGE) if axis in (2, 3) else CHANNELS
    return length or SEQUENCE
