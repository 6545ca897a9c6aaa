"""Cost against size: analysis of a hundred to a hundred thousand nodes, pruning of ten megabytes to twenty gigabytes.

    python benchmarks/sizes.py [--folder DIR] [--nodes 100,1000,...] [--bytes 1e7,1e8,...]

Models are decoders (`made_models.py`). For nodes they are narrow and deep, and analyzed in a process of their own: cpu
seconds, per thousand nodes, and the exponent with which they grow, fitted from a thousand nodes on. For bytes their
weights are a sparse file, and the whole command prunes a quarter of every group by l2, unverified: peak resident
memory, of which `anonymous` is no page of a file, and the wall time beside a plain copy by the kernel of what is
written and a plain read of the rest of what is read, made right after it and as durable.
"""

from __future__ import annotations

import argparse
import contextlib
import math
import os
import platform
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from made_models import Decoder, decoder_model, write_sparse

ONE_THREAD = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
NODES_PER_LAYER = 60
CHUNK = 1 << 26
READ = 1 << 20
ANALYZE = """
import sys, time, onnxprune
from onnxprune import rules
model = onnxprune.load(sys.argv[1])
start = time.process_time()
analysis = onnxprune.analyze(model)
analysis.cost
print(len(model.flat.nodes), len(analysis.groups), time.process_time() - start)
"""
# Layers, hidden width, inner width, vocabulary: the largest tensor of the largest model has 0.52 GB.
BYTES = {
    1e7: (2, 256, 688, 2000),
    1e8: (4, 768, 2048, 8000),
    1e9: (8, 1536, 4096, 32000),
    5e9: (12, 2560, 7168, 32000),
    2e10: (22, 4096, 14336, 32000),
}


def exponent(rows: list[tuple[float, float]]) -> float:
    """Fit y = a x^b by least squares in logarithms, and give b."""
    x, y = ([math.log(row[k]) for row in rows] for k in (0, 1))
    mx, my = sum(x) / len(x), sum(y) / len(y)
    return sum((a - mx) * (b - my) for a, b in zip(x, y, strict=True)) / sum((a - mx) ** 2 for a in x)


def sweep_nodes(wanted: list[int], folder: Path) -> None:
    """Analyze models of growing depth."""
    print(f"\n{'nodes':>8}{'groups':>8}{'cpu s':>9}{'per 1,000':>11}")
    rows = []
    for target in wanted:
        path = folder / "deep.onnx"
        layers = max(1, round(target / NODES_PER_LAYER))
        write_sparse(decoder_model(Decoder(layers, 256, 688, 8, 4, 1000)), path)
        command = [sys.executable, "-c", ANALYZE, str(path)]
        done = [
            subprocess.run(command, capture_output=True, text=True, check=True, env={**os.environ, **ONE_THREAD})
            for _ in range(3 if target <= 10_000 else 1)
        ]
        nodes, groups, seconds = min((line.stdout.split() for line in done), key=lambda row: float(row[2]))
        rows.append((float(nodes), float(seconds)))
        print(f"{nodes:>8}{groups:>8}{float(seconds):9.3f}{1000 * float(seconds) / float(nodes):11.3f}", flush=True)
    large = [row for row in rows if row[0] >= 900]
    if len(large) > 1:
        print(f"exponent of time against nodes: {exponent(large):.2f}")


def watch(process: subprocess.Popen[bytes], peak: dict[str, float]) -> None:
    """Keep the largest memory of any process of a command in MB, until it ends: the command line works in a child."""
    while process.poll() is None:
        for pid in family(process.pid):
            try:
                rows = Path(f"/proc/{pid}/status").read_text(encoding="ascii").splitlines()
            except OSError:
                continue
            for name, _, value in (row.partition(":") for row in rows):
                if name in peak:
                    peak[name] = max(peak[name], int(value.split()[0]) / 1000)
        time.sleep(0.05)


def family(pid: int) -> list[int]:
    """List a process and all that come of it."""
    found = [pid]
    for parent in found:
        for task in Path("/proc").glob(f"{parent}/task/*/children"):
            with contextlib.suppress(OSError):  # it may end any time
                found += map(int, task.read_text(encoding="ascii").split())
    return found


def plain_copy(source: Path, target: Path, written: int) -> float:
    """Copy as many bytes as are written, read the rest, and make it durable; give the seconds."""
    buffer = bytearray(READ)
    start = time.perf_counter()
    with open(source, "rb") as old, open(target, "wb") as new:
        size, done = os.fstat(old.fileno()).st_size, 0
        while done < min(written, size):
            done += os.copy_file_range(old.fileno(), new.fileno(), min(CHUNK, written - done))
        os.fsync(new.fileno())
        while old.readinto(buffer):
            pass
    seconds = time.perf_counter() - start
    target.unlink()
    return seconds


def forget(path: Path) -> None:
    """Have the system drop the pages of a file."""
    with open(path, "rb") as f:
        os.posix_fadvise(f.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def sweep_bytes(wanted: list[float], folder: Path) -> None:
    """Prune models of growing size."""
    names = ("GB", "largest", "peak MB", "anonymous", "cpu s", "wall s", "copy s", "again", "ratio")
    print("\n" + "".join(f"{name:>10}" for name in names))
    rows = []
    for target in wanted:
        layers, hidden, ffn, vocab = BYTES[target]
        path, out = folder / "wide.onnx", folder / "out.onnx"
        size = write_sparse(decoder_model(Decoder(layers, hidden, ffn, hidden // 128, hidden // 256, vocab)), path)
        command = [sys.executable, "-m", "onnxprune", "prune", str(path), "-o", str(out)]
        command += ["--ratio", "0.25", "--criterion", "l2", "--no-verify", "--json"]
        source, copy = path.with_name("wide.onnx.data"), folder / "copy.data"
        copied = [plain_copy(source, copy, round(0.755 * size))]
        forget(source)
        start = time.perf_counter()
        with open(os.devnull, "wb") as nowhere:
            process = subprocess.Popen(command, stdout=nowhere, env={**os.environ, **ONE_THREAD})
            peak = {"RssAnon": 0.0, "VmHWM": 0.0}
            before = os.times()
            watcher = threading.Thread(target=watch, args=(process, peak))
            watcher.start()
            process.wait()
            watcher.join()
        wall, after = time.perf_counter() - start, os.times()
        if process.returncode:
            sys.exit("the command failed")
        cpu = after.children_user + after.children_system - before.children_user - before.children_system
        data = out.with_name("out.onnx.data")
        written = data.stat().st_size
        data.unlink()
        forget(source)
        copied += [plain_copy(source, copy, written)]
        rows.append((size, peak["VmHWM"]))
        largest = 4 * max(ffn, vocab) * hidden / 1e9
        print(
            f"{size / 1e9:10.2f}{largest:10.3f}{peak['VmHWM']:10.0f}{peak['RssAnon']:10.0f}{cpu:10.1f}{wall:10.1f}"
            f"{copied[0]:10.1f}{copied[1]:10.1f}{2 * wall / sum(copied):10.2f}",
            flush=True,
        )
    if len(rows) > 1:
        print(f"exponent of peak memory against bytes: {exponent(rows):.2f}")


def main() -> None:
    """Sweep from the command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--folder", type=Path, help="where the models and their copies go: twice the largest")
    parser.add_argument("--nodes", default="100,1000,10000,100000")
    parser.add_argument("--bytes", default=",".join(f"{size:g}" for size in BYTES))
    given = parser.parse_args()
    print(f"{platform.platform()}, {os.cpu_count()} cores; Python {platform.python_version()}")
    with tempfile.TemporaryDirectory(dir=given.folder) as name:
        if given.nodes:
            sweep_nodes([int(n) for n in given.nodes.split(",")], Path(name))
        if given.bytes:
            sweep_bytes([float(n) for n in given.bytes.split(",")], Path(name))


if __name__ == "__main__":
    main()
