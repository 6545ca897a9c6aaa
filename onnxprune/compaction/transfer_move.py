"""Transfers of operators that move elements: what was known of an element is known where it goes."""

from __future__ import annotations

import numpy as np

from .facts import Step, transfer
from .known import Array, Known, full_size, known_or_none, regrouped


@transfer("Reshape", "Flatten", "Squeeze", "Unsqueeze")
def reshape(step: Step) -> Known | None:
    """The same elements in row-major order."""
    x = step.x()
    return None if x is None else regrouped(x, step.shape(), step.op.y().shape, step.can_stretch())


@transfer("Transpose")
def transpose(step: Step) -> Known | None:
    """The same elements with other axes."""
    x = step.x()
    if x is None:
        return None
    order = step.op.attr("perm", tuple(reversed(range(len(x.shape)))))
    return x.mapped(lambda a: a.transpose(tuple(order)))


@transfer("Expand")
def expand(step: Step) -> Known | None:
    """The same elements, repeated along new axes and those of length one."""
    x = step.x()
    lead = step.op.y().ndim - step.op.x().ndim
    return None if x is None else x.mapped(lambda a: a.reshape((1,) * lead + a.shape))


@transfer("Tile")
def tile(step: Step) -> Known | None:
    """The same elements over and over; an axis that is uniform stays so."""
    x, times = step.x(), step.op.ints(1)
    if x is None or times is None:
        return None
    steady = all(step.facts.is_fixed(step.op.y().name, k) for k, d in enumerate(x.shape) if d > 1)
    if not steady:
        return None
    repeats = [r if d > 1 else 1 for r, d in zip(times, x.shape, strict=True)]
    return x.mapped(lambda a: np.tile(a, repeats))


@transfer("Concat")
def concat(step: Step) -> Known | None:
    """Known where its part is."""
    at = int(step.op.attr("axis", 1)) % step.op.y().ndim
    parts = [step.blank(k) for k in range(len(step.op.inputs))]
    known = [p for p in parts if p is not None]
    if len(known) < len(parts) or not any(p.mask.any() for p in known):
        return None
    if not all(step.facts.is_fixed(step.op.x(k).name, at) for k in range(len(parts))):
        return None
    others = np.broadcast_shapes(*((*p.shape[:at], 1, *p.shape[at + 1 :]) for p in known))
    wide = [p.stretched((*others[:at], step.shape(k)[at], *others[at + 1 :])) for k, p in enumerate(known)]
    return known_or_none(
        np.concatenate([p.mask for p in wide], axis=at), np.concatenate([p.value for p in wide], axis=at)
    )


@transfer("Split")
def split(step: Step) -> list[Known | None]:
    """Known where the whole is."""
    x = step.x()
    if x is None:
        return [None]
    at = int(step.op.attr("axis", 0)) % len(x.shape)
    found: list[Known | None] = []
    start = 0
    for y in step.op.outputs:
        if y is None:
            break
        found.append(_taken(x, at, np.arange(start, start + y.shape[at])))
        start += y.shape[at]
    return found


def _taken(x: Known, axis: int, index: Array) -> Known:
    """Take indices along an axis; one that is uniform stays so."""
    return x if x.shape[axis] == 1 else x.mapped(lambda a: np.take(a, index, axis=axis))


@transfer("Slice")
def slice_(step: Step) -> Known | None:
    """Known where the whole is. Bounds along an axis that is stored in full must be the same at every run."""
    x = step.x()
    if x is None:
        return None
    op = step.op
    old = "starts" in op.node.attrs
    starts, ends = (op.attr(n) if old else op.fixed_ints(k + 1) for k, n in enumerate(("starts", "ends")))
    axes = op.attr("axes") if old else op.fixed_ints(3)
    steps = op.fixed_ints(4) if not old and op.given(4) else None
    if not old and ((op.given(3) and axes is None) or (op.given(4) and steps is None)):
        return None
    count = len(axes) if axes is not None else len(starts) if starts is not None else op.x(1).shape[0]
    cut = [int(a) % len(x.shape) for a in (axes if axes is not None else range(count))]
    result = x
    for k, axis in enumerate(cut):
        if x.shape[axis] == 1:
            continue
        if starts is None or ends is None or not step.counts(axis):
            return None
        stride = int(steps[k]) if steps is not None else 1
        end = int(ends[k])
        open_end = stride < 0 and end < -x.shape[axis]
        index = np.arange(x.shape[axis])[slice(int(starts[k]), None if open_end else end, stride)]
        result = _taken(result, axis, index)
    return result


@transfer("Gather")
def gather(step: Step) -> Known | None:
    """Constant indices pick what is known; of computed ones, that which is the same whatever they pick."""
    x = step.x()
    if x is None:
        return None
    at = int(step.op.attr("axis", 0)) % len(x.shape)
    rank = step.op.x(1).ndim
    if not step.counts(at):
        return None
    index = step.constant(1)
    if index is not None and x.shape[at] > 1:
        return x.mapped(lambda a: np.take(a, index, axis=at))
    if x.shape[at] > 1:
        first = x.mapped(lambda a: np.take(a, [0], axis=at))
        same = (x.mask & (x.value == first.value)).all(axis=at, keepdims=True)
        x = Known(same, first.value)
    return x.mapped(lambda a: a.reshape(a.shape[:at] + (1,) * rank + a.shape[at + 1 :]))


@transfer("Pad")
def pad(step: Step) -> Known | None:
    """Known where the inside is; the padding is a constant, zero where none is given."""
    x, op = step.x(), step.op
    if x is None:
        return None
    pads = op.attr("pads") if "pads" in op.node.attrs else op.fixed_ints(1)
    axes = op.fixed_ints(3) if op.given(3) else tuple(range(len(x.shape)))
    if pads is None or axes is None:
        return None
    widths = [(0, 0)] * len(x.shape)
    for k, axis in enumerate(axes):
        widths[axis % len(x.shape)] = int(pads[k]), int(pads[k + len(axes)])
    padded = [k for k, w in enumerate(widths) if w != (0, 0)]
    if not padded:
        return x
    uniform = all(x.shape[k] == 1 for k in padded)
    mode = op.attr("mode", "constant")
    if mode != "constant":
        return x if uniform else None
    filler = float(op.attr("value", 0.0))
    if op.given(2):
        given = step.constant(2)
        if given is None:
            return None
        filler = float(given.ravel()[0])
    if uniform and (x.value[x.mask] == filler).all():
        return x
    keep = [k for k in range(len(x.shape)) if k not in padded]
    wide = full_size(x, step.shape(), step.can_stretch(), keep=keep)
    if wide is None or any(w < 0 for pair in widths for w in pair):
        return known_or_none(x.mask & (x.value == filler), x.value) if uniform else None
    return Known(
        np.pad(wide.mask, widths, constant_values=True),
        np.pad(wide.value, widths, constant_values=np.asarray(filler, dtype=wide.value.dtype)),
    )


@transfer("DepthToSpace", "SpaceToDepth")
def blocks(step: Step) -> Known | None:
    """The same elements between channels and positions; all but the batch axis are stored in full for it."""
    x = step.x()
    if x is None or x.shape[0] != 1:
        return None
    wide = full_size(x, step.shape(), step.can_stretch(), keep=(0,))
    if wide is None:
        return None
    value, mask = step.run([wide.value]), step.run([wide.mask.astype(wide.value.dtype)])
    return None if value is None or mask is None else known_or_none(mask != 0, value)


@transfer("Resize", "Upsample")
def resize(step: Step) -> Known | None:
    """A channel that is the same everywhere stays so, whatever the weights of the resampling."""
    x = step.x()
    if x is None or step.op.attr("coordinate_transformation_mode", "") == "tf_crop_and_resize":
        return None
    resampled = [k for k, d in enumerate(step.shape()) if d != step.op.y().shape[k] or k >= 2]
    return x if all(x.shape[k] == 1 for k in resampled) else None
