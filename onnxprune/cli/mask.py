"""`onnxprune mask`: the masked twin of a plan, for anyone who wants to compare or to train on."""

from __future__ import annotations

import json
import time

import click

from .failures import Command
from .options import common_options, model_argument, output_options
from .outputs import check_against_source, check_outputs
from .progress import Progress
from .result import emit


@click.command(cls=Command)
@model_argument
@click.option("--plan", metavar="PLAN", type=click.Path(), required=True, help="The plan, as of prune --save-plan.")
@click.option("-o", "--output", metavar="OUT", type=click.Path(), required=True, help="The file to write.")
@output_options
@common_options
def mask(
    *, model: str, plan: str, output: str, external_data: bool | None, as_json: bool, quiet: bool, debug: bool
) -> None:
    """Write the masked twin of a plan.

    It has MODEL's own shapes, and zeros in every slice that the plan removes.
    """
    del debug
    started = time.perf_counter()
    outputs = {"--output": output}
    check_outputs(outputs, {"the model": model, "the plan": plan})
    with Progress(3, quiet=quiet) as progress:
        progress.stage("loading")
        import onnxprune

        from ..planfile import Plan
        from .decided import plan_document, print_plan

        source = onnxprune.load(model)
        check_against_source(source, outputs)
        decided = Plan.load(plan)
        progress.stage("masking")
        twin = onnxprune.mask(source, decided)
        progress.stage("writing")
        onnxprune.save(twin, output, external_data=external_data)
    document = {
        "command": "mask",
        "model": model,
        "output": output,
        "plan": plan_document(decided),
        "slices": len(decided.slices),
        "seconds": round(time.perf_counter() - started, 3),
    }
    if as_json:
        emit(json.dumps(document, indent=1))
        return
    from .tables import Page, plural

    page = Page()
    print_plan(page, plan_document(decided))
    page.line(f"wrote {output}: {plural(len(decided.slices), 'slice')} set to zero ({document['seconds']:.1f} s)")
    emit(page.text)
