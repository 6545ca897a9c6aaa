"""What this process is doing inside a native library, told to the process that watches it.

A library that crashes or never returns cannot be stopped from within. The command line therefore runs in a child of a
small process that only waits, and the two share a page of memory: the child writes there what it has begun, the parent
reads how long that takes. Without a parent that watches, nothing is written.
"""

from __future__ import annotations

import contextlib
import mmap
import threading
from collections.abc import Iterator

SIZE = 512
_state: dict[str, mmap.mmap] = {}
_under_way: list[str] = []
_lock = threading.Lock()


def new_page() -> mmap.mmap:
    """Make the page that a process shares with its child."""
    return mmap.mmap(-1, SIZE)


def tell(page: mmap.mmap) -> None:
    """Tell what this process does on `page`."""
    _state["page"] = page


@contextlib.contextmanager
def watched(what: str) -> Iterator[None]:
    """Say that `what` has begun, such as "onnxruntime loads model.onnx", and then that it is over.

    Of what is under way at once, on several threads or one inside another, the page shows what has begun last.
    """
    if "page" not in _state:
        yield
        return
    with _lock:
        _under_way.append(what)
        _show(_state["page"])
    try:
        yield
    finally:
        with _lock:
            _under_way.remove(what)
            _show(_state["page"])


def _show(page: mmap.mmap) -> None:
    text = (_under_way[-1] if _under_way else "").encode(errors="replace")[: SIZE - 3]
    page[:] = bytes([(page[0] + 1) % 256, len(text) % 256, len(text) // 256]) + text.ljust(SIZE - 3, b"\0")


def read(page: mmap.mmap) -> tuple[int, str]:
    """Give a number that changes with every beginning and end, and what is under way, "" for nothing."""
    content = page[:]
    length = content[1] + 256 * content[2]
    return content[0], content[3 : 3 + length].decode(errors="replace")
