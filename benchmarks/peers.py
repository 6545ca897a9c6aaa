"""Whole commands side by side: onnxprune, onnxsim's pruning, Torch-Pruning, and onnx.load with onnx.save.

    python benchmarks/peers.py MODELS_DIR --peers-python VENV/bin/python [--names timm_resnet18,...] [--repeats 3]

Every command is a process of its own on one thread and prunes half of every group; the table has the best of repeats.
They take turns, so that whatever else the machine does meets all of them. `cpu` are seconds of the processor, which
other work on the machine changes little, `wall` what a user waits, `MB` the peak of resident memory. A ratio is
onnxprune's cpu seconds over the peer's. `analysis` are seconds inside: `onnxprune.analyze`, the dependency graph of
Torch-Pruning. `latency` is onnxruntime's median time of the pruned model over the original's.

Torch-Pruning has no command: it builds the architecture by its name in timm, prunes and saves it; reading trained
weights is left out. It is asked for the same models, so names are those of timm after `timm_`. The peers' Python has
onnxsim, torch, torch-pruning and timm; this one has onnxprune.
"""

from __future__ import annotations

import argparse
import os
import platform
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

NAMES = (
    "timm_resnet18", "timm_resnet50", "timm_mobilenetv2_100", "timm_regnety_008", "timm_efficientnet_b0",
    "timm_densenet121", "timm_inception_v3", "timm_vit_tiny_patch16_224", "timm_mixer_s32_224",
    "timm_beit_base_patch16_224",
)  # fmt: skip
ONE_THREAD = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}

COPY = """
import sys, onnx
onnx.save(onnx.load(sys.argv[1]), sys.argv[2])
"""
ONNXSIM = """
import sys, onnx
from onnxsim.pruning import apply_structured_pruning
onnx.save(apply_structured_pruning(onnx.load(sys.argv[1]), 0.5), sys.argv[2])
"""
TORCH_PRUNING = """
import sys, time, torch, timm, torch_pruning as tp
torch.set_num_threads(1)
model = timm.create_model(sys.argv[1].split("/")[-1][len("timm_"):-len(".onnx")]).eval()
x = torch.zeros(1, *model.default_cfg["input_size"])
heads = {m.qkv: m.num_heads for m in model.modules() if hasattr(m, "qkv") and hasattr(m, "num_heads")}
start = time.process_time()
tp.DependencyGraph().build_dependency(model, x)
print("analysis", time.process_time() - start)
pruner = tp.pruner.MetaPruner(
    model, x, importance=tp.importance.MagnitudeImportance(p=2), pruning_ratio=0.5, num_heads=heads,
    ignored_layers=[model.get_classifier()],
)
pruner.step()
for m in model.modules():
    if getattr(m, "qkv", None) in heads:
        m.num_heads = pruner.num_heads[m.qkv]
        m.head_dim = m.qkv.out_features // (3 * m.num_heads)
        m.attn_dim = m.num_heads * m.head_dim
torch.save(model, sys.argv[2])
model(x)
"""
EXPORT = """
import sys, torch
torch.set_num_threads(1)
model = torch.load(sys.argv[1], weights_only=False)
x = torch.zeros(1, *model.default_cfg["input_size"])
torch.onnx.export(model, x, sys.argv[2], dynamo=False, opset_version=17)
"""
ANALYZE = """
import sys, time, onnxprune
from onnxprune import rules
model = onnxprune.load(sys.argv[1])
start = time.process_time()
onnxprune.analyze(model)
print("analysis", time.process_time() - start)
"""


LATENCY = """
import statistics, sys, time
import numpy as np, onnxruntime as ort
options = ort.SessionOptions()
options.intra_op_num_threads, options.log_severity_level = 1, 4
sessions = {}
for given in sys.argv[1:]:
    name, path = given.split("=", 1)
    try:
        sessions[name] = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    except Exception as error:
        print(name, str(error)[:100], file=sys.stderr)
times = {name: [] for name in sessions}
for _ in range(7):
    for name, session in sessions.items():
        sizes = {i.name: [d if isinstance(d, int) else 1 for d in i.shape] for i in session.get_inputs()}
        feed = {i: np.zeros(shape, np.float32) for i, shape in sizes.items()}
        start = time.perf_counter()
        session.run(None, feed)
        times[name].append(time.perf_counter() - start)
for name, rows in times.items():
    print(name, 1000 * statistics.median(rows))
"""


@dataclass
class Run:
    """What one process took; `failure` is its last line of stderr, None when it ended well."""

    wall: float
    cpu: float
    megabytes: float
    analysis: float | None = None
    failure: str | None = None


def run(command: list[str]) -> Run:
    """Run one process to its end."""
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        start = time.perf_counter()
        process = subprocess.Popen(command, stdout=out, stderr=err, env={**os.environ, **ONE_THREAD})
        _, status, usage = os.wait4(process.pid, 0)
        wall = time.perf_counter() - start
        process.returncode = os.waitstatus_to_exitcode(status)
        out.seek(0)
        err.seek(0)
        lines = err.read().strip().splitlines() or ["no message"]
        found = [float(line.split()[1]) for line in out.read().splitlines() if line.startswith("analysis ")]
    failure = None if process.returncode == 0 else lines[-1][:100]
    # Linux counts in kilobytes.
    return Run(wall, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1000, found[0] if found else None, failure)


def best(runs: list[Run]) -> Run:
    """Give the smallest of every figure, or the failure."""
    failed = next((r for r in runs if r.failure), None)
    if failed is not None:
        return failed
    seen = [r.analysis for r in runs if r.analysis is not None]
    figures = (min(getattr(r, name) for r in runs) for name in ("wall", "cpu", "megabytes"))
    return Run(*figures, analysis=min(seen) if seen else None)


def latency(paths: dict[str, Path]) -> dict[str, float]:
    """Give the median milliseconds of every model that loads, one after the other in every round."""
    # In a process of its own: what this one holds would count as the memory of those it starts.
    command = [sys.executable, "-c", LATENCY, *(f"{name}={path}" for name, path in paths.items())]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env={**os.environ, **ONE_THREAD})
    rows = (line.rsplit(" ", 1) for line in done.stdout.splitlines())
    return {name: float(milliseconds) for name, milliseconds in rows}


def commands(model: Path, folder: Path, peers: str) -> dict[str, list[str]]:
    """Give the command of everyone, by name."""
    prune = [sys.executable, "-m", "onnxprune", "prune", str(model), "--ratio", "0.5", "--quiet", "-o"]
    return {
        "onnxprune": [*prune, str(folder / "onnxprune.onnx"), "--no-verify"],
        "and proof": [*prune, str(folder / "proof.onnx")],
        "onnxsim": [peers, "-c", ONNXSIM, str(model), str(folder / "onnxsim.onnx")],
        "Torch-Pruning": [peers, "-c", TORCH_PRUNING, str(model), str(folder / "pruned.pt")],
        "load + save": [sys.executable, "-c", COPY, str(model), str(folder / "copy.onnx")],
    }


def measure(model: Path, peers: str, repeats: int) -> None:
    """Print the table of one model."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        every = commands(model, folder, peers)
        runs: dict[str, list[Run]] = {who: [] for who in every}
        for _ in range(repeats):
            for who, command in every.items():
                runs[who].append(run(command))
        rows = {who: best(found) for who, found in runs.items()}
        ours = rows["onnxprune"]
        ours.analysis = best([run([sys.executable, "-c", ANALYZE, str(model)]) for _ in range(repeats)]).analysis
        paths = {"original": model, "onnxprune": folder / "onnxprune.onnx", "onnxsim": folder / "onnxsim.onnx"}
        if rows["Torch-Pruning"].failure is None:
            run([peers, "-c", EXPORT, str(folder / "pruned.pt"), str(folder / "torch.onnx")])
            paths["Torch-Pruning"] = folder / "torch.onnx"
        times = latency({who: path for who, path in paths.items() if path.exists()})
    print(f"\n{model.stem}  {model.stat().st_size / 1e6:.0f} MB, original {times['original']:.1f} ms")
    print(f"    {'':14}{'cpu s':>8}{'wall s':>8}{'MB':>8}{'ratio':>8}{'analysis':>10}{'latency':>9}")
    for who, row in rows.items():
        if row.failure:
            print(f"    {who:14}fails: {row.failure}")
            continue
        analysis = "" if row.analysis is None else f"{row.analysis:.2f}"
        faster = f"{times[who] / times['original']:.2f}" if who in times else ""
        print(
            f"    {who:14}{row.cpu:8.2f}{row.wall:8.2f}{row.megabytes:8.0f}{ours.cpu / row.cpu:8.2f}"
            f"{analysis:>10}{faster:>9}",
            flush=True,
        )


def versions(peers: str) -> str:
    """State what the figures hold for."""
    listed = "import importlib.metadata as m; print(', '.join(f'{n} {m.version(n)}' for n in %r))"
    here = [sys.executable, "-c", listed % (["onnx", "onnxruntime", "numpy", "onnxprune"],)]
    there = [peers, "-c", listed % (["onnxsim", "torch", "torch-pruning", "timm"],)]
    found = [
        subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip() for command in (here, there)
    ]
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    cpu = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), "")
    return (
        f"{cpu}, {os.cpu_count()} cores, {platform.platform()}; Python {platform.python_version()}; {'; '.join(found)}"
    )


def main() -> None:
    """Measure from the command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("models", type=Path)
    parser.add_argument("--peers-python", required=True)
    parser.add_argument("--names", default=",".join(NAMES))
    parser.add_argument("--repeats", type=int, default=3)
    given = parser.parse_args()
    print(versions(given.peers_python))
    for name in given.names.split(","):
        measure(given.models / f"{name}.onnx", given.peers_python, given.repeats)


if __name__ == "__main__":
    main()
