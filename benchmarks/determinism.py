"""Determinism: the same bytes, whatever the run, the threads, the process and the order of hashes.

    python benchmarks/determinism.py MODEL.onnx ... [--commands prune,compact] [--data random:4]

Every command runs under settings that must not matter, each in a process of its own. A row says how many outputs
differ in any byte.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SETTINGS: tuple[dict[str, str], ...] = (
    {},
    {"PYTHONHASHSEED": "1"},
    {"PYTHONHASHSEED": "2", "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
    {"PYTHONHASHSEED": "3", "OMP_NUM_THREADS": "2", "OPENBLAS_NUM_THREADS": "2"},
)
THREADS = (None, "1", "2", "1")
COMMANDS = {
    "prune": ["prune", "{model}", "-o", "{out}", "--ratio", "0.4", "--no-verify"],
    "prune with data": ["prune", "{model}", "-o", "{out}", "--ratio", "0.4", "--no-verify", "--data", "{data}"],
    "compact": ["compact", "{model}", "-o", "{out}", "--no-verify"],
    "sparsify": ["sparsify", "{model}", "-o", "{out}", "--sparsity", "0.5", "--no-verify"],
    "sparsify with data": [
        *["sparsify", "{model}", "-o", "{out}", "--pattern", "2:4", "--criterion", "sparsegpt", "--no-verify"],
        *["--data", "{data}"],
    ],
    "mask": ["mask", "{model}", "--plan", "{plan}", "-o", "{out}"],
}
HAVE_THREADS = ("prune", "prune with data")


def run(arguments: list[str], setting: dict[str, str]) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, **setting, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "onnxprune", *arguments, "--quiet"]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


def outputs(model: Path, name: str, data: str, folder: Path) -> list[str]:
    """Run one command under every setting, and give a digest of each output, or what it said instead."""
    plan = folder / "plan.json"
    if name == "mask":
        run(["prune", str(model), "--ratio", "0.4", "--save-plan", str(plan), "--dry-run"], {})
    found = []
    for setting, threads in zip(SETTINGS, THREADS, strict=True):
        out = folder / "out.onnx"
        out.unlink(missing_ok=True)
        arguments = [a.format(model=model, out=out, data=data, plan=plan) for a in COMMANDS[name]]
        if threads is not None and name in HAVE_THREADS:
            arguments += ["--threads", threads]
        done = run(arguments, setting)
        ended = f"exit code {done.returncode}: {done.stderr.strip()[:150]}"
        found.append(hashlib.sha256(out.read_bytes()).hexdigest() if out.exists() else ended)
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="+", type=Path)
    parser.add_argument("--commands", default=",".join(COMMANDS))
    parser.add_argument("--data", default="random:4")
    given = parser.parse_args()
    differ = 0
    print(f"{len(SETTINGS)} runs each: hash seeds, 1 and 2 threads of onnxruntime and of BLAS, own processes")
    for model in given.models:
        for name in given.commands.split(","):
            began = time.monotonic()
            with tempfile.TemporaryDirectory() as folder:
                found = outputs(model, name, given.data, Path(folder))
            kinds = sorted(set(found), key=found.index)
            differ += len(kinds) > 1
            what = "same" if len(kinds) == 1 else f"{len(kinds)} DIFFERENT"
            note = "" if len(kinds[0]) == 64 else kinds[0]
            print(
                f"{model.stem:22} {name:20} {what:12} {kinds[0][:12]} {time.monotonic() - began:6.1f} s {note}",
                flush=True,
            )
    return 1 if differ else 0


if __name__ == "__main__":
    sys.exit(main())
