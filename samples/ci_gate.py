"""Fail a build when a pruned model is wrong, or lost too much accuracy, or did not get faster.

    python samples/ci_gate.py samples/digits_cnn.onnx pruned.onnx --plan plan.json --min-accuracy 0.98 --max-latency 0.9

Both limits are fractions of the original's figure. Exit codes are those of `onnxprune verify`: 0 good; 1 a check or a
limit failed; 2 an argument is wrong; 3 a file cannot be used. `verdict.json` is what a build server keeps.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent


def main() -> int:
    """Run `onnxprune verify`, keep what it found, and hold its figures against the limits."""
    parser = argparse.ArgumentParser(description="Fail a build when a pruned model regresses.")
    parser.add_argument("original")
    parser.add_argument("pruned")
    parser.add_argument("--plan", required=True)
    parser.add_argument("--data", default=str(HERE / "digits_calibration.npz"))
    parser.add_argument("--metric", default=f"{HERE / 'digits_eval.py'}:accuracy")
    parser.add_argument("--min-accuracy", type=float, default=0.98)
    parser.add_argument("--max-latency", type=float, default=1.0)
    parser.add_argument("--verdict", default="verdict.json")
    given = parser.parse_args()

    command = ["verify", given.original, given.pruned, "--plan", given.plan, "--data", given.data]
    command += ["--metric", given.metric, "--latency", "--threads", "1", "--json"]
    # A list and no shell: file names from a build need no quoting.
    done = subprocess.run([sys.executable, "-m", "onnxprune", *command], stdout=subprocess.PIPE, text=True, check=False)  # noqa: S603
    if not done.stdout:  # codes 2 and 3: what is wrong is on stderr already
        return done.returncode
    Path(given.verdict).write_text(done.stdout, encoding="utf-8")
    found = json.loads(done.stdout)
    failed = [f"{check['name']}: {check['detail']}" for check in found["checks"] if not check["ok"]]
    accuracy, latency = found["metric"], found["latency_ms"]
    if accuracy is not None and accuracy["ratio"] < given.min_accuracy:
        failed.append(f"accuracy is {accuracy['ratio']:.4f} of the original's; {given.min_accuracy} is the least")
    if latency is not None and latency["ratio"] > given.max_latency:
        failed.append(f"latency is {latency['ratio']:.4f} of the original's; {given.max_latency} is the most")
    if accuracy is not None:
        print(f"accuracy {accuracy['before']:.4f} to {accuracy['after']:.4f}")
    if latency is not None:
        print(f"latency {latency['before']:.4f} ms to {latency['after']:.4f} ms")
    for reason in failed:
        print(f"FAILED: {reason}", file=sys.stderr)
    return 1 if failed else done.returncode


if __name__ == "__main__":
    sys.exit(main())
