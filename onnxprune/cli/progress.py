"""Progress on stderr: only after a second, and only where somebody looks."""

from __future__ import annotations

import sys
import threading
from types import TracebackType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from typing_extensions import Self

DELAY = 1.0


class Progress:
    """A bar over the named stages of a command, shown once they take more than a second.

    `with Progress(5, quiet=quiet) as progress: progress.stage("analyzing")`.
    """

    def __init__(self, n_stages: int, *, quiet: bool) -> None:
        self._n = n_stages
        self._active = not quiet and sys.stderr.isatty()
        self._lock = threading.Lock()
        self._timer = threading.Timer(DELAY, self._show)
        self._timer.daemon = True
        self._bar: Any = None
        self._task: Any = None
        self._done = -1
        self._text = ""

    def __enter__(self) -> Self:
        if self._active:
            self._timer.start()
        return self

    def stage(self, text: str) -> None:
        """Begin the next stage."""
        with self._lock:
            self._done += 1
            self._text = text
            if self._bar is not None:
                self._bar.update(self._task, completed=self._done, description=text)

    def detail(self, text: str) -> None:
        """Say what the stage is at."""
        with self._lock:
            self._text = text
            if self._bar is not None:
                self._bar.update(self._task, description=text)

    def _show(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
        from rich.progress import Progress as Bar

        columns = TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
        with self._lock:
            if not self._active:
                return
            self._bar = Bar(*columns, console=Console(stderr=True), transient=True)
            self._task = self._bar.add_task(self._text, total=self._n, completed=max(0, self._done))
            self._bar.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._timer.cancel()
        with self._lock:
            self._active = False
            if self._bar is not None:
                self._bar.stop()
                self._bar = None
