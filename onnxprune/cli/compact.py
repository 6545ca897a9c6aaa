"""`onnxprune compact`: remove what is dead already, change no output."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import click

from .failures import Command
from .options import common_options, group_options, input_shape_option, model_argument, output_options
from .outputs import check_against_source, check_outputs
from .progress import Progress
from .result import emit
from .stored import note_stored

if TYPE_CHECKING:
    from ..compaction.result import CompactResult
    from .tables import Page

MOST_REASONS = 8
_HOW = {
    "zero": "zero everywhere",
    "constant": "constant, folded into biases",
    "ignored": "ignored by every layer behind",
    "duplicate": "equal to another, merged",
}


@click.command(cls=Command)
@model_argument
@click.option("-o", "--output", metavar="OUT", type=click.Path(), help="The file to write; needed unless --dry-run.")
@click.option("--data", metavar="SOURCE", help="Samples: list units that are constant on all of them, and verify.")
@click.option("--assume-data", is_flag=True, help="Remove those as well: the samples stand for every input.")
@group_options
@input_shape_option
@click.option("--save-plan", metavar="FILE", type=click.Path(), help="Save what is cut as a plan.")
@click.option("--rtol", metavar="X", type=float, help="Allowed difference, of an output's range. Default: 1e-4.")
@click.option("--seed", metavar="N", type=click.IntRange(min=0), default=0, help="For random samples. Default: 0.")
@click.option("--verify/--no-verify", default=True, help="Check the result before it is put in place. Default: yes.")
@click.option("--dry-run", is_flag=True, help="Find and report, but write no model.")
@output_options
@common_options
def compact(**given: Any) -> None:
    """Remove units that are dead or constant already, and change no output.

    Constants of removed units go into the biases behind them. Where nothing is dead, OUT is MODEL byte for byte.
    """
    started = time.perf_counter()
    model, output = given["model"], given["output"]
    outputs = {"--output": output, "--save-plan": given["save_plan"]}
    if output is None and not given["dry_run"]:
        raise click.UsageError("say where to write the model: -o OUT (or --dry-run to only look)")
    check_outputs(outputs, {"the model": model})
    with Progress(4, quiet=given["quiet"]) as progress:
        progress.stage("loading")
        import onnxprune

        source = onnxprune.load(model)
        check_against_source(source, outputs)
        note_stored(source)
        progress.stage("analyzing")
        analysis = onnxprune.analyze(source, input_shapes=given["input_shapes"])
        progress.stage("compacting")
        result = onnxprune.compact(
            analysis,
            data=given["data"],
            assume_data=given["assume_data"],
            include=given["include"] or (),
            exclude=given["exclude"] or (),
            kinds=given["kinds"],
            verify=given["verify"],
            rtol=given["rtol"],
            seed=given["seed"],
            input_shapes=given["input_shapes"],
        )
        progress.stage("writing")
        document = _document(result, given)
        good = result.report is None or result.report.ok
        if good and not given["dry_run"]:
            onnxprune.save(result.model, output, external_data=given["external_data"])
            document["output"] = output
        if good and given["save_plan"] is not None:
            from ..api import write_text

            write_text(given["save_plan"], result.plan.dumps())
    document["seconds"] = round(time.perf_counter() - started, 3)
    if given["as_json"]:
        emit(json.dumps(document, indent=1))
    else:
        _report(document, given)
    if result.report is not None:
        result.report.raise_if_failed()


def _document(result: CompactResult, given: Mapping[str, Any]) -> dict[str, Any]:
    from ..api import change
    from .survey import shapes_taken
    from .verdicts import Meter

    meter = Meter(result.analysis)
    before, after = (meter(m, given["input_shapes"]) for m in (result.analysis.model, result.model))
    return {
        "command": "compact",
        "model": given["model"],
        "output": None,
        "dry_run": given["dry_run"],
        "removed": result.n_removed,
        "groups": [group.to_json() for group in result.groups],
        "plan": {"sha256": result.plan.sha256, "source_sha256": result.plan.source_sha256},
        **{m: change(getattr(before, m), getattr(after, m)) for m in ("params", "macs", "bytes")},
        "input_shapes": shapes_taken(result.analysis),
        "verification": result.report.to_json() if result.report is not None else None,
    }


def _report(document: Mapping[str, Any], given: Mapping[str, Any]) -> None:
    from .tables import Page, change_rows, plural, shapes_note

    page = Page()
    groups = document["groups"]
    if document["removed"]:
        _print_removed(page, groups)
        page.line()
        page.table(("", "before", "after", "ratio"), change_rows(document))
        if document["input_shapes"]:
            page.line(shapes_note(document["input_shapes"]))
        page.line()
    else:
        page.line("nothing is dead: no unit can go without changing an output")
    _print_kept(page, groups)
    observed = sum(len(g["observed"]) for g in groups)
    if observed:
        page.line(f"constant on every sample: {plural(observed, 'more unit')}; --assume-data removes them")
    _print_verdict(page, document["verification"], removed=bool(document["removed"]), dry_run=given["dry_run"])
    if document["output"] and not document["removed"]:
        page.line(f"wrote {document['output']}, as it was ({document['seconds']:.1f} s)")
    else:
        wrote = f"wrote {document['output']}" if document["output"] else "wrote no model"
        page.line(f"{wrote} ({document['seconds']:.1f} s)")
    emit(page.text)


def _print_removed(page: Page, groups: list[dict[str, Any]]) -> None:
    kinds = list(dict.fromkeys(g["kind"] for g in groups))
    hows = [how for how in _HOW if any(how in g["removed"] for g in groups)]
    rows = []
    for kind in kinds:
        mine = [g for g in groups if g["kind"] == kind]
        counts = [sum(len(g["removed"].get(how, ())) for g in mine) for how in hows]
        rows.append((kind, f"{sum(g['size'] for g in mine):,}", *(f"{n:,}" for n in counts)))
    page.table(("kind", "units", *hows), rows)
    for how in hows:
        page.item(f"{how}: {_HOW[how]}")


def _print_kept(page: Page, groups: list[dict[str, Any]]) -> None:
    reasons: dict[str, list[str]] = {}
    for group in groups:
        for row in group["kept"]:
            reasons.setdefault(row["reason"], []).append(f"{group['id']}[{row['unit']}]")
    for reason, units in list(reasons.items())[:MOST_REASONS]:
        more = f" and {len(units) - 1:,} more" if len(units) > 1 else ""
        page.line(f"kept: {units[0]}{more}: {reason}")
    if len(reasons) > MOST_REASONS:
        page.line(f"kept: {len(reasons) - MOST_REASONS} more reasons, all in --json")


def _print_verdict(page: Page, verdict: Mapping[str, Any] | None, *, removed: bool, dry_run: bool) -> None:
    if verdict is None:
        if removed:
            page.line("not verified (dry run)" if dry_run else "not verified")
        return
    for check in verdict["checks"]:
        if not check["ok"] or check["name"] == "same outputs":
            page.line(f"{check['name']}: {check['detail']}")
    if verdict["ok"]:
        page.line("verified", style="bold green")
    else:
        page.line("verification FAILED", style="bold red")
