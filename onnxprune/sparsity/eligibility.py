"""Which layers a runtime could run sparse, by shape and type: TensorRT, cuSPARSELt, CUTLASS, OpenVINO.

onnxruntime runs none: there, zeros save bytes in a packed file and no time. The 2:4 runtimes take groups of four
along the input axis at a fixed output and kernel pixel, which is how the pattern 2:4 lays them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from ..graph.model import Model
from ..masks import measure
from ..masks.two_four import eligible_2_4
from .slots import CONVOLUTION, EMBEDDING, LINEAR
from .weights import Weight, Weights

RUNTIMES = ("tensorrt", "cusparselt", "cutlass", "openvino")
_FLOAT8 = {"float8e4m3fn": "float8_e4m3fn", "float8e5m2": "float8_e5m2"}


def eligibility(
    model: Model, weights: Weights, masks: Mapping[str, np.ndarray[Any, Any]] | None = None
) -> list[dict[str, Any]]:
    """Give a row per weight that is no table: for each runtime None where it could run sparse, else why not.

    `sparsity` and `two_four` (the fraction of groups with two zeros or more) are those of `masks` where a weight has
    one, otherwise of its content. `note` says where a dense kernel is likely as fast.
    """
    rows = []
    for weight in weights.found:
        if weight.kind == EMBEDDING:
            continue
        mask = (masks or {}).get(weight.name)
        keep = weight.values(model) != 0 if mask is None else mask
        found = measure(np.asarray(keep), "2:4")
        rows.append(
            {
                "name": weight.name,
                "node": weight.node,
                "op": weight.op,
                "shape": list(weight.shape),
                "dtype": weight.dtype,
                "groups": weight.groups,
                "sparsity": found.sparsity,
                "two_four": found.complete_fraction,
                **{runtime: reason_against(weight, runtime) for runtime in RUNTIMES},
                "note": _note(weight),
            }
        )
    return rows


def reason_against(weight: Weight, runtime: str) -> str | None:
    """Say why a runtime cannot use sparsity in a weight, None where it could."""
    if runtime == "openvino":
        return _openvino(weight)
    if weight.kind not in (LINEAR, CONVOLUTION) or weight.op in ("ConvTranspose", "DeformConv"):
        return f"{runtime} runs convolutions and matrix products sparse, not {weight.op}"
    found = eligible_2_4(_matrix(weight, runtime), _dtype(weight), runtime, groups=weight.groups)
    return None if found else found.reason


def _openvino(weight: Weight) -> str | None:
    """Source: OpenVINO's CPU plugin, property CPU_SPARSE_WEIGHTS_DECOMPRESSION_RATE."""
    if weight.kind != LINEAR:
        return f"openvino unpacks sparse weights of matrix products only, not of {weight.op}"
    if weight.dtype not in ("int8", "uint8"):
        return f"openvino unpacks sparse weights of int8 only, not of {weight.dtype}"
    return None


def _matrix(weight: Weight, runtime: str) -> tuple[int, ...]:
    """Give the shape a runtime sees: for one of matrices, a 1x1 convolution is a matrix."""
    pointwise = all(size == 1 for size in weight.shape[2:])
    return weight.shape[:2] if pointwise and runtime != "tensorrt" else weight.shape


def _dtype(weight: Weight) -> str:
    return _FLOAT8.get(weight.dtype, weight.dtype)


def _note(weight: Weight) -> str:
    if reason_against(weight, "tensorrt") is not None:
        return ""
    reason = eligible_2_4(weight.shape, _dtype(weight), "tensorrt", groups=weight.groups).reason
    return reason.partition("; ")[2]
