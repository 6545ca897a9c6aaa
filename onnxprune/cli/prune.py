"""`onnxprune prune`: choose units, remove them, prove the result, write it."""

from __future__ import annotations

import json
import shlex
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import click

from ..errors import OptionError
from .failures import Command
from .options import (
    comma_list,
    common_options,
    distinct,
    flat,
    group_options,
    input_shape_option,
    integer_or_auto,
    metric_and_fraction,
    model_argument,
    output_options,
    search_options,
)
from .outputs import check_against_source, check_outputs
from .progress import Progress
from .recipe import command_line_wins, config_option
from .result import emit
from .stored import note_stored

if TYPE_CHECKING:
    from ..axes.analysis import Analysis
    from ..graph.model import Model
    from ..planfile import Plan
    from ..recover import Recovery
    from ..verification import Verdict

PLANNING = (
    "ratio", "target", "max_drop", "metric", "minimize", "criterion", "scope", "max_ratio", "round_to", "include",
    "exclude", "kinds", "allow_inexact", "chains", "seed", "threads",
)  # fmt: skip
RIVALS = {
    **dict.fromkeys(PLANNING, ("plan",)),
    "plan": PLANNING,
    "ratio": ("target", "max_drop", "metric", "minimize", "plan"),
    "target": ("ratio", "max_drop", "metric", "minimize", "plan"),
    "max_drop": ("ratio", "target", "plan"),
}


@click.command(cls=Command)
@model_argument
@click.option("-o", "--output", metavar="OUT", type=click.Path(), help="The file to write; needed unless --dry-run.")
@click.option("--ratio", metavar="R", type=float, help="Remove the fraction R of the units of every prunable group.")
@click.option(
    "--target",
    metavar="METRIC=F",
    type=metric_and_fraction,
    multiple=True,
    callback=distinct,
    help="Keep at most the fraction F of METRIC: params, macs, bytes or latency. Repeatable.",
)
@search_options
@click.option("--criterion", metavar="NAME", help="What makes a unit worth keeping. Default: l2; obs with --data.")
@click.option("--scope", metavar="local|global", help="Rank inside each group, or across (default with --target).")
@click.option("--max-ratio", metavar="R", type=float, help="No group loses more than the fraction R. Default: 0.9.")
@click.option("--round-to", metavar="N|auto", type=integer_or_auto, help="Remaining widths are multiples of N.")
@group_options
@click.option("--allow-inexact", is_flag=True, default=None, help="Prune groups behind a statistic over them as well.")
@click.option(
    "--chains",
    metavar="NAMES",
    type=comma_list,
    multiple=True,
    callback=flat,
    help="Only groups on these chains of nodes; `default` stands for all built-in ones.",
)
@input_shape_option
@click.option("--plan", metavar="FILE", type=click.Path(), help="Apply a saved plan instead of choosing.")
@click.option("--save-plan", metavar="FILE", type=click.Path(), help="Save this run's plan.")
@click.option("--report", metavar="FILE", type=click.Path(), help="Write a report: .html, or .json for later.")
@config_option
@click.option("--seed", metavar="N", type=click.IntRange(min=0), help="For random choices and samples. Default: 0.")
@click.option(
    "--data",
    metavar="SOURCE",
    help="Samples to rank, repair and verify with: .npz, a folder, FILE.py:NAME or random:N.",
)
@click.option(
    "--recover",
    metavar="none|bias|lstsq|distill",
    help="Repair the weights that stay from --data. Default: lstsq with --data. distill needs torch.",
)
@click.option(
    "--distill-steps", metavar="N", type=click.IntRange(min=1), help="Steps of gradients of --recover distill."
)
@click.option("--verify/--no-verify", default=True, help="Check the result before it is put in place. Default: yes.")
@click.option("--dry-run", is_flag=True, help="Decide, but write no model.")
@output_options
@common_options
@click.pass_context
def prune(ctx: click.Context, /, **_: Any) -> None:
    """Remove units physically and write a smaller model.

    Give --ratio, --target, --max-drop or --plan.
    """
    given = command_line_wins(ctx, RIVALS)
    started = time.perf_counter()
    model, output = given["model"], given["output"]
    outputs = {"--output": output, "--save-plan": given["save_plan"], "--report": given["report"]}
    _check(given, outputs)
    how = given["recover"] or ("none" if given["data"] is None else "lstsq")
    with Progress(6 if how == "none" else 7, quiet=given["quiet"]) as progress:
        progress.stage("loading")
        import onnxprune

        source = onnxprune.load(model)
        check_against_source(source, outputs)
        note_stored(source)
        if given["external_data"] is None and source.has_external_data:
            # Every weight that lay outside may have been cut, which brings it into the proto.
            given["external_data"] = True
        saved = _saved_plan(given["plan"])
        progress.stage("analyzing")
        analysis = onnxprune.analyze(source, input_shapes=_shapes(saved, given["input_shapes"]))
        progress.stage("choosing")
        searching = {"data": given["data"], "recover": how, "progress": progress.detail}
        plan = saved or onnxprune.plan(analysis, **_planning(given), **searching)
        recovery = None
        if how != "none":
            progress.stage("repairing")
            recovery = _repaired(analysis, plan, given, progress)
        progress.stage("cutting")
        smaller = onnxprune.apply(analysis, plan, recover=recovery)
        progress.stage("verifying")
        verdict, why = _verified(analysis, smaller, plan, recovery, given)
        document = _document(analysis, smaller, plan, verdict, given)
        document["why_unverified"] = why
        document["recovery"] = recovery.to_json() if recovery is not None else None
        progress.stage("writing")
        good = verdict is None or verdict.ok
        if good and not given["dry_run"]:
            document["output"] = output
            onnxprune.save(smaller, output, external_data=given["external_data"])
        if good and given["save_plan"] is not None:
            from ..api import write_text

            write_text(given["save_plan"], plan.dumps())
        if good and given["report"] is not None:
            from ..api import report_details, write_report

            write_report({**document, **report_details(analysis, plan)}, given["report"])
    document["seconds"] = round(time.perf_counter() - started, 3)
    _report(document, as_json=given["as_json"])
    if verdict is not None:
        verdict.raise_if_failed()


def _check(given: Mapping[str, Any], outputs: Mapping[str, str | None]) -> None:
    """Refuse what cannot work before anything is read."""
    if given["output"] is None and not given["dry_run"]:
        raise click.UsageError("say where to write the pruned model: -o OUT (or --dry-run to only decide)")
    said = [name for name in PLANNING if given[name] not in (None, ())]
    if given["plan"] is not None and said:
        names = ", ".join(f"--{name.replace('_', '-')}" for name in said)
        raise click.UsageError(f"--plan says what goes, so {names} cannot be given as well")
    if given["plan"] is None and given["ratio"] is None and not given["target"] and given["max_drop"] is None:
        raise click.UsageError("say how much to remove: --ratio R, --target METRIC=F, --max-drop X or --plan FILE")
    if given["plan"] is None and (given["max_drop"] is None) != (given["metric"] is None):
        raise click.UsageError("--max-drop X and --metric FILE.py:FUNCTION go together: how much of what may be lost")
    if given["minimize"] is not None and given["max_drop"] is None:
        raise click.UsageError("--minimize says what --max-drop makes small; give --max-drop X as well")
    if given["data"] is None and given["recover"] not in (None, "none"):
        raise click.UsageError(f"--recover {given['recover']} needs samples to run the model on: --data SOURCE")
    if given["distill_steps"] is not None and given["recover"] != "distill":
        raise click.UsageError("--distill-steps N counts the steps of --recover distill; give that as well")
    check_outputs(outputs, {"the model": given["model"], "the plan to apply": given["plan"]})
    if given["report"] is not None:
        from ..api import check_report

        check_report(given["report"])


def _saved_plan(path: str | None) -> Plan | None:
    from ..planfile import Plan

    return None if path is None else Plan.load(path)


def _shapes(saved: Plan | None, given: dict[str, tuple[int, ...]] | None) -> Mapping[str, Sequence[int]] | None:
    """Give the input shapes of the analysis; a saved plan was made at its own."""
    if saved is None or not saved.input_shapes:
        return given
    for name, shape in (given or {}).items():
        made = saved.input_shapes.get(name)
        if made is not None and made != shape:
            at = ",".join(map(str, made))
            raise OptionError(f"the plan was made at {name}={at}; leave out --input-shape or make another plan")
    return saved.input_shapes


def _planning(given: Mapping[str, Any]) -> dict[str, Any]:
    return {name: given[name] for name in PLANNING if given[name] not in (None, ())}


def _repaired(analysis: Analysis, plan: Plan, given: Mapping[str, Any], progress: Progress) -> Recovery:
    """Repair the weights that stay, and say which layer of how many is at work."""
    import onnxprune

    def say(done: int, total: int) -> None:
        progress.detail(f"repairing, {done} of {total}")

    recovery: Recovery = onnxprune.repair(
        analysis,
        plan,
        given["data"],
        how=given["recover"],
        distill_steps=given["distill_steps"],
        seed=given["seed"] or 0,
        threads=given["threads"],
        progress=say,
    )
    return recovery


def _verified(
    analysis: Analysis, smaller: Model, plan: Plan, recovery: Recovery | None, given: Mapping[str, Any]
) -> tuple[Verdict | None, str | None]:
    """Verify what will be written, else give the reason why not."""
    import onnxprune

    from .verdicts import Meter

    if plan.empty:
        return None, "nothing is removed"
    if given["dry_run"] or not given["verify"]:
        return None, "dry run" if given["dry_run"] else "--no-verify"
    try:
        verdict = onnxprune.verify(
            analysis.model,
            smaller,
            plan=plan,
            data=given["data"],
            seed=given["seed"] or 0,
            input_shapes=dict(given["input_shapes"] or {}) or None,
            recovered=recovery is not None and bool(recovery.values),
            measure=Meter(analysis),
        )
    except onnxprune.TooLargeError as error:
        click.echo(f"note: not verified: {error}. Where there is more memory: {_to_verify(given)}", err=True)
        return None, str(error)
    return verdict, None


def _to_verify(given: Mapping[str, Any]) -> str:
    """Give the command that verifies elsewhere; without a saved plan the place of one is named."""
    words = ["onnxprune", "verify", given["model"], given["output"], "--plan"]
    words.append(given["plan"] or given["save_plan"] or "PLAN")
    words += ["--data", given["data"]] if given["data"] is not None else []
    words += ["--seed", str(given["seed"])] if given["seed"] else []
    for name, shape in (given["input_shapes"] or {}).items():
        words += ["--input-shape", f"{name}={','.join(map(str, shape))}"]
    how = "" if given["plan"] or given["save_plan"] else " (--save-plan PLAN writes the plan)"
    return shlex.join(words) + how


def _figures(analysis: Analysis, smaller: Model, plan: Plan, verdict: Verdict | None) -> dict[str, Any]:
    """Measure the original and the result, not the plan: an initializer that is cut in two weighs more than planned."""
    if verdict is not None:
        return {"params": verdict.params, "macs": verdict.macs, "bytes": verdict.bytes}
    from ..api import change
    from .verdicts import Meter

    meter = Meter(analysis)
    before, after = (meter(model, plan.input_shapes or None) for model in (analysis.model, smaller))
    return {m: change(getattr(before, m), getattr(after, m)) for m in ("params", "macs", "bytes")}


def _document(
    analysis: Analysis, smaller: Model, plan: Plan, verdict: Verdict | None, given: Mapping[str, Any]
) -> dict[str, Any]:
    from .decided import plan_document
    from .survey import shapes_taken

    return {
        "command": "prune",
        "model": given["model"],
        "output": None,
        "dry_run": given["dry_run"],
        "plan": plan_document(plan),
        **_figures(analysis, smaller, plan, verdict),
        **_measured(plan),
        "input_shapes": shapes_taken(analysis),
        "verification": verdict.to_json() if verdict is not None else None,
    }


def _measured(plan: Plan) -> dict[str, Any]:
    """Give what a search measured: the curve, and the chosen model's time or metric beside the original's."""
    if plan.trade is None:
        return {"trade": None}
    name = "latency_ms" if plan.trade.measure == "latency" else "metric"
    return {name: dict(plan.trade.figures), "trade": plan.trade.to_json()}


def _report(document: Mapping[str, Any], *, as_json: bool) -> None:
    if as_json:
        emit(json.dumps(document, indent=1))
        return
    from .decided import print_plan
    from .tables import Page, change_rows, recovery_note, shapes_note
    from .verdicts import print_verdict

    page = Page()
    print_plan(page, document["plan"])
    page.line()
    page.table(("", "before", "after", "ratio"), change_rows(document))
    if document["trade"] is not None:
        from .trade import print_trade

        page.line()
        print_trade(page, document["trade"])
    if document["recovery"] is not None:
        page.line(recovery_note(document["recovery"]))
    if document["input_shapes"]:
        page.line(shapes_note(document["input_shapes"]))
    page.line()
    verdict = document["verification"]
    if verdict is not None:
        print_verdict(page, verdict, checks=False)
    elif not any(g["removed"] for g in document["plan"]["groups"]):
        page.line("nothing was removed; what is asked for is less than one unit of every group")
    else:
        page.line(f"not verified ({document['why_unverified']})")
    wrote = f"wrote {document['output']}" if document["output"] else "wrote no model"
    page.line(f"{wrote} ({document['seconds']:.1f} s)")
    emit(page.text)
