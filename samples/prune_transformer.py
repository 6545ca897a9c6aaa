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
    """Prune half of all heads and features, verify, save, and print what went and what it cost."""
    model = onnxprune.load(SOURCE)
    plan = onnxprune.plan(model, ratio=0.5, kinds=("heads", "features"), criterion="fpgm")
    for group in plan.groups:
        if group.removed:
            print(f"{group.id}: {len(group.removed)} of {group.size} {group.kind}, exact: {group.exact}")
    if not any(group.kind == "heads" and group.removed for group in plan.groups):
        print("no head was removed", file=sys.stderr)
        return 1

    pruned = onnxprune.apply(model, plan)
    onnxprune.verify(model, pruned, plan=plan, data=calibration_feeds()).raise_if_failed()
    onnxprune.save(pruned, TARGET)
    print(f"verified; accuracy {file_accuracy(SOURCE):.4f} to {file_accuracy(TARGET):.4f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
