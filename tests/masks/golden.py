"""Reader of reference masks: cases with their inputs (made from seeds), expected masks and values."""

from __future__ import annotations

import hashlib
import json
import os
import re
from pathlib import Path
from typing import Any

import numpy as np

Case = dict[str, Any]


def folder() -> Path | None:
    """Give the folder that ONNXPRUNE_GOLDEN names, or the one beside ONNXPRUNE_ZOO."""
    named, zoo = os.environ.get("ONNXPRUNE_GOLDEN"), os.environ.get("ONNXPRUNE_ZOO")
    found = Path(named) if named else Path(zoo).parent / "golden" if zoo else None
    return found if found is not None and (found / "golden_index.json").is_file() else None


class Golden:
    """The cases of one folder."""

    def __init__(self, root: Path) -> None:
        index = json.loads((root / "golden_index.json").read_text(encoding="utf-8"))
        self.cases: list[Case] = index["cases"]
        with np.load(root / "golden_data.npz", allow_pickle=False) as data:
            self._data = {name: data[name] for name in data.files}

    def inputs(self, case: Case) -> dict[str, np.ndarray]:
        return {name: make_input(spec) for name, spec in case["inputs"].items()}

    def masks(self, case: Case) -> dict[str, np.ndarray]:
        result = {}
        for name, spec in case.get("masks", {}).items():
            start, length = spec["at"]
            bits = np.unpackbits(self._data["masks"][start : start + length])[: int(np.prod(spec["shape"]))]
            result[name] = bits.reshape(spec["shape"]).astype(bool)
            assert int((~result[name]).sum()) == spec["zeros"]
        return result

    def values(self, case: Case) -> dict[str, np.ndarray]:
        return {name: self._data[place] for name, place in case.get("values", {}).items()}


def make_input(spec: dict[str, Any]) -> np.ndarray:
    if "const" in spec:
        return np.full(spec["shape"], spec["const"], np.float32)
    if "values" in spec:
        values = np.array(spec["values"], np.float32)
        if not spec.get("broadcast"):
            return values
        return values.reshape((-1,) + (1,) * (len(spec["shape"]) - 1)) * np.ones(spec["shape"], np.float32)
    stream = np.random.RandomState(spec["seed"]).standard_normal(tuple(spec["shape"])).astype(np.float32)
    made = stream * np.float32(spec["scale"]) + np.float32(spec["offset"])
    assert hashlib.sha256(made.tobytes()).hexdigest()[:16] == spec["sha"], "the random stream differs"
    if spec.get("abs"):
        made = np.abs(made)
    if spec.get("cast"):
        made = made.astype(spec["cast"])
    for index, op, value in re.findall(r"X\[\.\.\.,\s*(\d+)\]\s*(\*?=)\s*([\d.]+)", spec.get("post", "")):
        if op == "=":
            made[..., int(index)] = float(value)
        else:
            made[..., int(index)] *= np.float32(value)
    return made
