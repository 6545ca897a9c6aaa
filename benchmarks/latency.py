"""Time pruned models beside their originals: at fixed ratios with aligned widths, and for a latency asked for.

    python benchmarks/latency.py MODEL [MODEL ...] [--target 0.7] [--ratios 0.1,0.2,0.3,0.5] [--threads 1] [--json]

Both models run in turns in one process, on one random sample; printed is the median over these pairs of after /
before, so that a changing speed cancels. `asked` is the ratio at which the search for a latency was content,
`timed` that of the same model timed anew with a session of its own, `macs` what is left of them. Nothing here passes or
fails on a time. A ratio is above 1 where the pruned model is slower.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import time
from pathlib import Path
from typing import Any

for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(variable, "1")  # before numpy is imported
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
import onnxruntime as ort

import onnxprune
from onnxprune.search import Clock

RATIOS = "0.1,0.2,0.3,0.5"
Row = dict[str, Any]


def machine(threads: int | None) -> dict[str, Any]:
    """State what the figures hold for."""
    names = Path("/proc/cpuinfo").read_text(encoding="utf-8") if Path("/proc/cpuinfo").exists() else ""
    cpu = next((line.split(":", 1)[1].strip() for line in names.splitlines() if line.startswith("model name")), "")
    flags = next((line for line in names.splitlines() if line.startswith("flags")), "")
    return {
        "cpu": f"{cpu or platform.processor() or platform.machine()}, {os.cpu_count()} cores",
        "vectors": next((name for name in ("avx512f", "avx2") if name in flags.split()), "unknown"),
        "threads": threads or "onnxruntime's choice",
        "load": round(os.getloadavg()[0], 1) if hasattr(os, "getloadavg") else None,
        "python": platform.python_version(),
        "numpy": np.__version__,
        "onnxprune": onnxprune.__version__,
        "onnxruntime": ort.__version__,
    }


def time_model(path: Path, options: argparse.Namespace) -> Row:
    """Time one model at every ratio, and the one that the search for a latency gives."""
    model = onnxprune.load(path)
    analysis = onnxprune.analyze(model)
    shapes = dict(analysis.collection.shapes.input_shapes) or None
    clock = Clock(model, input_shapes=shapes, threads=options.threads)
    row: Row = {"model": path.stem}
    for ratio in options.ratios:
        plan = onnxprune.plan(analysis, ratio=ratio, round_to=options.round_to)
        found = clock(onnxprune.apply(analysis, plan), options.seconds)
        row.setdefault("ms", round(found.before, 3))
        row[f"at_{ratio:g}"] = round(found.ratio, 3)
    if options.target is not None:
        start = time.perf_counter()
        try:
            plan = onnxprune.plan(analysis, target={"latency": options.target}, threads=options.threads)
        except onnxprune.TargetError as error:
            row["error"] = str(error)
            return row
        assert plan.trade is not None
        row["search_s"] = round(time.perf_counter() - start, 1)
        smaller = onnxprune.apply(analysis, plan)
        row["macs"] = round(plan.trade.chosen, 3)
        row["asked"] = round(plan.trade.figures["ratio"], 3)
        row["timed"] = round(clock(smaller, 3 * options.seconds).ratio, 3)
        row["models"] = len(plan.trade.points)
    return row


def main(arguments: list[str] | None = None) -> int:
    """Time every model and print a table, or one JSON document."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("models", type=Path, metavar="MODEL", nargs="+", help="an .onnx file")
    parser.add_argument("--target", type=float, metavar="F", help="latency to search for, as a fraction")
    parser.add_argument("--ratios", default=RATIOS, help=f"fractions to remove, separated by commas (default {RATIOS})")
    parser.add_argument("--round-to", default="auto", help="alignment at the ratios (default auto)")
    parser.add_argument("--threads", type=int, help="threads of onnxruntime")
    parser.add_argument("--seconds", type=float, default=4.0, help="seconds for one pair of models (default 4)")
    parser.add_argument("--json", action="store_true", help="print one JSON document instead of the table")
    options = parser.parse_args(arguments)
    options.ratios = [float(text) for text in options.ratios.split(",") if text]
    options.round_to = int(options.round_to) if options.round_to.isdecimal() else options.round_to
    columns = ["ms", *(f"at_{ratio:g}" for ratio in options.ratios)] if options.ratios else []
    columns += ["macs", "asked", "timed", "models", "search_s"] if options.target is not None else []
    if not options.json:
        print(*(f"{key}: {value}" for key, value in machine(options.threads).items()), sep="\n")
        print("\n" + "model".ljust(34) + "".join(name.rjust(9) for name in columns), flush=True)
    rows = []
    for path in options.models:
        row = time_model(path, options)
        rows.append(row)
        if not options.json:
            cells = "".join(str(row.get(name, "-")).rjust(9) for name in columns)
            print(row["model"][:33].ljust(34) + cells + ("  " + row["error"] if "error" in row else ""), flush=True)
    if options.json:
        print(json.dumps({"machine": machine(options.threads), "models": rows}, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
