"""How far outputs are from those of the original, as something to take gradients of."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from ..recover.outputs import Head

Tensor = Any
TINY = 1e-30


class Loss:
    """The mean over the outputs of: squared error over the variance, and for a Softmax the divergence as well.

    `variances` are those of the outputs of the original. Outputs that are no floats do not count.
    Source: Hinton et al., Distilling the Knowledge in a Neural Network, arXiv 1503.02531, section 2, at temperature 1.
    """

    def __init__(self, heads: Sequence[Head], variances: Sequence[float]) -> None:
        self._heads, self._variances = list(heads), list(variances)

    def __call__(self, made: Sequence[Tensor], wanted: Sequence[Tensor]) -> Tensor:
        """Give a scalar for the outputs of one batch."""
        total = torch.zeros(())
        n = 0
        for head, variance, y, t in zip(self._heads, self._variances, made, wanted, strict=True):
            if not t.is_floating_point():
                continue
            n += 1
            total = total + torch.square(y - t).mean() / max(variance, TINY)
            if head.squash in ("Softmax", "LogSoftmax"):
                log_p, log_q = torch.log_softmax(t, head.axis), torch.log_softmax(y, head.axis)
                total = total + (log_p.exp() * (log_p - log_q)).sum(head.axis).mean()
        return total / max(1, n)
