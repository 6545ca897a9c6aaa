"""Proof by running: what was stored computes what zeros in place would."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper

from ..data import Data
from ..errors import VerificationError
from ..graph.model import Model
from ..verification import Verdict, verify
from ..verification.tensors import held_tensors

FEEDS = 4

InputShapes = Mapping[str, Sequence[int]]


@dataclass(frozen=True)
class Proof:
    """`verdict` compares the sparse model with its source: valid, runs, finite, how close.

    `max_abs` is the largest difference between the outputs of the model as stored and of the source with the new
    weights written in place; `same` says that they agree in every number.
    """

    verdict: Verdict
    same: bool
    max_abs: float

    @property
    def ok(self) -> bool:
        """Say whether everything holds."""
        return self.verdict.ok and self.same

    def raise_if_failed(self) -> None:
        """Raise `VerificationError` naming what does not hold."""
        self.verdict.raise_if_failed()
        if not self.same:
            raise VerificationError(
                f"verification failed: the stored weights do not compute what they stand for; outputs differ by "
                f"{self.max_abs:.2e}"
            )

    def to_json(self) -> dict[str, Any]:
        """Give the figures of `sparsify --json`."""
        verdict = self.verdict
        return {
            "ok": self.ok,
            "same_as_dense": self.same,
            "max_abs": self.max_abs,
            "agreement": verdict.to_json()["agreement"],
            "data": verdict.data,
            "checks": [{"name": c.name, "ok": c.ok, "detail": c.detail} for c in verdict.checks],
        }


def prove(
    source: Model,
    stored: Model,
    contents: Mapping[str, np.ndarray[Any, Any]],
    *,
    base: Model | None = None,
    data: Any = None,
    seed: int = 0,
    input_shapes: InputShapes | None = None,
) -> Proof:
    """Run the source, the stored model, and the source with `contents` in place of its tensors, on the same feeds.

    `base` is the model that the contents belong to, where that is not the source itself.
    """
    given: dict[str, Any] = {"data": data, "seed": seed, "input_shapes": input_shapes, "measure": _unmeasured}
    verdict = verify(source, stored, **given)
    if isinstance(data, Data):
        # Equal weights give equal outputs on any feed: a few show it.
        given["data"] = Data(data.label, lambda: islice(data.start(), FEEDS))
    against = verify(in_place(source if base is None else base, contents), stored, **given)
    outputs = (against.agreement or {}).get("outputs", {})
    same = against.agreement is not None and all(
        row["max_abs"] == 0 and row["mismatch"] == 0 and row["problem"] is None for row in outputs.values()
    )
    return Proof(verdict, same, max((float(row["max_abs"]) for row in outputs.values()), default=float("inf")))


def in_place(source: Model, contents: Mapping[str, np.ndarray[Any, Any]]) -> Model:
    """Give a copy of a model with other numbers in some of its tensors, every shape and type as it was."""
    proto = onnx.ModelProto()
    proto.CopyFrom(source.proto)
    held = held_tensors(proto)
    for name, array in contents.items():
        tensor = held[name].tensor
        fresh = numpy_helper.from_array(np.ascontiguousarray(array), tensor.name)
        if list(fresh.dims) != list(tensor.dims) or fresh.data_type != tensor.data_type:
            raise AssertionError(f"{name!r} was given another shape or type")
        tensor.CopyFrom(fresh)
    return Model(proto, source.path)


@dataclass(frozen=True)
class _Unmeasured:
    params: int = 0
    macs: int = 0
    bytes: int = 0


def _unmeasured(*_: Any) -> _Unmeasured:
    """Stand in for the analysis that counts parameters: none is needed here."""
    return _Unmeasured()
