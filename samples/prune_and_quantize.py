"""Prune, then quantize to 8 bits with onnxruntime; one calibration reader serves both.

python samples/prune_and_quantize.py        # writes digits_cnn.half.onnx and digits_cnn.half.int8.onnx
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Any

from onnxruntime.quantization import CalibrationDataReader, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process

import onnxprune
from digits_eval import calibration_feeds, file_accuracy

SOURCE = Path(__file__).with_name("digits_cnn.onnx")
PRUNED = Path("digits_cnn.half.onnx")
QUANTIZED = Path("digits_cnn.half.int8.onnx")


class Digits(CalibrationDataReader):
    """What onnxruntime calibrates with; `rewind` lets it be read again."""

    def __init__(self) -> None:
        self.rewind()

    def rewind(self) -> None:
        self.feeds = iter(calibration_feeds())

    def get_next(self) -> dict[str, Any] | None:
        return next(self.feeds, None)


def main() -> int:
    """Prune with samples, quantize what is left, and measure all three models."""
    reader = Digits()
    result = onnxprune.prune(SOURCE, PRUNED, target={"macs": 0.5}, data=reader)
    print(f"pruned: {sum(len(group.removed) for group in result.plan.groups)} units, verified")

    reader.rewind()
    with tempfile.TemporaryDirectory() as folder:
        prepared = Path(folder, "prepared.onnx")
        quant_pre_process(PRUNED, prepared, skip_symbolic_shape=True)  # onnx's shape inference is enough here
        quantize_static(prepared, QUANTIZED, reader)

    # The weights are other numbers now, so no plan: does it run, with the same interface, close to the original?
    onnxprune.verify(SOURCE, QUANTIZED, data=calibration_feeds()).raise_if_failed()
    for name, path in (("original", SOURCE), ("pruned", PRUNED), ("quantized", QUANTIZED)):
        print(f"{name}: accuracy {file_accuracy(path):.4f}, {path.stat().st_size} bytes")
    return 0


if __name__ == "__main__":
    sys.exit(main())
