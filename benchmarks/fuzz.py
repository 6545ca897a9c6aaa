"""Mutated models through every command: nothing but typed errors, no hang, no memory beyond a limit.

    python benchmarks/fuzz.py --count 10000 --start 0 --report findings.jsonl

Mutant number k is the same on every run, so a finding is reproduced by `--start k --count 1`. Inputs go through the
command line inside a worker process, which is replaced when it dies or hangs. Operators without a rule are tried in
processes of their own, which would take most of the time here: only every 50th input is allowed to.
"""

from __future__ import annotations

import argparse
import collections
import faulthandler
import json
import os
import resource
import selectors
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
PATIENCE_SECONDS = 60
MEMORY_BYTES = 2 << 30
PROBED_EVERY = 50


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--start", type=int, default=0)
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--commands", default="inspect,prune,compact,sparsify,verify")
    parser.add_argument("--report", type=Path)
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.worker:
        work(given.start, given.count, given.commands.split(","))
        return 0
    return drive(given)


def work(start: int, count: int, commands: list[str]) -> None:
    """Run inputs one after the other, and say before each what is about to run."""
    sys.path.insert(0, str(ROOT))
    from onnxprune.axes import probe
    from tests.fuzz.trial import arguments, input_bytes, run

    faulthandler.register(signal.SIGUSR1, all_threads=False)
    channel = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    ask = probe._ask  # noqa: SLF001
    resource.setrlimit(resource.RLIMIT_DATA, (MEMORY_BYTES, MEMORY_BYTES))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "m.onnx")
        for k in range(start, start + count):
            path.write_bytes(input_bytes(k))
            probe._ask = ask if k % PROBED_EVERY == 0 else lambda _: ([], "not tried")  # noqa: SLF001
            for command in commands:
                print(json.dumps({"k": k, "command": command, "began": True}), file=channel)
                outcome = run(arguments(command, path, k))
                peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10
                print(json.dumps({"k": k, "command": command, "peak": peak, **vars(outcome)}), file=channel)


def drive(given: argparse.Namespace) -> int:
    """Keep a worker busy until all inputs are through, and print what was found."""
    tally = Tally(given.report)
    k, end = given.start, given.start + given.count
    began = time.monotonic()
    while k < end:
        k = watch(k, end, given.commands, tally) + 1
    tally.print(given.count, time.monotonic() - began)
    return 1 if tally.findings else 0


def watch(start: int, end: int, commands: str, tally: Tally) -> int:
    """Run one worker and give the number of the last input that it finished or died of."""
    command = [sys.executable, __file__, "--worker", "--start", str(start), "--count", str(end - start)]
    with (
        tempfile.TemporaryFile("w+") as errors,
        subprocess.Popen([*command, "--commands", commands], stdout=subprocess.PIPE, stderr=errors, cwd=ROOT) as child,
    ):
        assert child.stdout is not None
        last: dict[str, Any] = {"k": start, "command": "start"}
        buffer = b""
        with selectors.DefaultSelector() as selector:
            selector.register(child.stdout, selectors.EVENT_READ)
            while True:
                if not selector.select(PATIENCE_SECONDS):
                    tally.hung(last, _stopped(child, errors))
                    return int(last["k"])
                block = os.read(child.stdout.fileno(), 1 << 16)
                if not block:
                    break
                *lines, buffer = (buffer + block).split(b"\n")
                for line in lines:
                    last = json.loads(line)
                    tally.add(last)
        if child.wait() != 0:
            errors.seek(0)
            tally.found(last, f"died with {child.returncode}", errors.read()[-1500:])
        return int(last["k"]) if child.returncode != 0 else end


def _stopped(child: subprocess.Popen[bytes], errors: Any) -> str:
    """End a worker that does not answer, and give where it was."""
    child.send_signal(signal.SIGUSR1)
    time.sleep(1)
    child.kill()
    child.wait()
    errors.seek(0)
    return str(errors.read()[-3000:])


class Tally:
    """Counts of exit codes, and findings by where they come from."""

    def __init__(self, report: Path | None) -> None:
        self.codes: collections.Counter[tuple[str, int]] = collections.Counter()
        self.findings: dict[str, list[dict[str, Any]]] = {}
        self.peak = 0
        self.stopped = 0
        self.report = report

    def add(self, row: dict[str, Any]) -> None:
        """Count an outcome."""
        if "began" in row:
            return
        self.codes[row["command"], row["code"]] += 1
        self.peak = max(self.peak, row["peak"])
        if row["trace"]:
            lines = [line.strip() for line in row["trace"].strip().splitlines()]
            frames = [line for line in lines if line.startswith("File") and "/onnxprune/" in line]
            where = frames[-1].rpartition("/onnxprune/")[2] if frames else "?"
            self.found(row, f"{lines[-1].split(':')[0]} at {where}", row["trace"])
        elif row["code"] not in (0, 1, 2, 3):
            self.found(row, f"exit code {row['code']}", row["text"])

    def found(self, row: dict[str, Any], what: str, detail: str) -> None:
        """Note a finding, in the report as well."""
        finding = {"k": row["k"], "command": row["command"], "what": what, "detail": detail}
        self.findings.setdefault(what, []).append(finding)
        if self.report is not None:
            with open(self.report, "a") as f:
                f.write(json.dumps(finding) + "\n")

    def hung(self, row: dict[str, Any], where: str) -> None:
        """Note a hang; one inside onnxruntime is what the command line's time limit is for."""
        innermost = next((line for line in where.splitlines() if line.strip().startswith("File")), "")
        if "/onnxruntime/" in innermost:
            self.stopped += 1
        else:
            self.found(row, "hang", where)

    def print(self, count: int, seconds: float) -> None:
        """Print the counts and the findings."""
        print(f"{count} inputs in {seconds:.0f} s; peak {self.peak / 2**20:.0f} MiB")
        print(f"stopped inside onnxruntime after {PATIENCE_SECONDS} s: {self.stopped}")
        for (command, code), n in sorted(self.codes.items()):
            print(f"{command:10} exit code {code}: {n}")
        for what, rows in sorted(self.findings.items(), key=lambda item: -len(item[1])):
            ks = ", ".join(f"{r['command']} {r['k']}" for r in rows[:4])
            print(f"{len(rows):6} {what}   ({ks})")
        print(f"{sum(map(len, self.findings.values()))} findings of {len(self.findings)} kinds")


if __name__ == "__main__":
    sys.exit(main())
