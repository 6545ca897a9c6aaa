"""One hostile file through one command of the command line, in this process, and what came of it."""

from __future__ import annotations

import contextlib
import io
import random
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from onnxprune.cli import failures, main
from onnxprune.errors import OnnxPruneError

from .mutate import mutant
from .seeds import seed_models

COMMANDS = ("inspect", "prune", "compact", "sparsify", "verify")


@dataclass(frozen=True)
class Outcome:
    """`code` is the exit code; `trace` the traceback where an error was none of ours."""

    code: int
    text: str
    trace: str | None = None


def input_bytes(k: int) -> bytes:
    """Give mutant number `k`, the same every time."""
    rng = random.Random(k)  # noqa: S311 - wants the same numbers every time
    return mutant(rng.choice(seed_models()), rng)


def arguments(command: str, path: Path, k: int) -> list[str]:
    """Give a command line for mutant number `k`."""
    out = path.with_name("out.onnx")
    if command == "inspect":
        return ["inspect", str(path), "--json"]
    if command == "verify":
        return ["verify", str(path), str(path), "--threads", "1"]
    extra: Sequence[str] = {
        "prune": (("--ratio", "0.4"), ("--target", "macs=0.6"), ("--ratio", "0.3", "--allow-inexact"))[k % 3],
        "compact": ((), ("--data", "random:2"))[k % 5 == 0],
        "sparsify": (("--sparsity", "0.5"), ("--pattern", "2:4"), ("--store", "packed"), ("--store", "sparse"))[k % 4],
    }[command]
    return [command, str(path), "-o", str(out), *extra]


def run(args: Sequence[str]) -> Outcome:
    """Run the command line in this process."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), _watched() as traces:
        try:
            main.main([*args])
            code = 0
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else 1
    return Outcome(code, err.getvalue().strip(), traces[0] if traces else None)


@contextlib.contextmanager
def _watched() -> Iterator[list[str]]:
    """Note the traceback of whatever is no error of ours."""
    traces: list[str] = []
    original = failures.failure

    def noted(error: Exception) -> failures.Failure:
        if not isinstance(error, OnnxPruneError):
            traces.append("".join(traceback.format_exception(error)))
        return original(error)

    failures.failure = noted
    try:
        yield traces
    finally:
        failures.failure = original
