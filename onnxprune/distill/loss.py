"""How far outputs are from those of the original, as something to take gradients of."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from ..recover.outputs import Head
from .anchors import Anchor

Tensor = Any
TINY = 1e-30


class Loss:
    """The mean over the outputs of: squared error over the variance, and for a Softmax the divergence as well.

    `variances` are those of the outputs of the original. Outputs that are no floats do not count. The tensors behind
    the outputs are `anchors`: their mean squared error over the variance is added, times `weight`.
    Source: Hinton et al., Distilling the Knowledge in a Neural Network, arXiv 1503.02531, section 2, at temperature 1.
    """

    def __init__(self, heads: Sequence[Head], variances: Sequence[float], anchors: Sequence[Anchor] = ()) -> None:
        self._heads, self._variances, self._anchors = list(heads), list(variances), list(anchors)
        self.weight = 0.0

    def __call__(self, made: Sequence[Tensor], wanted: Sequence[Tensor]) -> Tensor:
        """Give a scalar for the outputs and anchors of one batch."""
        return self.at_outputs(made, wanted) + self.weight * self.at_anchors(made, wanted)

    def at_anchors(self, made: Sequence[Tensor], wanted: Sequence[Tensor]) -> Tensor:
        """Give the part of the anchors alone, before it is weighted."""
        n = len(self._heads)
        pairs = zip(self._anchors, made[n:], wanted[n:], strict=True)
        errors = [torch.square(y - t).mean() / anchor.variance for anchor, y, t in pairs]
        return sum(errors, torch.zeros(())) / max(1, len(errors))

    def at_outputs(self, made: Sequence[Tensor], wanted: Sequence[Tensor]) -> Tensor:
        """Give the part of the outputs alone."""
        parts = [torch.zeros(())]
        for head, y, t in zip(self._heads, made, wanted, strict=False):
            if head.squash in ("Softmax", "LogSoftmax"):
                log_p, log_q = torch.log_softmax(t, head.axis), torch.log_softmax(y, head.axis)
                parts.append((log_p.exp() * (log_p - log_q)).sum(head.axis).mean())
        return self.squared(made, wanted) + sum(parts) / max(1, len(self._floats(wanted)))

    def squared(self, made: Sequence[Tensor], wanted: Sequence[Tensor]) -> Tensor:
        """Give the squared error of the outputs over their variance alone."""
        at = self._floats(wanted)
        parts = [torch.square(made[k] - wanted[k]).mean() / max(self._variances[k], TINY) for k in at]
        return sum(parts, torch.zeros(())) / max(1, len(at))

    def _floats(self, wanted: Sequence[Tensor]) -> list[int]:
        return [k for k in range(len(self._heads)) if wanted[k].is_floating_point()]
