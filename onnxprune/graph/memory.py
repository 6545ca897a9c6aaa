"""How much memory this process may still take, where the system says so."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

GROUP = Path("/sys/fs/cgroup")


def available_memory() -> int | None:
    """Give the bytes that can be taken before something must give way, None where the system does not say."""
    return min(_limits(), default=None)


def _limits() -> Iterator[int]:
    """Give what the machine has left, and what the limits of the control group and of this process leave."""
    free, taken = _kilobytes(Path("/proc/meminfo")), _kilobytes(Path("/proc/self/status"))
    if "MemAvailable" in free:
        yield (free["MemAvailable"] + free.get("SwapFree", 0)) << 10
    try:
        limit, used = (int((GROUP / name).read_text()) for name in ("memory.max", "memory.current"))
        pages = dict(line.split() for line in (GROUP / "memory.stat").read_text().splitlines())
        # Pages of files count as used, and are given back when they are needed.
        yield limit - used + int(pages["inactive_file"])
    except (OSError, ValueError, KeyError):
        # No such control group, or one without a limit ("max").
        pass
    try:
        import resource
    except ImportError:
        return
    for kind, name in ((resource.RLIMIT_AS, "VmSize"), (resource.RLIMIT_DATA, "VmData")):
        limit = resource.getrlimit(kind)[0]
        if limit != resource.RLIM_INFINITY and name in taken:
            yield limit - (taken[name] << 10)


def _kilobytes(path: Path) -> dict[str, int]:
    """Read the rows `Name:  N kB` of a file, none where there is no such file."""
    try:
        rows = (line.partition(":")[::2] for line in path.read_text(encoding="utf-8").splitlines())
        return {name: int(value.split()[0]) for name, value in rows if value.endswith(" kB")}
    except OSError:
        return {}
