"""How much of a model's score is left after pruning: by weights alone, and with samples.

    python benchmarks/accuracy.py EVAL_FOLDER MODEL_FOLDER [--models NAME,...] [--targets 0.7,0.5] [--limit N]
                                  [--recover HOW] [--peers also|only]

`EVAL_FOLDER` holds one script per model, `NAME.py`, with `load()` (evaluation data), `score(session_or_bytes, data,
limit)` (higher is better) and `calib(n)` (feeds that share no sample with the evaluation data). `MODEL_FOLDER` holds
`NAME.onnx`. Prints one row per model and target: the score of the model, and the parts of it that stay with l2 alone,
and with calibration data. A figure is the ratio of scores; times are of this machine and mean little on a busy one.
`--peers` adds a row for every way of onnxsim (0.8 or newer) to prune at the same MACs, `only` leaves out ours: the part
of the MACs that it reached, and the part of the score that stays.
"""

from __future__ import annotations

import argparse
import importlib
import platform
import statistics
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime

import onnxprune


def main() -> None:
    """Run the table."""
    args = _arguments()
    sys.path.insert(0, str(args.evals))
    print(f"onnxprune {onnxprune.__version__}, onnxruntime {onnxruntime.__version__}, numpy {np.__version__}, "
          f"{platform.machine()}, {args.samples} samples, limit {args.limit}")  # fmt: skip
    print(f"{'model':28} {'macs':>5} {'score':>6} {'l2':>6} {'kept':>6} {'error':>7} {'seconds':>8}")
    kept: dict[float, list[float]] = {t: [] for t in args.targets}
    for name in args.models or sorted(p.stem for p in args.folder.glob("*.onnx")):
        if args.peers:
            _print_peers(name, args)
        for target, row in _rows(name, args) if args.peers != "only" else ():
            kept[target].append(row[2])
            dense, plain, ours, error, seconds = row
            print(f"{name:28} {target:5} {dense:6.3f} {plain:6.3f} {ours:6.3f} {error:7.3f} {seconds:8.1f}", flush=True)
    for target, values in kept.items():
        if values:
            print(f"median kept at macs={target}: {statistics.median(values):.3f} of {len(values)} models")


def _script(name: str, args: argparse.Namespace) -> Any:
    """Import the evaluation script of a model; None where there is none."""
    if not (args.evals / f"{name}.py").exists():
        return None
    script = importlib.import_module(name)
    # Scripts may run the dense model to make their samples.
    for module in (script, sys.modules.get("_lib")):
        if module is not None and hasattr(module, "MODELS"):
            module.MODELS = str(args.folder)
    return script


def _print_peers(name: str, args: argparse.Namespace) -> None:
    from peer_accuracy import at_macs, onnxsim_peers, simplified

    script = _script(name, args)
    if script is None:
        return
    path = args.folder / f"{name}.onnx"
    data, feeds = script.load(), script.calib(args.samples)
    dense = script.score(str(path), data, args.limit)
    model = simplified(onnx.load(path))
    whole = onnxprune.analyze(path).cost.macs
    for way, peer in onnxsim_peers(feeds).items():
        for target in args.targets:
            try:
                made = at_macs(peer, model, whole, target)
                left = script.score(made.model.SerializeToString(), data, args.limit) / dense
            except Exception as error:  # noqa: BLE001  whatever a peer raises
                print(f"{name:28} {target:5} {way}: {type(error).__name__}: {error}"[:160], flush=True)
                continue
            reached = "" if made.macs <= target else "  (the least it can do)"
            print(f"{name:28} {target:5} {way:9} macs {made.macs:.3f} kept {left:.3f}{reached}", flush=True)


def _rows(name: str, args: argparse.Namespace) -> Iterator[tuple[float, tuple[float, float, float, float, float]]]:
    path = args.folder / f"{name}.onnx"
    script = _script(name, args)
    if script is None:
        return
    data, feeds = script.load(), script.calib(args.samples)
    dense = script.score(str(path), data, args.limit)
    for target in args.targets:
        try:
            plain = onnxprune.prune(path, target={"macs": target}, verify=False)
            started = time.perf_counter()
            ours = onnxprune.prune(
                path, target={"macs": target}, data=feeds, recover=args.recover, verify=False, threads=args.threads
            )
        except onnxprune.OnnxPruneError as error:
            print(f"{name:28} {target:5} {error}"[:160], flush=True)
            continue
        seconds = time.perf_counter() - started
        left = [_score(script, r.model, data, args.limit) / dense for r in (plain, ours)]
        error = ours.recovery.after if ours.recovery and ours.recovery.after is not None else float("nan")
        if args.layers and ours.recovery:
            print(" ".join(f"{g.id[-24:]}:{g.size - len(g.removed)}/{g.size}" for g in ours.plan.groups))
            for r in ours.recovery.repairs:
                print(f"    {r.node[-48:]:48} {r.how:6} {r.before} {r.after} {r.ridge} {r.why}")
        yield target, (dense, left[0], left[1], error, seconds)


def _score(script: Any, model: Any, data: Any, limit: int | None) -> float:
    return float(script.score(model.proto.SerializeToString(), data, limit))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("evals", type=Path, help="folder of evaluation scripts")
    parser.add_argument("folder", type=Path, help="folder of models")
    parser.add_argument("--models", type=lambda t: t.split(","), help="only these")
    parser.add_argument("--targets", type=lambda t: [float(f) for f in t.split(",")], default=[0.7, 0.5])
    parser.add_argument("--samples", type=int, default=128, help="samples to calibrate with")
    parser.add_argument("--limit", type=int, help="evaluation samples")
    parser.add_argument("--threads", type=int, help="threads of onnxruntime")
    parser.add_argument("--recover", help="how to repair: bias, lstsq (the default) or distill")
    parser.add_argument("--peers", choices=["also", "only"], help="rows for onnxsim, which must be installed")
    parser.add_argument("--layers", action="store_true", help="show widths and the error of every layer")
    return parser.parse_args()


if __name__ == "__main__":
    main()
