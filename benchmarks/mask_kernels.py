"""Time mask kernels beside torch.ao.pruning.WeightNormSparsifier, in one process on one thread.

    python benchmarks/mask_kernels.py [--size 4096] [--rounds 5]

Needs torch. Prints CPU seconds (the best of the rounds, measured in turn), their ratio, and in how many weights the
masks differ. The sparsifier's time is that of `update_mask` alone: no parametrization, no copy of the weight.
"""

from __future__ import annotations

import argparse
import platform
import sys
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
import torch
from torch.ao.pruning import WeightNormSparsifier

import onnxprune

# name, the sparsifier's level, block and zeros, keep_mask's pattern and sparsity
CASES: list[tuple[str, float, tuple[int, int], int, str, float | None]] = [
    ("2:4", 1.0, (1, 4), 2, "2:4", None),
    ("1x4 blocks, 50 %", 0.5, (1, 4), 4, "1x4", 0.5),
    ("unstructured, 50 %", 0.5, (1, 1), 1, "unstructured", 0.5),
]


def cpu_seconds(work: Callable[[], Any]) -> float:
    start = time.process_time()
    work()
    return time.process_time() - start


def sparsifier_for(
    weight: np.ndarray, level: float, block: tuple[int, int], zeros: int
) -> tuple[Callable[[], None], Callable[[], np.ndarray]]:
    """Give what updates the sparsifier's mask, and what reads it."""
    layer = torch.nn.Linear(weight.shape[1], weight.shape[0], bias=False)
    layer.weight.data = torch.from_numpy(weight)
    sparsifier = WeightNormSparsifier(sparsity_level=level, sparse_block_shape=block, zeros_per_block=zeros)
    sparsifier.prepare(torch.nn.Sequential(layer), [{"tensor_fqn": "0.weight"}])
    settings = {k: v for k, v in sparsifier.groups[0].items() if k not in ("module", "tensor_name")}
    parametrization = layer.parametrizations.weight[0]
    dense = torch.ones_like(parametrization.mask)

    def update() -> None:
        # Scores are those of the masked weight: every update starts from a full mask, at no cost.
        parametrization.mask.data = dense
        with torch.no_grad():
            sparsifier.update_mask(layer, "weight", **settings)

    def read() -> np.ndarray:
        update()
        return parametrization.mask.bool().numpy()

    return update, read


def peak_bytes(work: Callable[[], Any]) -> int:
    tracemalloc.start()
    work()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=4096, help="rows and columns of the weight (default 4096)")
    parser.add_argument("--rounds", type=int, default=5, help="measurements of each (default 5)")
    options = parser.parse_args()
    torch.set_num_threads(1)
    weight = np.random.default_rng(0).standard_normal((options.size, options.size), dtype=np.float32)
    tensor = torch.from_numpy(weight)
    print(
        f"{platform.processor() or platform.machine()}, Python {platform.python_version()}, numpy {np.__version__}, "
        f"torch {torch.__version__}, onnxprune {onnxprune.__version__}"
    )
    print(f"{options.size}x{options.size} float32, CPU seconds, best of {options.rounds}, one thread\n")
    print(f"{'mask':20}{'torch.ao':>10}{'numpy':>10}{'ratio':>8}{'torch':>10}{'ratio':>8}{'differ':>8}{'peak':>8}")
    for name, level, block, zeros, pattern, sparsity in CASES:
        update, read = sparsifier_for(weight, level, block, zeros)
        want = read()

        def ours(pattern: str = pattern, sparsity: float | None = sparsity) -> np.ndarray:
            return onnxprune.keep_mask(weight, pattern, sparsity, norm="l2")

        def kernel(pattern: str = pattern, sparsity: float | None = sparsity) -> torch.Tensor:
            return onnxprune.keep_mask(tensor, pattern, sparsity, norm="l2", kernel="torch")

        differ = int((ours() != want).sum() + (kernel().numpy() != want).sum())
        peak = peak_bytes(ours) / weight.nbytes
        works = (update, ours, kernel)
        rounds = [[cpu_seconds(work) for work in works] for _ in range(options.rounds)]
        theirs, fast, same = (min(column) for column in zip(*rounds, strict=True))
        print(
            f"{name:20}{theirs:10.3f}{fast:10.3f}{theirs / fast:8.1f}{same:10.3f}{theirs / same:8.1f}{differ:8d}"
            f"{peak:7.1f}x"
        )
    print("\npeak: memory that numpy's kernel takes beside the weight, in sizes of the weight")


if __name__ == "__main__":
    main()
