"""From exceptions to one or two lines on stderr and an exit code.

0 done · 1 done, but what was asked does not hold · 2 usage · 3 unusable input, or a defect of this package · 130
interrupted · 141 the reader of stdout went away · 143 terminated.
"""

from __future__ import annotations

import contextlib
import difflib
import gc
import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import click
from click.exceptions import Exit

from ..errors import OnnxPruneError
from .result import reserved_stdout
from .supervised import supervised

INTERNAL = 3
_USUAL_THRESHOLD = gc.get_threshold()
INTERRUPTED = 130
TERMINATED = 143
NUMPY_THREADS = ("OPENBLAS_NUM_THREADS", "VECLIB_MAXIMUM_THREADS")


class Failure(click.ClickException):
    """A message and an exit code: what every other exception becomes before it reaches the terminal."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.code = exit_code


class Command(click.Command):
    """A command whose exceptions end as one line; `--debug` shows the traceback as well."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command; raises `Failure` for whatever goes wrong."""
        if ctx.params.get("data") is not None:
            # Runs of the model leave large arrays behind, in few objects: they must not wait to be collected.
            gc.set_threshold(*_USUAL_THRESHOLD)
        try:
            with reserved_stdout(ctx):
                return super().invoke(ctx)
        except (click.ClickException, click.Abort, Exit):
            raise
        except Exception as error:
            if ctx.params.get("debug"):
                traceback.print_exc()
            raise failure(error) from error


class Program(click.Group):
    """The group of commands: prints failures, knows the nearest command, and exits."""

    command_class = Command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the command; an unknown one is answered with the nearest."""
        name = args[0]
        if not name.startswith("-") and self.get_command(ctx, name) is None:
            commands = self.list_commands(ctx)
            raise click.UsageError(f"no command {name!r}. {nearest(name, commands)}", ctx)
        return super().resolve_command(ctx, args)

    def main(  # type: ignore[override]  # always exits, as click's own does in standalone mode
        self, args: Sequence[str] | None = None, prog_name: str | None = None, **extra: Any
    ) -> None:
        """Run and exit: the only place that prints errors."""
        del prog_name  # the same name however it was started
        extra.pop("standalone_mode", None)

        def run() -> int:
            with _terminable():
                return self._run(args, extra)

        # With arguments it is somebody's program that calls, and not to be forked.
        sys.exit(run() if args is not None else self._supervised(run))

    def _supervised(self, run: Callable[[], int]) -> int:
        # numpy's sums depend on the number of its threads, which it reads once, when it is imported.
        os.environ.update(dict.fromkeys(NUMPY_THREADS, "1"))
        try:
            return supervised(run)
        except click.UsageError as error:
            _print_usage_error(error)
            return error.exit_code

    def _run(self, args: Sequence[str] | None, extra: dict[str, Any]) -> int:
        try:
            code = super().main(args, "onnxprune", standalone_mode=False, **extra)
        except (click.Abort, KeyboardInterrupt):
            click.echo("interrupted", err=True)
            return INTERRUPTED
        except Failure as error:
            click.echo(f"error: {_two_lines(error.format_message())}", err=True)
            return error.code
        except click.UsageError as error:
            _print_usage_error(error)
            return error.exit_code
        except click.ClickException as error:
            click.echo(f"error: {_two_lines(error.format_message())}", err=True)
            return error.exit_code
        return code if isinstance(code, int) else 0


def failure(error: Exception) -> Failure:
    """Turn an exception into a message and an exit code; what nobody foresaw is an internal error."""
    if isinstance(error, OnnxPruneError):
        return Failure(str(error), error.exit_code)
    if isinstance(error, MemoryError):
        return Failure("not enough memory for this model", INTERNAL)
    text = " ".join(str(error).split())[:300]
    kind = type(error).__name__
    return Failure(f"internal error: {kind}: {text}; run again with --debug and report what it prints", INTERNAL)


def nearest(name: str, known: Iterable[str]) -> str:
    """Suggest the nearest of the known names, or list them."""
    names = sorted(known)
    near = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
    return f"Did you mean {' or '.join(map(repr, near))}?" if near else f"Known: {', '.join(names)}."


def _print_usage_error(error: click.UsageError) -> None:
    if type(error).__name__ == "NoArgsIsHelpError":
        error.show()
        return
    text = error.format_message()
    if isinstance(error, click.NoSuchOption) and error.ctx is not None:
        params = error.ctx.command.get_params(error.ctx)
        known = [name for p in params for name in (*p.opts, *p.secondary_opts) if name.startswith("--")]
        near = difflib.get_close_matches(error.option_name, known, n=3, cutoff=0.65)
        hint = f". Did you mean {' or '.join(map(repr, near))}?" if near else "."
        text = f"no option {error.option_name!r}{hint}"
    path = error.ctx.command_path if error.ctx is not None else "onnxprune"
    click.echo(f"error: {' '.join(text[:1].lower().split()) + text[1:]}\nTry: {path} --help", err=True)


def _two_lines(text: str) -> str:
    first, *others = [line.strip() for line in text.splitlines() if line.strip()] or [""]
    return "\n".join([first, " ".join(others)]) if others else first


@contextlib.contextmanager
def _terminable() -> Iterator[None]:
    """Let SIGTERM unwind the stack, so that temporary files are removed."""

    def leave(*_: object) -> None:
        sys.exit(TERMINATED)

    try:
        before = signal.signal(signal.SIGTERM, leave)
    except ValueError:  # not in the main thread
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
