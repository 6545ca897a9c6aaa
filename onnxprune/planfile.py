"""The plan: which units go, and what that cuts from each initializer.

Schema `onnxprune.plan/1`, written as JSON. The `slices` alone let anyone check a pruned model without this package.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

from .errors import PlanError
from .trade import Trade

SCHEMA = "onnxprune.plan/1"
ROLES = ("output", "input", "parameter")
REPAIRED = "onnxprune.repaired"  # the metadata of a model whose kept weights were given new values


@dataclass(frozen=True)
class PlanGroup:
    """What happens to one group: `removed` are sorted unit indices in [0, size), equally many in each of `blocks`."""

    id: str
    kind: str
    size: int
    removed: tuple[int, ...]
    exact: bool
    score: Mapping[str, Any] = field(default_factory=dict)
    locked: str | None = None
    why_inexact: str | None = None
    blocks: int = 1

    def to_json(self) -> dict[str, Any]:
        """Give the group as the plan file spells it."""
        row: dict[str, Any] = {
            "id": self.id,
            "kind": self.kind,
            "size": self.size,
            "removed": list(self.removed),
            "exact": self.exact,
            "score": dict(self.score),
            "locked": self.locked,
        }
        if not self.exact:
            row["why_inexact"] = self.why_inexact
        if self.blocks > 1:
            row["blocks"] = self.blocks
        return row


@dataclass(frozen=True)
class PlanSlice:
    """One initializer axis that shrinks: `removed` are sorted indices into the original axis.

    `role` is "output" (rows that produce a removed unit), "input" (columns that consume it) or "parameter" (bias,
    normalization and the like along it). `result` is the initializer's name in the output.
    """

    initializer: str
    axis: int
    role: str
    removed: tuple[int, ...]
    result: str

    def to_json(self) -> dict[str, Any]:
        """Give the slice as the plan file spells it."""
        return {
            "initializer": self.initializer,
            "axis": self.axis,
            "role": self.role,
            "removed": list(self.removed),
            "result": self.result,
        }


@dataclass(frozen=True)
class Plan:
    """A decision that can be printed, saved, checked and applied.

    `trade` is what the search saw that found it, None where none was made, and `scores` what ranked the units, (units,)
    by group id; neither is part of the file.
    """

    source_sha256: str
    groups: tuple[PlanGroup, ...]
    slices: tuple[PlanSlice, ...]
    input_shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    trade: Trade | None = field(default=None, compare=False, repr=False)
    scores: Mapping[str, Any] = field(default_factory=dict, compare=False, repr=False)

    @property
    def exact(self) -> bool:
        """Say whether the pruned model computes what the masked twin computes."""
        return all(group.exact for group in self.groups if group.removed)

    @property
    def empty(self) -> bool:
        """Say whether nothing is removed."""
        return not any(group.removed for group in self.groups)

    def to_json(self) -> dict[str, Any]:
        """Give the plan as its file spells it."""
        document: dict[str, Any] = {
            "schema": SCHEMA,
            "source_sha256": self.source_sha256,
            "groups": [group.to_json() for group in self.groups],
            "slices": [row.to_json() for row in self.slices],
        }
        if self.input_shapes:
            document["input_shapes"] = {name: list(shape) for name, shape in sorted(self.input_shapes.items())}
        return document

    def dumps(self) -> str:
        """Give the text of the plan file, the same for equal plans."""
        return json.dumps(self.to_json(), indent=1) + "\n"

    @property
    def sha256(self) -> str:
        """Digest of the plan file's text."""
        return hashlib.sha256(self.dumps().encode()).hexdigest()

    @staticmethod
    def from_json(document: Any, where: str = "plan") -> Plan:
        """Read a plan from its JSON value; raises `PlanError` saying which entry is wrong."""
        if not isinstance(document, Mapping) or document.get("schema") != SCHEMA:
            found = document.get("schema") if isinstance(document, Mapping) else type(document).__name__
            raise PlanError(f"{where}: not a plan of schema {SCHEMA!r} (found {found!r})")
        try:
            groups = tuple(_group(row, f"{where}: groups[{k}]") for k, row in enumerate(document["groups"]))
            slices = tuple(_slice(row, f"{where}: slices[{k}]") for k, row in enumerate(document["slices"]))
            shapes = {str(n): tuple(int(d) for d in s) for n, s in document.get("input_shapes", {}).items()}
            return Plan(str(document["source_sha256"]), groups, slices, shapes)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise PlanError(f"{where}: an entry is missing or of the wrong type ({error!r})") from error

    @staticmethod
    def load(path: str | os.PathLike[str]) -> Plan:
        """Read a plan file; raises `PlanError` when it is missing or not a plan."""
        try:
            document = json.loads(Path(path).read_text(encoding="utf-8"))
        except OSError as error:
            raise PlanError(f"{path}: cannot read the plan ({error.strerror})") from error
        except (ValueError, RecursionError) as error:
            raise PlanError(f"{path}: not JSON ({error})") from error
        return Plan.from_json(document, str(path))


def _group(row: Any, where: str) -> PlanGroup:
    size = int(row["size"])
    return PlanGroup(
        id=str(row["id"]),
        kind=str(row["kind"]),
        size=size,
        removed=_indices(row["removed"], where, size),
        exact=bool(row["exact"]),
        score=dict(row.get("score") or {}),
        locked=row.get("locked"),
        why_inexact=row.get("why_inexact"),
        blocks=int(row.get("blocks", 1)),
    )


def _slice(row: Any, where: str) -> PlanSlice:
    if row["role"] not in ROLES:
        raise PlanError(f"{where}: role {row['role']!r} is none of {', '.join(ROLES)}")
    removed = _indices(row["removed"], where, None)
    return PlanSlice(str(row["initializer"]), int(row["axis"]), row["role"], removed, str(row["result"]))


def _indices(values: Any, where: str, size: int | None) -> tuple[int, ...]:
    """Check sorted, distinct, non-negative indices below `size`."""
    indices = tuple(int(v) for v in values)
    if any(b <= a for a, b in pairwise(indices)) or (indices and indices[0] < 0):
        raise PlanError(f"{where}: removed must be distinct, sorted and not negative")
    if size is not None and indices and indices[-1] >= size:
        raise PlanError(f"{where}: removed names unit {indices[-1]} of a group of {size}")
    return indices
