"""Masks: which weights survive. Plain arrays in, boolean arrays out, nothing of ONNX.

A `Pattern` says where zeros may fall and makes a keep mask from scores; `keep_mask` scores and masks one weight,
`keep_masks` shares a sparsity between many.
"""

from .allocate import keep_masks
from .band import NearlyDiagonal
from .blocks import Blocks, PerRow, heads
from .groups import NofM, VNofM
from .interchange import load_masks, masks_from_state_dict, masks_to_state_dict, save_masks
from .keep import keep_mask
from .measure import Measured, measure
from .pattern import Pattern, UnitPattern
from .patterns import parse_pattern, pattern, patterns
from .rule import Rule
from .schedules import Schedule
from .transposable import Transposable
from .two_four import Eligibility, eligible_2_4, pack_2_4

__all__ = [
    "Blocks",
    "Eligibility",
    "Measured",
    "NearlyDiagonal",
    "NofM",
    "Pattern",
    "PerRow",
    "Rule",
    "Schedule",
    "Transposable",
    "UnitPattern",
    "VNofM",
    "eligible_2_4",
    "heads",
    "keep_mask",
    "keep_masks",
    "load_masks",
    "masks_from_state_dict",
    "masks_to_state_dict",
    "measure",
    "pack_2_4",
    "parse_pattern",
    "pattern",
    "patterns",
    "save_masks",
]
