"""Make files smaller that masked training in PyTorch has left at full size, without changing an output.

`digits_masked_ao.onnx` was masked by torch.ao's structured sparsifier, `digits_masked_prune.onnx` by
torch.nn.utils.prune; `train_digits_masked.py` made both.

python samples/compact_masked.py        # writes *.compact.onnx to the current folder
"""

from __future__ import annotations

import sys
from pathlib import Path

import onnxprune
from digits_eval import calibration_feeds, file_accuracy

SOURCES = [Path(__file__).with_name(f"digits_masked_{name}.onnx") for name in ("ao", "prune")]


def main() -> int:
    """Compact, verify, save; print what went, what stayed and why."""
    smaller = True
    for source in SOURCES:
        target = Path(f"{source.stem}.compact.onnx")
        result = onnxprune.compact(source, target, data=calibration_feeds())
        print(source.name)
        for group in result.groups:
            went = ", ".join(f"{len(units)} {how}" for how, units in group.removed.items())
            print(f"  {group.id}: {group.size} {group.kind}, gone: {went or 'none'}")
            for unit, reason in group.kept:
                print(f"    unit {unit} stays: {reason}")
        print(f"  parameters {result.report.params['before']} to {result.report.params['after']}")
        print(f"  bytes {source.stat().st_size} to {target.stat().st_size}")
        print(f"  {result.report.checks[-1].name}: {result.report.checks[-1].detail}")
        print(f"  accuracy {file_accuracy(source):.4f} to {file_accuracy(target):.4f}")
        smaller = smaller and 2 * target.stat().st_size < source.stat().st_size
    return 0 if smaller else 1


if __name__ == "__main__":
    sys.exit(main())
