"""Runs that are killed at random moments: what is left is the old output or the new one, whole.

    python benchmarks/kills.py --count 200

A child writes a model of some megabytes over one that is there, again and again, and gets SIGKILL after a random time.
After every kill the output must be one of the two known contents, data file included, and load in onnxruntime. Half of
the kills hit outputs with a data file.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

MEGABYTES = 4
WRITER = """
import sys
sys.path.insert(0, sys.argv[1])
import onnxprune
models = [onnxprune.load(path) for path in sys.argv[3:5]]
print("ready", flush=True)
k = 0
while True:
    onnxprune.save(models[k % 2], sys.argv[2], external_data=sys.argv[5] == "external")
    k += 1
"""


def make_model(path: Path, value: float) -> None:
    import numpy as np
    from onnx import TensorProto, helper, numpy_helper, save

    n = MEGABYTES << 18
    weights = numpy_helper.from_array(np.full((n // 256, 256), value, np.float32), "w")
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, n // 256])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 256])
    graph = helper.make_graph([helper.make_node("MatMul", ["x", "w"], ["y"])], "g", [x], [y], [weights])
    save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), path)


def digest(path: Path) -> str:
    """Give the digest of what a model computes with, wherever its data lies."""
    import onnxprune

    model = onnxprune.load(path)
    return hashlib.sha256(model.array("w").tobytes()).hexdigest()


def save(source: Path, out: Path, how: str) -> None:
    import onnxprune

    onnxprune.save(onnxprune.load(source), out, external_data=how == "external")


def kill_runs(count: int, how: str, rng: random.Random) -> dict[str, int]:
    """Kill `count` writers, and count what is left."""
    import onnxruntime as ort

    tally = {"old or new": 0, "damaged": 0, "runs that left a file in the making": 0}
    with tempfile.TemporaryDirectory() as text:
        folder = Path(text)
        sources = [folder / "a.onnx", folder / "b.onnx"]
        for k, source in enumerate(sources):
            make_model(source, 0.5 + k)
        (folder / "out").mkdir()
        states = {digest(source) for source in sources}
        assert len(states) == 2
        out = folder / "out" / "out.onnx"
        save(sources[0], out, how)
        done = 0
        while done < count:
            command = [sys.executable, "-c", WRITER, str(ROOT), str(out), *map(str, sources), how]
            with subprocess.Popen(command, stdout=subprocess.PIPE) as child:
                assert child.stdout is not None
                child.stdout.readline()
                time.sleep(rng.random() * 0.2)
                os.kill(child.pid, signal.SIGKILL)
                child.wait()
            done += 1
            try:
                whole = digest(out) in states
                ort.InferenceSession(str(out), providers=["CPUExecutionProvider"])
            except Exception as error:  # noqa: BLE001 - whatever it is, the output is damaged
                print(error)
                whole = False
            tally["old or new" if whole else "damaged"] += 1
            tally["runs that left a file in the making"] += any(out.parent.glob(".*.partial"))
        save(sources[0], out, how)
        tally["files in the making after the next run"] = len(list(out.parent.glob(".*.partial")))
        tally["files at the end"] = len(list(out.parent.iterdir()))
    return tally


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    rng = random.Random(given.seed)  # noqa: S311 - moments, not secrets
    damaged = 0
    for how in ("inline", "external"):
        tally = kill_runs(given.count // 2, how, rng)
        damaged += tally["damaged"]
        print(f"{how}: " + ", ".join(f"{name} {n}" for name, n in tally.items()))
    return 1 if damaged else 0


if __name__ == "__main__":
    sys.exit(main())
