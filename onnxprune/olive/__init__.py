"""Pruning as a pass of Microsoft Olive.

`package_config` is Olive's own list of passes with `OnnxPrune` added; `onnxprune.olive.passes` holds the pass, and
alone imports Olive. Source: olive-ai 0.13, `olive/package_config.py`.
"""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ..errors import OptionError

__all__ = ["package_config"]

ENTRY = {
    "module_path": "onnxprune.olive.passes.OnnxPrune",
    "supported_providers": ["*"],
    "supported_accelerators": ["*"],
    "supported_precisions": ["*"],
    "supported_algorithms": [],
    "supported_quantization_encodings": [],
    "dataset": "dataset_optional",
}


def package_config() -> dict[str, Any]:
    """Give the package configuration for `olive run --package-config`: every pass of the Olive here, and `OnnxPrune`.

    Olive takes one such file instead of its own, not beside it, so that ours must hold all passes.
    Raises `OptionError` when Olive is not installed.
    """
    # Finding is not importing: that takes seconds, and starts Olive's telemetry.
    spec = find_spec("olive")
    folders = spec.submodule_search_locations if spec is not None else None
    found = [path for folder in folders or () if (path := Path(folder, "olive_config.json")).is_file()]
    if not found:
        raise OptionError("Olive is not installed here. Try: pip install 'onnxprune[olive]'")
    merged: dict[str, Any] = json.loads(found[0].read_text(encoding="utf-8"))
    return {**merged, "passes": {**merged["passes"], "OnnxPrune": ENTRY}}
