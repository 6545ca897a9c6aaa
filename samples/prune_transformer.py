"""Remove whole attention heads and feed-forward features from a transformer, and nothing else.

    python samples/prune_transformer.py        # writes digits_transformer.half.onnx to the current folder

The width of the residual stream stays: LayerNorm takes statistics over it, so cutting it would only be approximate.
"""

from __future__ import annotations

import sys
from pathlib import Path

import onnxprune
from digits_eval import calibration_feeds, file_accuracy

SOURCE = Path(__file__).with_name("digits_transformer.onnx")
TARGET = Path("digits_transformer.half.onnx")


def main() -> int:
    """Prune by a fixed ratio, first as it comes and then with the kept weights repaired; print both accuracies."""
    model, feeds = onnxprune.load(SOURCE), calibration_feeds()
    plan = onnxprune.plan(model, ratio=0.5, kinds=("heads", "features"), criterion="obs", data=feeds)
    for group in plan.groups:
        if group.removed:
            print(f"{group.id}: {len(group.removed)} of {group.size} {group.kind}, exact: {group.exact}")
    if not any(group.kind == "heads" and group.removed for group in plan.groups):
        print("no head was removed", file=sys.stderr)
        return 1

    print(f"accuracy before     {file_accuracy(SOURCE):.4f}")
    for recover in ("none", "lstsq"):
        pruned = onnxprune.apply(model, plan, recover=recover, data=feeds)
        onnxprune.verify(model, pruned, plan=plan, data=feeds).raise_if_failed()
        onnxprune.save(pruned, TARGET)
        print(f"accuracy with {recover:5} {file_accuracy(TARGET):.4f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
