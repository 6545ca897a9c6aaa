"""The command line in a child process: whatever a model makes onnxruntime do, it ends with a message and an exit code.

The parent is forked off before anything large is imported, which takes a millisecond, and only waits: for the child's
end, for signals to hand on, and for a call into onnxruntime that takes too long.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import click

from ..watch import new_page, read, tell

UNUSABLE = 3
TIME_LIMIT = "ONNXPRUNE_TIME_LIMIT"
TIME_LIMIT_SECONDS = 600.0
_TICK_SECONDS = 0.5
_SET_PARENT_DEATH_SIGNAL = 1


def supervised(run: Callable[[], int]) -> int:
    """Run in a child and give its exit code; where no child can be watched, run here."""
    if not hasattr(signal, "sigtimedwait") or threading.active_count() > 1:
        return run()
    page, limit = new_page(), _time_limit()
    signals = {signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGCHLD}
    before = signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    parent = os.getpid()
    child = os.fork()
    if child == 0:
        _die_with(parent)
        _bounded_memory()
        tell(page)
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        return run()
    waited, at = 0.0, 0
    while True:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return _ended(os.waitstatus_to_exitcode(status), read(page)[1])
        got = signal.sigtimedwait(signals, _TICK_SECONDS)
        if got is None:
            now, what = read(page)
            waited = waited + _TICK_SECONDS if what and now == at else 0.0
            at = now
            if waited > limit:
                os.kill(child, signal.SIGKILL)
                os.waitpid(child, 0)
                click.echo(
                    f"error: {what} for more than {limit:g} seconds; set {TIME_LIMIT} to allow more",
                    err=True,
                )
                return UNUSABLE
        elif got.si_signo != signal.SIGCHLD and got.si_code <= 0:
            # Sent to this process alone; what a terminal sends has reached the child already.
            os.kill(child, got.si_signo)


def _ended(code: int, what: str) -> int:
    """Give the exit code of a child, and say what a signal ended."""
    if code >= 0:
        return code
    name = signal.Signals(-code).name
    if -code in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT, signal.SIGPIPE):
        return 128 - code
    why = "; the machine may be out of memory" if -code == signal.SIGKILL else ""
    doing = f" while {what}" if what else ""
    click.echo(f"error: the process was ended by {name}{doing}{why}. Nothing was written", err=True)
    return UNUSABLE


def _time_limit() -> float:
    text = os.environ.get(TIME_LIMIT)
    try:
        return TIME_LIMIT_SECONDS if text is None else float(text)
    except ValueError:
        raise click.UsageError(f"the environment has {TIME_LIMIT}={text!r}, which is no number of seconds") from None


def _die_with(parent: int) -> None:
    """Have the kernel end this process when its parent ends, however that happens."""
    if sys.platform == "linux":
        import ctypes

        ctypes.CDLL(None).prctl(_SET_PARENT_DEATH_SIGNAL, signal.SIGKILL)
        if os.getppid() != parent:
            os._exit(UNUSABLE)


def _bounded_memory() -> None:
    """Let allocations beyond the machine's memory fail, so that they end this process and no other."""
    import resource

    limit = min(_memory_sizes(), default=resource.RLIM_INFINITY)
    _, most = resource.getrlimit(resource.RLIMIT_DATA)
    if limit != resource.RLIM_INFINITY and (most == resource.RLIM_INFINITY or limit < most):
        resource.setrlimit(resource.RLIMIT_DATA, (limit, most))


def _memory_sizes() -> Iterator[int]:
    """Give the bytes of memory and swap, and the limit of the control group where there is one."""
    try:
        rows = dict(row.split(":", 1) for row in Path("/proc/meminfo").read_text().splitlines())
        yield sum(int(rows[name].split()[0]) << 10 for name in ("MemTotal", "SwapTotal"))
        yield int(Path("/sys/fs/cgroup/memory.max").read_text())
    except (OSError, ValueError, KeyError):
        return
