"""The functions of `numpy_kernels` on torch tensors, on whatever device they are: the same masks, bit for bit."""

from __future__ import annotations

from typing import Any

import torch

from .numpy_kernels import SEQUENTIAL, TINY
from .numpy_kernels import real_elements as _real_elements

Tensor = Any

_CHUNK = 1 << 22
_COMPARED = 8


def lowest(scores: Tensor, k: int) -> Tensor:
    """Mark the `k` lowest of `scores`, of equal ones those of the highest flat index: bool, same shape."""
    flat = scores.reshape(-1)
    if k <= 0 or k >= flat.numel():
        return filled(tuple(scores.shape), k > 0, scores)
    threshold = torch.kthvalue(flat, k).values
    chosen = flat < threshold
    missing = k - count(chosen)
    chosen[torch.nonzero(flat == threshold).reshape(-1)[-missing:]] = True
    return chosen.reshape(scores.shape)


def lowest_in_rows(scores: Tensor, k: int) -> Tensor:
    """Mark the `k` lowest of every row of (rows, size), of equal ones those of the highest index: bool, same shape."""
    rows, size = scores.shape
    if k <= 0 or k >= size:
        return filled((rows, size), k > 0, scores)
    step = max(1, _CHUNK // size)
    choose = _compared if size <= _COMPARED else _partitioned
    parts = [choose(scores[start : start + step], k) for start in range(0, rows, step)]
    return torch.cat(parts) if parts else filled((rows, size), False, scores)


def _compared(scores: Tensor, k: int) -> Tensor:
    size = scores.shape[1]
    columns = scores.T.contiguous()
    wins = torch.zeros(columns.shape, dtype=torch.uint8, device=scores.device)
    for i in range(size):
        for j in range(i + 1, size):
            first = columns[i] >= columns[j]
            wins[i] += first
            wins[j] += ~first
    return (wins < k).T.contiguous()


def _partitioned(scores: Tensor, k: int) -> Tensor:
    threshold = torch.kthvalue(scores, k, dim=1, keepdim=True).values
    chosen = scores < threshold
    missing = k - chosen.sum(dim=1, keepdim=True)
    ties = scores == threshold
    from_end = ties.flip(1).cumsum(dim=1).flip(1)
    return chosen | (ties & (from_end <= missing))


def block_scores(scores: Tensor, block: tuple[int, int], reduce: str, power: int) -> Tensor:
    """Reduce (out, in, pixels) to one score per block of `block` = (rows, columns) at each pixel."""
    if block == (1, 1):
        return scores * scores if power == 2 else scores
    large = block[0] * block[1] > SEQUENTIAL
    result = _reduced(scores.double() if large else scores, block, reduce, power)
    if result.dtype == torch.float32 and result.numel():
        low, high = (float(v) for v in torch.aminmax(result))
        if high == float("inf") or (power == 2 and low <= TINY):
            result = _reduced(scores.double(), block, reduce, power)
    return result


def _reduced(scores: Tensor, block: tuple[int, int], reduce: str, power: int) -> Tensor:
    values = scores * scores if power == 2 else scores
    largest = reduce == "max"
    small = block[0] * block[1] <= SEQUENTIAL
    total = (_in_turn if small else _halved)(values, block, largest=largest)
    if reduce == "mean":
        counts = torch.from_numpy(_real_elements(tuple(scores.shape), block)).to(total.device, total.dtype)
        total /= counts[:, :, None]
    return total


def _join(into: Tensor, part: Tensor, *, largest: bool) -> None:
    if largest:
        torch.maximum(into, part, out=into)
    else:
        into += part


def _in_turn(values: Tensor, block: tuple[int, int], *, largest: bool) -> Tensor:
    rows, columns = block
    total = values[::rows, ::columns].clone()
    for r in range(rows):
        for c in range(columns):
            part = values[r::rows, c::columns]
            if r or c:
                _join(total[: part.shape[0], : part.shape[1]], part, largest=largest)
    return total


def _halved(values: Tensor, block: tuple[int, int], *, largest: bool) -> Tensor:
    total = pad(values, block, float("-inf") if largest else 0.0)
    for axis, size in ((0, block[0]), (1, block[1])):
        shape = tuple(total.shape)
        split = (*shape[:axis], shape[axis] // size, size, *shape[axis + 1 :])
        parts = total.reshape(split).movedim(axis + 1, 0).clone()
        while len(parts) > 1:
            half = len(parts) // 2
            _join(parts[:half], parts[-half:], largest=largest)
            parts = parts[: len(parts) - half]
        total = parts[0]
    return total.clone()


def pad(values: Tensor, block: tuple[int, int], fill: float | bool) -> Tensor:
    """Fill (out, in, pixels) up to whole blocks; the tensor itself where it is whole."""
    extra = [(-extent) % size for extent, size in zip(values.shape, block, strict=False)]
    if not any(extra):
        return values
    return torch.nn.functional.pad(values, (0, 0, 0, extra[1], 0, extra[0]), value=fill)


def grouped(values: Tensor, block: tuple[int, int], fill: float | bool) -> Tensor:
    """Lay each block out as one row: (blocks, rows * columns), blocks in flat order, padded with `fill`."""
    rows, columns = block
    whole = pad(values, block, fill)
    out, into, pixels = whole.shape
    parts = whole.reshape(out // rows, rows, into // columns, columns, pixels)
    return parts.permute(0, 2, 4, 1, 3).reshape(-1, rows * columns)


def ungrouped(groups: Tensor, block: tuple[int, int], shape: tuple[int, int, int]) -> Tensor:
    """Undo `grouped`: back to (out, in, pixels), the padding cut off."""
    rows, columns = block
    down, across, pixels = -(-shape[0] // rows), -(-shape[1] // columns), shape[2]
    parts = groups.reshape(down, across, pixels, rows, columns).permute(0, 3, 1, 4, 2)
    return parts.reshape(down * rows, across * columns, pixels)[: shape[0], : shape[1]]


def spread(units: Tensor, block: tuple[int, int], shape: tuple[int, int, int]) -> Tensor:
    """Give every element of (out, in, pixels) what its block has in `units`."""
    rows, columns = block
    down, across, pixels = units.shape
    wide = units[:, None, :, None, :].expand(down, rows, across, columns, pixels)
    return wide.reshape(down * rows, across * columns, pixels)[: shape[0], : shape[1]]


def first_where(condition: Tensor, value: float, values: Tensor) -> Tensor:
    """Give `value` where `condition` holds and `values` elsewhere, in the dtype of `values`."""
    return values.masked_fill(condition, value)


def count(mask: Tensor) -> int:
    """Count the true elements."""
    return int(mask.sum())


def every(groups: Tensor) -> Tensor:
    """Tell for each row of (groups, size) whether all of it is true."""
    return groups.all(dim=1)


def filled(shape: tuple[int, ...], value: bool, like: Tensor) -> Tensor:
    """Make a boolean tensor of one value on the device of `like`."""
    return torch.full(shape, value, dtype=torch.bool, device=like.device)
