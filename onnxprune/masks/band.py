"""A band around the diagonal: the one pattern that looks at no score."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..errors import OptionError
from .pattern import DEFAULT_RULE, Array, Pattern, kernels_for, logical_shape
from .rule import Rule


@dataclass(frozen=True)
class NearlyDiagonal(Pattern):
    """Keep where |output - input| <= nearliness // 2, at every kernel pixel; any sparsity asked for is ignored.

    `nearliness` is odd: the width of the band. Raises `OptionError` where it is not, or where half of it is no less
    than the shorter side of the weight. Source: torch.ao.pruning.NearlyDiagonalSparsifier.
    """

    nearliness: int = 1

    def __post_init__(self) -> None:
        """Refuse widths that no band has."""
        if self.nearliness < 1 or self.nearliness % 2 == 0:
            raise OptionError(f"a band is {self.nearliness} wide; give an odd number of 1 or more")

    def keep(
        self, scores: Array, sparsity: float | None = None, locked: Array | None = None, *, rule: Rule = DEFAULT_RULE
    ) -> Array:
        """Keep the band."""
        del sparsity, rule
        shape = tuple(scores.shape)
        out, into, _ = logical_shape(shape)
        if len(shape) < 2 or self.nearliness // 2 >= min(out, into):
            raise OptionError(
                f"a band of width {self.nearliness} does not fit a weight of shape {shape}: half of it must be less "
                f"than both sides; the widest that fits is {max(1, 2 * min(out, into) - 1)}"
            )
        distance = np.abs(np.subtract.outer(np.arange(out), np.arange(into)))
        band = (distance <= self.nearliness // 2).reshape(out, into, *[1] * (len(shape) - 2))
        mask = kernels_for(scores).filled(shape, True, scores)
        if not isinstance(scores, np.ndarray):
            import torch

            band = torch.from_numpy(band).to(scores.device)
        mask &= band
        return mask if locked is None else mask & ~locked
