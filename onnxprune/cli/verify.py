"""`onnxprune verify`: judge a pruned model against its original."""

from __future__ import annotations

import json
import time

import click

from .failures import Command
from .options import common_options, input_shape_option
from .progress import Progress
from .result import emit


@click.command(cls=Command)
@click.argument("original", type=click.Path())
@click.argument("pruned", type=click.Path())
@click.option("--plan", metavar="FILE", type=click.Path(), help="The plan: compare with its masked twin as well.")
@click.option(
    "--data", metavar="SOURCE", help="Samples: .npz, a folder, FILE.py:NAME or random:N. Default: four random ones."
)
@click.option("--rtol", metavar="X", type=float, help="Allowed difference, of the output's range. Default: 1e-3.")
@click.option("--atol", metavar="X", type=float, help="Allowed absolute difference. Default: 1e-7.")
@click.option(
    "--metric", metavar="FILE.py:FUNCTION", help="Your measure: takes a session, gives a number, higher is better."
)
@click.option("--latency", is_flag=True, help="Time both models on this machine, side by side.")
@click.option("--threads", metavar="N", type=click.IntRange(min=1), help="Threads of onnxruntime.")
@input_shape_option
@click.option("--seed", metavar="N", type=click.IntRange(min=0), default=0, help="For random samples. Default: 0.")
@common_options
def verify(  # noqa: PLR0913 - click passes options by name
    *,
    original: str,
    pruned: str,
    plan: str | None,
    data: str | None,
    rtol: float | None,
    atol: float | None,
    metric: str | None,
    latency: bool,
    threads: int | None,
    input_shapes: dict[str, tuple[int, ...]] | None,
    seed: int,
    as_json: bool,
    quiet: bool,
    debug: bool,
) -> None:
    """Check PRUNED against ORIGINAL.

    Is it valid, does it run, does it equal the masked twin, how close to the original, how much smaller, how fast?
    """
    del debug
    started = time.perf_counter()
    with Progress(2, quiet=quiet) as progress:
        progress.stage("loading")
        import onnxprune

        from .verdicts import Meter, print_verdict

        before, after = onnxprune.load(original), onnxprune.load(pruned)
        progress.stage("verifying")
        meter = Meter()
        tolerances = {name: value for name, value in (("rtol", rtol), ("atol", atol)) if value is not None}
        verdict = onnxprune.verify(
            before,
            after,
            plan=plan,
            data=data,
            metric=metric,
            latency=latency,
            threads=threads,
            seed=seed,
            input_shapes=input_shapes,
            measure=meter,
            **tolerances,
        )
    found = verdict.to_json()
    if as_json:
        seconds = round(time.perf_counter() - started, 3)
        head = {"command": "verify", "original": original, "pruned": pruned}
        emit(json.dumps({**head, **found, "input_shapes": meter.shapes, "seconds": seconds}, indent=1))
    else:
        from .tables import Page, change_rows, shapes_note

        page = Page()
        page.table(("", "before", "after", "ratio"), change_rows(found))
        if meter.shapes:
            page.line(shapes_note(meter.shapes))
        page.line()
        print_verdict(page, found, checks=True)
        emit(page.text)
    verdict.raise_if_failed()
