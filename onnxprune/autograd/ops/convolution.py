"""Convolutions. Pads may differ at the two ends of an axis, which torch's own padding cannot say."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import torch
from torch.nn import functional

from ..call import Call, Tensor, torch_op

_CONV = {1: functional.conv1d, 2: functional.conv2d, 3: functional.conv3d}
_TRANSPOSED = {1: functional.conv_transpose1d, 2: functional.conv_transpose2d, 3: functional.conv_transpose3d}


def windows(call: Call, sizes: Sequence[int], kernel: Sequence[int]) -> tuple[list[int], list[int], list[int]]:
    """Read strides, dilations and pads (begins, then ends) of a window over axes of these sizes.

    Source: ONNX Conv-11, auto_pad: SAME gives outputs of ceil(size / stride).
    """
    rank = len(kernel)
    strides = list(call.get("strides") or [1] * rank)
    dilations = list(call.get("dilations") or [1] * rank)
    auto = call.get("auto_pad", "NOTSET")
    if auto not in ("SAME_UPPER", "SAME_LOWER"):
        return strides, dilations, list(call.get("pads") or [0] * (2 * rank)) if auto != "VALID" else [0] * (2 * rank)
    begins, ends = [], []
    for size, k, s, d in zip(sizes, kernel, strides, dilations, strict=True):
        total = max(0, (-(-size // s) - 1) * s + (k - 1) * d + 1 - size)
        less, more = total // 2, total - total // 2
        begins.append(less if auto == "SAME_UPPER" else more)
        ends.append(more if auto == "SAME_UPPER" else less)
    return strides, dilations, [*begins, *ends]


def padded(x: Tensor, pads: Sequence[int], value: float = 0.0) -> Tensor:
    """Pad the last axes of x; `pads` are begins, then ends, in the order of the axes."""
    rank = len(pads) // 2
    if not any(pads):
        return x
    turned = list(itertools.chain.from_iterable(zip(pads[:rank][::-1], pads[rank:][::-1], strict=True)))
    return functional.pad(x, turned, value=value)


@torch_op("Conv")
def conv(call: Call, x: Tensor, w: Tensor, b: Tensor | None = None) -> Tensor:
    """Group convolution over 1 to 3 axes."""
    rank = w.dim() - 2
    strides, dilations, pads = windows(call, x.shape[2:], w.shape[2:])
    even: Any = pads[:rank]
    if pads[:rank] != pads[rank:]:
        x, even = padded(x, pads), 0
    return _CONV[rank](x, w, b, stride=strides, padding=even, dilation=dilations, groups=call.get("group", 1))


@torch_op("ConvTranspose")
def conv_transpose(call: Call, x: Tensor, w: Tensor, b: Tensor | None = None) -> Tensor:
    """Write the whole output, then cut off what the pads take.

    Source: ONNX ConvTranspose-11; with output_shape the pads follow from it.
    """
    rank = w.dim() - 2
    kernel, sizes = list(w.shape[2:]), list(x.shape[2:])
    strides = list(call.get("strides") or [1] * rank)
    dilations = list(call.get("dilations") or [1] * rank)
    extra = list(call.get("output_padding") or [0] * rank)
    whole = [(n - 1) * s + (k - 1) * d + 1 for n, k, s, d in zip(sizes, kernel, strides, dilations, strict=True)]
    auto, pads = call.get("auto_pad", "NOTSET"), list(call.get("pads") or [0] * (2 * rank))
    wanted = call.get("output_shape")
    if wanted is None and auto in ("SAME_UPPER", "SAME_LOWER"):
        wanted = [n * s for n, s in zip(sizes, strides, strict=True)]
    if wanted is not None:
        total = [n + e - t for n, e, t in zip(whole, extra, list(wanted)[-rank:], strict=True)]
        less, more = [t // 2 for t in total], [t - t // 2 for t in total]
        pads = [*less, *more] if auto == "SAME_UPPER" else [*more, *less]
    y = _TRANSPOSED[rank](x, w, stride=strides, dilation=dilations, groups=call.get("group", 1))
    cut = [*(-p for p in pads[:rank]), *(e - p for e, p in zip(extra, pads[rank:], strict=True))]
    y = padded(y, cut)
    return y if b is None else y + b.reshape(-1, *[1] * rank)


@torch_op("DepthToSpace")
def depth_to_space(call: Call, x: Tensor) -> Tensor:
    """Blocks of channels become pixels: mode DCR or CRD."""
    n, c, h, w = x.shape
    b = call.get("blocksize")
    if call.get("mode", "DCR") == "DCR":
        return x.reshape(n, b, b, c // b**2, h, w).permute(0, 3, 4, 1, 5, 2).reshape(n, c // b**2, h * b, w * b)
    return x.reshape(n, c // b**2, b, b, h, w).permute(0, 1, 4, 2, 5, 3).reshape(n, c // b**2, h * b, w * b)


@torch_op("SpaceToDepth")
def space_to_depth(call: Call, x: Tensor) -> Tensor:
    """Pixels become blocks of channels: mode DCR or CRD."""
    n, c, h, w = x.shape
    b = call.get("blocksize")
    order = (0, 3, 5, 1, 2, 4) if call.get("mode", "DCR") == "DCR" else (0, 1, 3, 5, 2, 4)
    return x.reshape(n, c, h // b, b, w // b, b).permute(order).reshape(n, c * b**2, h // b, w // b)


@torch_op("Col2Im")
def col2im(call: Call, x: Tensor, image: Tensor, block: Tensor) -> Tensor:
    """Sum blocks into an image."""
    rank = len(block)
    pads = list(call.get("pads") or [0] * (2 * rank))
    size = [int(v) + pads[k] + pads[k + rank] for k, v in enumerate(image.tolist())]
    strides, dilations = call.get("strides") or [1] * rank, call.get("dilations") or [1] * rank
    y = torch.nn.functional.fold(x, size, block.tolist(), dilation=dilations, stride=strides)
    return padded(y, [-p for p in pads])
