"""Prune a convolutional network to half its multiply-accumulates in one call.

The result computes exactly what the original computes with the removed channels zeroed. That is not yet an accurate
network: half of a small one is a lot, and the weights that stay are as they were. Fine-tuning would come next.

python samples/prune_cnn.py        # writes digits_cnn.half.onnx to the current folder
"""

from __future__ import annotations

import sys
from pathlib import Path

import onnxprune
from digits_eval import calibration_feeds, file_accuracy

SOURCE = Path(__file__).with_name("digits_cnn.onnx")
TARGET = Path("digits_cnn.half.onnx")


def main() -> int:
    """Prune, save, verify; print what was found, removed and verified."""
    analysis = onnxprune.analyze(onnxprune.load(SOURCE))
    print("found")
    for group in analysis.groups:
        print(f"  {group.id}: {group.size} {group.kind} across {len(group.members)} initializer axes")
    print(f"  and {len(analysis.locked)} locked axes, such as:")
    for locked in analysis.locked[:2]:
        print(f"  {locked.initializer} axis {locked.axis}: {locked.reason}")

    result = onnxprune.prune(SOURCE, target={"macs": 0.5})
    onnxprune.save(result.model, TARGET)

    print("removed")
    for group in result.plan.groups:
        if group.removed:
            print(f"  {group.id}: {len(group.removed)} of {group.size} {group.kind}")
    smaller = onnxprune.analyze(result.model).cost
    print(f"  MACs {analysis.cost.macs} to {smaller.macs}, parameters {analysis.cost.params} to {smaller.params}")

    onnxprune.verify(SOURCE, TARGET, plan=result.plan, data=calibration_feeds()).raise_if_failed()
    print("verified")
    print(f"  accuracy {file_accuracy(SOURCE):.4f} to {file_accuracy(TARGET):.4f}")
    return 0 if 2 * smaller.macs <= analysis.cost.macs else 1


if __name__ == "__main__":
    sys.exit(main())
