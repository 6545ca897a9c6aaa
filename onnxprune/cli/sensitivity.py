"""`onnxprune sensitivity`: how much each group hurts when it alone is pruned."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import click

from .failures import Command
from .options import (
    comma_list,
    common_options,
    flat,
    group_options,
    input_shape_option,
    integer_or_auto,
    model_argument,
)
from .outputs import check_outputs
from .progress import Progress
from .recipe import config_option
from .result import emit
from .stored import note_stored

if TYPE_CHECKING:
    from ..sweep.result import Sensitivity
    from .tables import Page

CHOOSING = (
    "criterion", "round_to", "kinds", "allow_inexact", "include", "exclude", "chains", "data", "metric", "seed",
    "threads", "backend", "address", "resume",
)  # fmt: skip


def comma_numbers(text: str) -> tuple[float, ...]:
    """Read numbers separated by commas."""
    try:
        return tuple(float(part) for part in text.split(",") if part.strip())
    except ValueError:
        raise click.BadParameter(f"{text!r} is not of the form 0.1,0.3,0.5") from None


def count_or_auto(text: str) -> int | None:
    """Read a number of jobs; `auto` stands for one per core."""
    if text == "auto":
        return None
    if not text.isdecimal() or int(text) < 1:
        raise click.BadParameter(f"{text!r} is neither a positive whole number nor auto")
    return int(text)


@click.command(cls=Command)
@model_argument
@click.option("--ratios", metavar="R,R,...", type=comma_numbers, help="Fractions to remove. Default: 0.1,0.3,0.5.")
@click.option("--data", metavar="SOURCE", help="Samples to compare with the original on: .npz, a folder, FILE.py:NAME.")
@click.option(
    "--metric", metavar="FILE.py:FUNCTION", help="Your measure: takes a session, gives a number, higher is better."
)
@click.option("--criterion", metavar="NAME", help="What makes a unit worth keeping. Default: as for prune.")
@click.option("--round-to", metavar="N|auto", type=integer_or_auto, help="Remaining widths are multiples of N.")
@group_options
@click.option(
    "--allow-inexact", is_flag=True, default=None, help="Measure groups behind a statistic over them as well."
)
@click.option(
    "--chains",
    metavar="NAMES",
    type=comma_list,
    multiple=True,
    callback=flat,
    help="Only groups on these chains of nodes; `default` stands for all built-in ones.",
)
@input_shape_option
@click.option("--jobs", metavar="N|auto", type=count_or_auto, default="auto", help="Workers. Default: one per core.")
@click.option("--backend", metavar="loky|ray|dask", help="Processes here (default), or a Ray or Dask cluster.")
@click.option("--address", metavar="ADDRESS", help="A running cluster. Default: one is started here.")
@click.option("--threads", metavar="N", type=click.IntRange(min=1), help="Threads of each worker. Default: 1.")
@click.option("--resume", metavar="FILE", type=click.Path(), help="Journal of finished cells: go on where it ends.")
@click.option("--report", metavar="FILE", type=click.Path(), help="Write a report: .html, or .json for later.")
@config_option
@click.option("--seed", metavar="N", type=click.IntRange(min=0), help="For random choices and samples. Default: 0.")
@common_options
def sensitivity(**given: Any) -> None:
    """Prune each group alone, at several ratios, and measure.

    Give --data, --metric or both. The result is the same whoever measures, and however many.
    """
    started = time.perf_counter()
    model = given["model"]
    if given["data"] is None and given["metric"] is None:
        raise click.UsageError("say what to measure on: --data SOURCE or --metric FILE.py:FUNCTION")
    outputs = {"--resume": given["resume"], "--report": given["report"]}
    check_outputs(outputs, {"the model": model})
    with contextlib.ExitStack() as stack:
        first = stack.enter_context(Progress(2, quiet=given["quiet"]))
        first.stage("loading")
        import onnxprune

        if given["report"] is not None:
            from ..api import check_report

            check_report(given["report"])
        source = onnxprune.load(model)
        note_stored(source)
        first.stage("analyzing")
        analysis = onnxprune.analyze(source, input_shapes=given["input_shapes"])
        options = {name: given[name] for name in CHOOSING if given[name] not in (None, ())}
        if given["ratios"] is not None:
            options["ratios"] = given["ratios"]
        found: Sensitivity = onnxprune.sensitivity(
            analysis, jobs=given["jobs"], progress=_shown(stack, quiet=given["quiet"]), **options
        )
        document = _document(found, analysis, given)
        if given["report"] is not None:
            from ..api import write_report

            write_report(document, given["report"])
    document["run"]["seconds"] = round(time.perf_counter() - started, 3)
    if given["as_json"]:
        emit(json.dumps(document, indent=1))
    else:
        _print(document)
    found.raise_if_failed()


def _shown(stack: contextlib.ExitStack, *, quiet: bool) -> Callable[[int, int], None]:
    """Give a callback that shows a bar over the cells, from the first one on."""
    bars: list[Progress] = []

    def report(_done: int, total: int) -> None:
        if not bars:
            stack.close()
            bars.append(stack.enter_context(Progress(total, quiet=quiet)))
        bars[0].stage("measuring")

    return report


def _document(found: Sensitivity, analysis: Any, given: Mapping[str, Any]) -> dict[str, Any]:
    from .survey import shapes_taken

    return {
        "command": "sensitivity",
        "model": given["model"],
        **found.to_json(),
        "input_shapes": shapes_taken(analysis),
    }


def _print(document: Mapping[str, Any]) -> None:
    from .tables import Page, plural, shapes_note

    page = Page()
    figure = document["figure"]
    page.line(_headline(document), style="bold")
    page.line()
    head = ("group", "kind", "units", *(f"-{100 * ratio:g} %" for ratio in document["ratios"]))
    shown = [g for g in document["groups"] if g["cells"]]
    rows = [(g["id"], g["kind"], f"{g['size']:,}", *(_spell(c, figure) for c in g["cells"])) for g in shown]
    page.table(head, rows, left=2)
    if any(c["removed"] == 0 for g in shown for c in g["cells"]):
        page.line("-: the ratio removes no whole unit")
    _print_left(page, document)
    if document["input_shapes"]:
        page.line(shapes_note(document["input_shapes"]))
    run = document["run"]
    resumed = f", {run['resumed']} from the journal" if run["resumed"] else ""
    page.line(f"measured {plural(run['measured'], 'cell')}{resumed} ({run['seconds']:.1f} s)")
    emit(page.text)


def _headline(document: Mapping[str, Any]) -> str:
    figure, original = document["figure"], document["original"]
    if figure == "metric":
        return f"{document['metric']} after pruning one group alone; the original has {original['metric']:.6g}"
    what = "relative error of the outputs" if figure == "relative_error" else "fraction of outputs that differ"
    return f"{what} after pruning one group alone, on {document['data']}"


def _spell(cell: Mapping[str, Any], figure: str) -> str:
    if cell["error"] is not None:
        return "failed"
    value = cell[figure]
    return "-" if cell["removed"] == 0 or value is None else f"{value:.4g}"


def _print_left(page: Page, document: Mapping[str, Any]) -> None:
    from .tables import plural

    reasons: dict[str, list[str]] = {}
    for group in document["groups"]:
        if group["locked"]:
            reasons.setdefault(group["locked"], []).append(group["id"])
    for reason, ids in reasons.items():
        page.line(f"left alone: {plural(len(ids), 'group')}, {reason}")
