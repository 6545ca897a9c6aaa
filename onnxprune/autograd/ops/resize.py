"""Resize: one axis after another, each by the samples that ONNX's coordinates name and their weights."""

from __future__ import annotations

from typing import Any

import torch

from ..call import Call, Tensor, UnsupportedError, torch_op
from ..tensors import integers


@torch_op("Upsample")
def upsample(call: Call, x: Tensor, scales: Tensor | None = None) -> Tensor:
    """Resize as of opset 9: coordinates are asymmetric."""
    factors = call.get("scales") if scales is None else scales.tolist()
    how = {"mode": call.get("mode", "nearest"), "coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}
    return _resized(Call(call.op, "", call.name, call.opset, 1, how), x, [float(f) for f in factors], None)


@torch_op("Resize")
def resize(call: Call, x: Tensor, *given: Tensor | None) -> Tensor:
    """By factors or to sizes; modes nearest, linear and cubic."""
    if call.opset < 11:
        return upsample(call, x, *given)
    _, scales, sizes = (*given, None, None, None)[:3]
    if call.get("antialias", 0) or call.get("keep_aspect_ratio_policy", "stretch") != "stretch":
        raise UnsupportedError("Resize with antialias or a kept aspect ratio")
    axes = [a % x.dim() for a in (call.get("axes") or range(x.dim()))]
    if sizes is not None and sizes.numel():
        wanted = dict(zip(axes, integers(sizes), strict=True))
        whole = [wanted.get(k, n) for k, n in enumerate(x.shape)]
        return _resized(call, x, [w / n for w, n in zip(whole, x.shape, strict=True)], whole)
    assert scales is not None
    factors = dict(zip(axes, (float(f) for f in scales.tolist()), strict=True))
    return _resized(call, x, [factors.get(k, 1.0) for k in range(x.dim())], None)


def _resized(call: Call, x: Tensor, scales: list[float], sizes: list[int] | None) -> Tensor:
    mode = call.get("mode", "nearest")
    for axis, scale in enumerate(scales):
        n = x.shape[axis]
        m = int(n * scale) if sizes is None else sizes[axis]
        if m == n and scale == 1.0:
            continue
        at = _coordinates(call.get("coordinate_transformation_mode", "half_pixel"), n, m, scale)
        if mode == "nearest":
            x = x.index_select(axis, _nearest(call.get("nearest_mode", "round_prefer_floor"), at).clamp(0, n - 1))
            continue
        taps = _linear(at) if mode == "linear" else _cubic(at, call.get("cubic_coeff_a", -0.75))
        if call.get("exclude_outside", 0):
            raise UnsupportedError("Resize with exclude_outside")
        shape = [-1 if k == axis else 1 for k in range(x.dim())]
        x = sum(x.index_select(axis, k.clamp(0, n - 1)) * w.to(x.dtype).reshape(shape) for k, w in taps)
    return x


def _coordinates(kind: str, n: int, m: int, scale: float) -> Tensor:
    """Where each of m output samples lies among n input samples. Source: ONNX Resize-19."""
    at = torch.arange(m, dtype=torch.float64)
    match kind:
        case "half_pixel":
            return (at + 0.5) / scale - 0.5
        case "pytorch_half_pixel":
            return (at + 0.5) / scale - 0.5 if m > 1 else at * 0
        case "align_corners":
            return at * (n - 1) / (m - 1) if m > 1 else at * 0
        case "asymmetric":
            return at / scale
        case "half_pixel_symmetric":
            offset = n / 2 * (1 - m / (n * scale))
            return offset + (at + 0.5) / scale - 0.5
    raise UnsupportedError(f"Resize with coordinates {kind!r}")


def _nearest(kind: str, at: Tensor) -> Tensor:
    match kind:
        case "round_prefer_floor":
            found = torch.ceil(at - 0.5)
        case "round_prefer_ceil":
            found = torch.floor(at + 0.5)
        case "floor":
            found = torch.floor(at)
        case _:
            found = torch.ceil(at)
    return found.long()


def _linear(at: Tensor) -> list[tuple[Any, Any]]:
    low = torch.floor(at)
    part = at - low
    return [(low.long(), 1 - part), (low.long() + 1, part)]


def _cubic(at: Tensor, a: float) -> list[tuple[Any, Any]]:
    low = torch.floor(at)
    t = at - low
    near = [((a + 2) * d - (a + 3)) * d * d + 1 for d in (t, 1 - t)]
    far = [((a * d - 5 * a) * d + 8 * a) * d - 4 * a for d in (t + 1, 2 - t)]
    weights = [far[0], *near, far[1]]
    return [(low.long() + k - 1, w) for k, w in enumerate(weights)]
