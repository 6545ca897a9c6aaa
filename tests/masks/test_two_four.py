"""Which weights hardware can use, and the packed form taken apart again. Equality with torch is in test_torch."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

import onnxprune
from onnxprune.masks import eligible_2_4, keep_mask, pack_2_4


@pytest.mark.parametrize(
    ("shape", "dtype", "target", "eligible", "words"),
    [
        ((8, 16), "float16", "asp", True, "fits"),
        ((8, 24), "float32", "asp", False, "input size 24 is no multiple of 16"),
        ((12, 16), np.float32, "asp", False, "output size 12 is no multiple of 8"),
        ((16, 32, 3, 3), np.dtype("float32"), "asp", True, "fits"),
        ((64,), "float16", "asp", False, "2 to 5 axes, not 1"),
        ((32, 64), "float16", "cutlass", True, "fits"),
        ((32, 96), "bfloat16", "cutlass", False, "no multiple of 64"),
        ((16, 128), "int8", "cutlass", True, "fits"),
        ((32, 32), "float64", "cutlass", False, "not float64"),
        ((32, 64, 3, 3), "float16", "cutlass", False, "2 axes, not 4"),
        ((48, 16), ml_dtypes.bfloat16, "cusparselt", True, "fits"),
        ((48, 16), ml_dtypes.float8_e4m3fn, "cusparselt", False, "no multiple of 32"),
        ((64, 256, 3, 3), "float16", "tensorrt", True, "fits tensorrt"),
        ((64, 32, 3, 3), "float16", "tensorrt", True, "dense is often as fast"),
        ((64, 6, 3, 3), "float16", "tensorrt", False, "no multiple of 4"),
    ],
)
def test_eligibility_says_why(shape: tuple[int, ...], dtype: object, target: str, eligible: bool, words: str) -> None:
    found = eligible_2_4(shape, dtype, target)
    assert found.eligible is bool(found) is eligible
    assert words in found.reason


def test_grouped_convolutions_and_unknown_targets() -> None:
    found = eligible_2_4((64, 16, 3, 3), "float16", "tensorrt", groups=4)
    assert not found
    assert "4 groups" in found.reason
    with pytest.raises(onnxprune.UnknownNameError, match="Did you mean 'tensorrt'"):
        eligible_2_4((64, 64), "float16", "tensort")


@pytest.mark.parametrize(("dtype", "bits"), [("float16", 16), (ml_dtypes.bfloat16, 16), ("int8", 32)])
def test_packed_weights_hold_every_kept_value_in_place(dtype: object, bits: int) -> None:
    rng = np.random.default_rng(31)
    dense = np.rint(rng.standard_normal((64, 256)) * 40)
    mask = keep_mask(dense, "2:4")
    weight = np.where(mask, dense, 0).astype(dtype)
    packed = pack_2_4(weight, mask)
    assert packed.values.shape == (64, 128)
    assert packed.values.dtype == weight.dtype
    assert packed.metadata.shape == (64, 256 // bits)
    words = packed.metadata.view(np.uint32 if bits == 32 else np.uint16).reshape(-1).astype(np.int64)
    nibbles = (words[:, None] >> (4 * np.arange(bits // 4))) & 15
    # The reordering moves words, not bits: the nibbles of the whole are those of the groups.
    groups = mask.reshape(-1, 4)
    first = np.argmax(groups, axis=1)
    last = 3 - np.argmax(groups[:, ::-1], axis=1)
    np.testing.assert_array_equal(np.sort(nibbles.reshape(-1)), np.sort(first | last << 2))
    np.testing.assert_array_equal(packed.values.reshape(-1), weight.reshape(-1)[mask.reshape(-1)])


def test_what_cannot_be_packed() -> None:
    weight = np.ones((32, 64), np.float16)
    with pytest.raises(onnxprune.OptionError, match="more than 2 of 4"):
        pack_2_4(weight)
    with pytest.raises(onnxprune.OptionError, match="no multiple"):
        pack_2_4(weight[:, :32])
    with pytest.raises(onnxprune.OptionError, match="1:2"):
        pack_2_4(weight.astype(np.float32))
    with pytest.raises(onnxprune.OptionError, match="booleans"):
        pack_2_4(weight, weight)
