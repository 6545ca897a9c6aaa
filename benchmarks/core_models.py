"""Measure the package on a folder of models: speed of analysis, what pruning leaves, proof, targets, invariants.

    python benchmarks/core_models.py MODELS_DIR [--baseline baseline.csv] [--names FILE] [--only PART] [--json]

Everything goes through the public interface, one model after the other in this process, on one thread. Times are what
this machine gave; nothing here passes or fails on one.

Parts and their columns:

- analysis: nodes; seconds to analyze (median of three, loading left out), per thousand nodes; groups; locked axes
- kept: parameters kept at the ratio, inexact groups included; the peer's figure from the baseline; whether kept is at
  most the peer's + 0.03; exit code of verification
- exact: parameters kept with exact groups only, exit code of verification, masked-twin error relative to output range
- targets: where macs and params land when half may remain: exact groups only (e), inexact ones too (i), the same with
  round_to=8 (e8, i8); ">x" is out of reach, x the least that a ratio of 0.9 gives
- empty: whether an empty plan writes the file back byte for byte
- order: whether the groups are the same after shuffling the nodes, their names and numbering included
"""

from __future__ import annotations

import argparse
import csv
import gc
import json
import os
import platform
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(variable, "1")  # before numpy is imported

import numpy as np
import onnx
import onnxruntime as ort

import onnxprune

TARGET = 0.5
SLACK = 0.03
REPEATS = 3
LARGEST_RATIO = 0.9
VARIANTS: dict[str, dict[str, Any]] = {
    "e": {},
    "e8": {"round_to": 8},
    "i": {"allow_inexact": True},
    "i8": {"allow_inexact": True, "round_to": 8},
}
Row = dict[str, Any]


def machine() -> dict[str, str]:
    """State what the figures hold for."""
    names = Path("/proc/cpuinfo").read_text(encoding="utf-8") if Path("/proc/cpuinfo").exists() else ""
    cpu = next((line.split(":", 1)[1].strip() for line in names.splitlines() if line.startswith("model name")), "")
    return {
        "cpu": f"{cpu or platform.processor() or platform.machine()}, {os.cpu_count()} cores, 1 thread used",
        "system": platform.system(),
        "python": platform.python_version(),
        "onnxprune": onnxprune.__version__,
        "onnx": onnx.__version__,
        "onnxruntime": ort.__version__,
        "numpy": np.__version__,
    }


def analysis(path: Path, row: Row, _: argparse.Namespace) -> None:
    model = onnxprune.load(path)
    seconds = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        found = onnxprune.analyze(model)
        seconds.append(time.perf_counter() - start)
    row["nodes"] = len(model.proto.graph.node)
    row["seconds"] = round(statistics.median(seconds), 4)
    row["s_per_1k"] = round(1000 * row["seconds"] / max(1, row["nodes"]), 3)
    row["groups"] = len(found.groups)
    row["locked"] = len(found.locked)


def kept(path: Path, row: Row, options: argparse.Namespace) -> None:
    share, verdict = halved(path, options, allow_inexact=True)
    row["kept"] = share
    peer = options.peers.get(path.stem)
    row["peer"] = peer
    row["good"] = None if peer is None or share is None else share <= peer + SLACK
    row["exit"] = None if verdict is None else int(not verdict.ok)
    if verdict is not None and not verdict.ok:
        row["failed"] = "; ".join(f"{check.name}: {check.detail}" for check in verdict.failures)


def exact(path: Path, row: Row, options: argparse.Namespace) -> None:
    share, verdict = halved(path, options, allow_inexact=False)
    row["kept_exact"] = share
    row["exit_exact"] = None if verdict is None else int(not verdict.ok)
    row["twin_error"] = verdict.exact["max_rel"] if verdict is not None and verdict.exact else None
    if verdict is not None and not verdict.ok:
        row["failed_exact"] = "; ".join(f"{check.name}: {check.detail}" for check in verdict.failures)


def halved(path: Path, options: argparse.Namespace, *, allow_inexact: bool) -> tuple[float | None, Any]:
    """Prune by the ratio and verify; give the share of parameters kept, and the verdict."""
    model = onnxprune.load(path)
    found = onnxprune.analyze(model)
    try:
        plan = onnxprune.plan(found, ratio=options.ratio, allow_inexact=allow_inexact)
    except onnxprune.NotMetError:
        return None, None
    pruned = onnxprune.apply(found, plan)
    share = onnxprune.analyze(pruned).cost.params / found.cost.params
    return round(share, 4), onnxprune.verify(model, pruned, plan=plan, threads=1)


def targets(path: Path, row: Row, _: argparse.Namespace) -> None:
    found = onnxprune.analyze(onnxprune.load(path))
    for metric in ("macs", "params"):
        for name, choice in VARIANTS.items():
            row[f"{metric}_{name}"] = landing(found, metric, choice)


def landing(found: Any, metric: str, choice: Row) -> float | str | None:
    """Give the fraction that a target leaves, ">x" when it is out of reach, None when nothing can be pruned."""
    try:
        plan = onnxprune.plan(found, target={metric: TARGET}, **choice)
    except onnxprune.TargetError:
        plan = onnxprune.plan(found, ratio=LARGEST_RATIO, **choice)
        return f">{fraction(found, plan, metric):.3f}"
    except onnxprune.NotMetError:
        return None
    return round(fraction(found, plan, metric), 4)


def fraction(found: Any, plan: onnxprune.Plan, metric: str) -> float:
    """Count what a plan leaves of a metric, as a fraction."""
    left = found.costs(found.alive({group.id: group.removed for group in plan.groups}))
    return float(getattr(left, metric) / max(1, getattr(found.cost, metric)))


def empty(path: Path, row: Row, _: argparse.Namespace) -> None:
    model = onnxprune.load(path)
    same = onnxprune.apply(model, onnxprune.plan(model, ratio=0.0))
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "same.onnx"
        onnxprune.save(same, copy)
        row["empty"] = copy.read_bytes() == path.read_bytes()


def order(path: Path, row: Row, _: argparse.Namespace) -> None:
    before = signature(onnxprune.analyze(onnxprune.load(path)))
    model = onnx.load(path)
    nodes = list(shuffled(model.graph, random.Random(0)))  # noqa: S311  no secret
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    row["order"] = before == signature(onnxprune.analyze(onnxprune.load(model)))


def shuffled(graph: onnx.GraphProto, chance: random.Random) -> Iterator[onnx.NodeProto]:
    """Give the nodes in a random order that still has every value written before it is read."""
    waiting = {name: k for k, node in enumerate(graph.node) for name in node.output if name}
    missing = [{waiting[n] for n in names_read(node) if n in waiting} for node in graph.node]
    readers: dict[int, list[int]] = {}
    for k, needed in enumerate(missing):
        for source in needed:
            readers.setdefault(source, []).append(k)
    ready = [k for k, needed in enumerate(missing) if not needed]
    while ready:
        k = ready.pop(chance.randrange(len(ready)))
        copy = onnx.NodeProto()
        copy.CopyFrom(graph.node[k])
        yield copy
        for reader in readers.get(k, ()):
            missing[reader].discard(k)
            if not missing[reader]:
                ready.append(reader)


def names_read(node: onnx.NodeProto) -> Iterator[str]:
    """List the values that a node reads, those of its bodies included."""
    yield from (name for name in node.input if name)
    for attribute in node.attribute:
        for inner in attribute.g.node:
            yield from names_read(inner)
        yield from (output.name for output in attribute.g.output)


def signature(found: Any) -> list[Any]:
    """Describe groups so that equal ones compare equal: names, order, and which indices go together."""
    return [
        (
            group.id,
            group.kind,
            group.size,
            group.exact,
            sorted((m.initializer, m.axis, m.role, m.unit.tolist(), m.use is None) for m in group.members),
        )
        for group in found.groups
    ]


PARTS: dict[str, Callable[[Path, Row, argparse.Namespace], None]] = {
    "analysis": analysis, "kept": kept, "exact": exact, "targets": targets, "empty": empty, "order": order,
}  # fmt: skip
COLUMNS = {
    "analysis": {"nodes": 6, "seconds": 8, "s_per_1k": 9, "groups": 7, "locked": 7},
    "kept": {"kept": 7, "peer": 7, "good": 5, "exit": 5},
    "exact": {"kept_exact": 11, "exit_exact": 11, "twin_error": 11},
    "targets": {f"{metric}_{name}": 10 for metric in ("macs", "params") for name in VARIANTS},
    "empty": {"empty": 6},
    "order": {"order": 6},
}


def spell(value: Any) -> str:
    """Spell a figure for the table."""
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "NO"
    if isinstance(value, float):
        return f"{value:.1e}" if 0 < abs(value) < 1e-3 else f"{value:.3f}"
    return str(value)


def measure(path: Path, options: argparse.Namespace) -> Row:
    """Run the parts asked for on one model; an error in one is noted and the others go on."""
    row: Row = {"model": path.stem}
    for part in options.only:
        try:
            PARTS[part](path, row, options)
        except Exception as error:  # noqa: BLE001  the table goes on
            row[f"error_{part}"] = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        gc.collect()
    return row


def summary(rows: list[Row]) -> Row:
    """Count what held, over the models that have the figure."""
    found: Row = {"models": len(rows)}
    for key in ("good", "empty", "order"):
        values = [row[key] for row in rows if row.get(key) is not None]
        found[key] = f"{sum(values)}/{len(values)}"
    for key in ("exit", "exit_exact"):
        codes = [row[key] for row in rows if row.get(key) is not None]
        found[f"{key}_0"] = f"{codes.count(0)}/{len(codes)}"
    ratios = [row["kept"] / row["peer"] for row in rows if row.get("kept") and row.get("peer")]
    found["kept_over_peer_median"] = round(statistics.median(ratios), 3) if ratios else None
    speeds = [row["s_per_1k"] for row in rows if "s_per_1k" in row]
    found["s_per_1k_median"] = round(statistics.median(speeds), 3) if speeds else None
    found["errors"] = sum(key.startswith("error_") for row in rows for key in row)
    return found


def read_peers(path: Path | None) -> dict[str, float]:
    """Read the column `torch_pruning_kept` by model name."""
    if path is None:
        return {}
    with path.open(encoding="utf-8", newline="") as file:
        return {r["name"]: float(r["torch_pruning_kept"]) for r in csv.DictReader(file) if r["torch_pruning_kept"]}


def chosen_models(options: argparse.Namespace) -> list[Path]:
    """List the model files asked for; raises `SystemExit` for one that is not there."""
    if options.names is None:
        paths = sorted(options.models.glob("*.onnx"))
    else:
        names = options.names.read_text(encoding="utf-8").split()
        paths = [options.models / f"{name}.onnx" for name in names]
    gone = [str(path) for path in paths if not path.exists()]
    if gone or not paths:
        raise SystemExit(f"no such model: {', '.join(gone)}" if gone else f"{options.models}: no *.onnx there")
    return paths


def main(arguments: list[str] | None = None) -> int:
    """Measure every model and print a table, or one JSON document."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("models", type=Path, metavar="MODELS_DIR", help="folder of .onnx files")
    parser.add_argument(
        "--baseline", type=Path, metavar="CSV", help="figures of the peer, columns name, torch_pruning_kept"
    )
    parser.add_argument("--names", type=Path, metavar="FILE", help="names of models, one per line (default: all)")
    parser.add_argument("--ratio", type=float, default=0.5, help="fraction to remove in parts kept and exact")
    parser.add_argument(
        "--only", action="append", choices=list(PARTS), metavar="PART", help=f"of {', '.join(PARTS)}; repeatable"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON document instead of the table")
    options = parser.parse_args(arguments)
    options.only = [part for part in PARTS if not options.only or part in options.only]
    options.peers = read_peers(options.baseline)
    paths = chosen_models(options)
    columns = {name: width for part in options.only for name, width in COLUMNS[part].items()}
    if not options.json:
        print(*(f"{key}: {value}" for key, value in machine().items()), sep="\n")
        print(f"ratio: {options.ratio:g}; target: {TARGET:g}; median of {REPEATS}\n")
        print("model".ljust(34) + "".join(name.rjust(width) for name, width in columns.items()), flush=True)
    rows = []
    for path in paths:
        row = measure(path, options)
        rows.append(row)
        if not options.json:
            print(row["model"].ljust(34) + "".join(spell(row.get(n)).rjust(w) for n, w in columns.items()), flush=True)
            for key, value in row.items():
                if key.startswith(("error_", "failed")):
                    print(f"    {key}: {value}", flush=True)
    if options.json:
        print(
            json.dumps(
                {"machine": machine(), "ratio": options.ratio, "models": rows, "summary": summary(rows)}, indent=1
            )
        )
    else:
        print("\n" + "  ".join(f"{key}: {spell(value)}" for key, value in summary(rows).items()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
