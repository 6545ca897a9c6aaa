"""stdout carries the result and nothing else; what libraries and users' own code print goes to stderr."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from typing import Any

import click

READER_GONE = 141
_STREAM = "onnxprune.stdout"


@contextlib.contextmanager
def reserved_stdout(ctx: click.Context) -> Iterator[None]:
    """Keep stdout for `emit`: within, whatever is printed goes to stderr."""
    ctx.meta[_STREAM] = sys.stdout
    with contextlib.redirect_stdout(sys.stderr):
        yield


def result_stream() -> Any:
    """Give the stdout that the result goes to."""
    ctx = click.get_current_context(silent=True)
    stream: Any = ctx.meta.get(_STREAM) if ctx is not None else None
    return stream if stream is not None else sys.stdout


def emit(text: str) -> None:
    """Write the result to stdout; a reader that went away ends the program quietly."""
    stream = result_stream()
    try:
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
        stream.write(text if text.endswith("\n") else f"{text}\n")
        stream.flush()
    except BrokenPipeError:
        # What is still buffered must not fail again when the interpreter ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
        sys.exit(READER_GONE)
