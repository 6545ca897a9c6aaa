"""What a worker needs to measure any cell: the model, the samples, the metric, and the user's own operator rules."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from .._version import __version__
from ..axes.collect import op_rules
from ..data import Data, Feed
from ..errors import OptionError
from ..graph.model import Model, load, serialize

Bytes = np.ndarray[Any, np.dtype[np.uint8]]


@dataclass(frozen=True, eq=False)
class Setup:
    """One sweep as a value that can be sent to another process.

    `content` is the serialized model, (bytes,) uint8, so that it can be mapped into memory; it is empty for a model
    whose weights lie in other files, which is read from `path` instead. `feeds` are all samples, `threads` those of
    onnxruntime in each worker.
    """

    content: Bytes = field(repr=False)
    path: str | None
    feeds: tuple[Feed, ...] = field(repr=False)
    threads: int
    input_shapes: Mapping[str, Sequence[int]]
    digest: str
    data_digest: str
    version: str = __version__

    def model(self) -> Model:
        """Read the model anew. Raises `OptionError` where this process has another version of the package."""
        if self.version != __version__:
            raise OptionError(f"a worker has onnxprune {__version__}, the caller {self.version}; install the same one")
        if self.path is not None:
            return load(Path(self.path))
        raw = self.content.tobytes()
        proto = onnx.ModelProto()
        proto.ParseFromString(raw)
        return Model(proto, None, raw)


def make_setup(model: Model, data: Data | None, threads: int, input_shapes: Mapping[str, Sequence[int]]) -> Setup:
    """Gather what workers need; all samples are read, once, and held in memory."""
    feeds = tuple(data) if data is not None else ()
    if (model.has_external_data or (model.is_intact and model.is_hollow)) and model.path is not None:
        content, path = b"", str(model.path.resolve())
    else:
        content, path = model.raw if model.raw is not None else serialize(model.proto), None
    data_digest = _digest(feeds)
    identity = repr((model.sha256, data_digest, threads, sorted((k, tuple(v)) for k, v in input_shapes.items())))
    digest = hashlib.sha256(identity.encode()).hexdigest()
    array = np.frombuffer(content, dtype=np.uint8)
    return Setup(array, path, feeds, threads, dict(input_shapes), digest, data_digest)


def own_rules() -> dict[str, Callable[..., Any]]:
    """Give the operator rules that the user registered in this process; workers do not have them."""
    found = {name: op_rules[name] for name in op_rules}
    return {name: rule for name, rule in found.items() if str(rule.__module__).split(".")[0] != "onnxprune"}


def register_rules(rules: Mapping[str, Callable[..., Any]]) -> None:
    """Register the caller's operator rules in this process, over the built-in ones."""
    from .. import rules as built_in  # noqa: F401  registers them

    for name, rule in rules.items():
        op_rules.register(name, replace=True)(rule)


def _digest(feeds: Sequence[Feed]) -> str:
    """Digest samples: names, types, shapes and contents in order."""
    digest = hashlib.sha256()
    for feed in feeds:
        for part in _parts(feed):
            digest.update(part)
    return digest.hexdigest()


def _parts(value: Any) -> Iterator[bytes]:
    if isinstance(value, Mapping):
        for name in sorted(value):
            yield f"{name}=".encode()
            yield from _parts(value[name])
    elif isinstance(value, (list, tuple)):
        yield f"[{len(value)}]".encode()
        for item in value:
            yield from _parts(item)
    elif value is None:
        yield b"nothing"
    else:
        array = np.asarray(value)
        yield f"{array.dtype}{array.shape}".encode()
        yield repr(array.tolist()).encode() if array.dtype.hasobject else array.tobytes()
