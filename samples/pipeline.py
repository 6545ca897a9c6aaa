"""Prune as one step of a build: five calls, a quality gate, and an exit code that a build server understands.

    python samples/pipeline.py samples/digits_transformer.onnx pruned.onnx

Exit codes: 0 written and good enough; 1 pruned, but a check or the gate failed; 2 an argument is wrong; 3 the input
cannot be used.
"""

from __future__ import annotations

import sys
from pathlib import Path

import onnxprune
from digits_eval import calibration_feeds, file_accuracy

MAX_ACCURACY_LOSS = 0.02


def build(source: Path, target: Path) -> None:
    """Write `target`, which is `source` less a quarter of the features of every feed-forward part.

    Raises `onnxprune.OnnxPruneError` when a stage fails or the pruned model is not good enough.
    """
    model = onnxprune.load(source)
    groups = onnxprune.analyze(model)
    if not groups.groups:
        raise onnxprune.ModelError(f"{source}: nothing can be pruned; try: onnxprune inspect {source}")
    plan = onnxprune.plan(model, ratio=0.25, kinds=("features",), criterion="fpgm")
    pruned = onnxprune.apply(model, plan)
    onnxprune.verify(model, pruned, plan=plan, data=calibration_feeds()).raise_if_failed()
    onnxprune.save(pruned, target)

    before, after = file_accuracy(source), file_accuracy(target)
    print(f"accuracy {before:.4f} to {after:.4f}, bytes {source.stat().st_size} to {target.stat().st_size}")
    if after < before - MAX_ACCURACY_LOSS:
        target.unlink()
        raise onnxprune.VerificationError(
            f"{target}: accuracy fell by {before - after:.4f}; {MAX_ACCURACY_LOSS} is allowed"
        )


def main(arguments: list[str]) -> int:
    """Run `build` and turn its errors into exit codes."""
    if len(arguments) != 2:
        print("usage: pipeline.py SOURCE.onnx TARGET.onnx", file=sys.stderr)
        return 2
    try:
        build(Path(arguments[0]), Path(arguments[1]))
    except onnxprune.OnnxPruneError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
