"""`onnxprune sparsify`: set weights to zero by a pattern, shapes unchanged, and prove the result."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import click

from .failures import Command
from .options import (
    by_layer,
    comma_list,
    common_options,
    flat,
    input_shape_option,
    layer_setting,
    model_argument,
    output_options,
)
from .outputs import check_against_source, check_outputs
from .progress import Progress
from .recipe import config_option
from .result import emit

if TYPE_CHECKING:
    from ..sparsity.result import SparsifyResult
    from .tables import Page

DECIDING = (
    "pattern", "sparsity", "zeros_per_block", "scope", "criterion", "norm", "max_ratio", "min_ratio", "keep_zeros",
    "recover", "store", "steps", "schedule", "include", "exclude", "kinds", "skip_outputs", "layers", "data", "masks",
    "permute", "allow_nonfinite", "seed", "input_shapes", "verify",
)  # fmt: skip
RUNTIMES = ("tensorrt", "cusparselt", "cutlass", "openvino")


@click.command(cls=Command)
@model_argument
@click.option("-o", "--output", metavar="OUT", type=click.Path(), help="The file to write; needed unless --dry-run.")
@click.option(
    "--pattern",
    metavar="PATTERN",
    help="Where zeros may fall: unstructured (default), N:M (N kept of M), RxC, channelx1, 1xchannel, or your own.",
)
@click.option("--sparsity", metavar="S", type=float, help="Fraction of zeros. Default: N:M's own, 0.5 for others.")
@click.option("--zeros-per-block", metavar="K", type=int, help="With RxC: zero K weights of a block, not all of it.")
@click.option("--scope", metavar="local|global", help="Rank inside each layer (default), or across layers.")
@click.option("--criterion", metavar="NAME", help="l1 (default), l2; with --data also wanda, sparsegpt.")
@click.option("--norm", metavar="l1|l2", help="How a block's weights make its score. Default: l1.")
@click.option("--max-ratio", metavar="R", type=float, help="No layer loses more than the fraction R. Default: 1.")
@click.option("--min-ratio", metavar="R", type=float, help="No layer loses less than the fraction R. Default: 0.")
@click.option("--keep-zeros", is_flag=True, default=None, help="Zeros that are there stay, and count.")
@click.option("--recover", metavar="none|lstsq", help="Fit what is left to --data. Default: with wanda, sparsegpt.")
@click.option("--store", metavar="HOW", help="dense (default), packed, sparse or mask.")
@click.option("--steps", metavar="K", type=int, help="Reach the sparsity in K levels. Default: 1.")
@click.option("--schedule", metavar="NAME", help="How the levels rise: linear (default), cubic, ...")
@click.option("--include", metavar="GLOB", multiple=True, help="Only these, by weight, tensor or node. Repeatable.")
@click.option("--exclude", metavar="GLOB", multiple=True, help="Leave these out. Repeatable.")
@click.option(
    "--kinds",
    metavar="LIST",
    type=comma_list,
    multiple=True,
    callback=flat,
    help="Kinds of weight: linear, convolution, recurrent (these by default), embedding.",
)
@click.option("--skip-outputs", is_flag=True, default=None, help="Leave the layers alone that make the outputs.")
@click.option(
    "--layers",
    metavar="GLOB:KEY=VALUE",
    type=layer_setting,
    multiple=True,
    callback=by_layer,
    help="A setting that differs for some layers, such as 'head*:sparsity=0.25'. Repeatable; later ones win.",
)
@click.option("--masks", metavar="FILE", type=click.Path(), help="Keep masks to start from; their zeros stay.")
@click.option("--save-masks", metavar="FILE", type=click.Path(), help="Save the masks, as .npz.")
@click.option("--permute", is_flag=True, default=None, help="Reorder channels first, so that more survives N:M.")
@click.option("--allow-nonfinite", is_flag=True, default=None, help="Keep NaN and infinity as the largest weights.")
@click.option("--eligibility", is_flag=True, help="Only say which layers run sparse where; write nothing.")
@input_shape_option
@config_option
@click.option("--seed", metavar="N", type=click.IntRange(min=0), help="For random samples. Default: 0.")
@click.option("--data", metavar="SOURCE", help="Samples to weigh by and to verify with: .npz, a folder, random:N.")
@click.option("--verify/--no-verify", default=True, help="Check the result before it is put in place. Default: yes.")
@click.option("--dry-run", is_flag=True, help="Decide, but write no model.")
@output_options
@common_options
def sparsify(**given: Any) -> None:
    """Set weights to zero by a pattern; every shape stays.

    Which weights: those of products, convolutions and recurrent layers, whatever their layout.
    """
    started = time.perf_counter()
    outputs = {"--output": given["output"], "--save-masks": given["save_masks"]}
    quiet_run = given["dry_run"] or given["eligibility"]
    if given["output"] is None and not quiet_run:
        raise click.UsageError("say where to write the sparse model: -o OUT (or --dry-run to only decide)")
    check_outputs(outputs, {"the model": given["model"], "the masks to start from": given["masks"]})
    with Progress(6, quiet=given["quiet"]) as progress:
        progress.stage("loading")
        import onnxprune

        source = onnxprune.load(given["model"])
        check_against_source(source, outputs)
        if given["eligibility"]:
            _report_eligibility(source, given)
            return
        options = {name: given[name] for name in DECIDING if given[name] not in (None, ())}
        result: SparsifyResult = onnxprune.sparsify(source, progress=_stages(progress), **options)
        document = {
            "command": "sparsify",
            "model": given["model"],
            "output": None,
            "dry_run": given["dry_run"],
            **result.to_json(),
        }
        good = result.proof is None or result.proof.ok
        if good and not given["dry_run"]:
            progress.stage("writing")
            onnxprune.save(result.model, given["output"], external_data=given["external_data"])
            document["output"] = given["output"]
        if good and given["save_masks"] is not None:
            from ..api import save_masks

            save_masks(result.masks, given["save_masks"])
    document["seconds"] = round(time.perf_counter() - started, 3)
    if given["as_json"]:
        emit(json.dumps(document, indent=1))
    else:
        _print(document)
    if result.proof is not None:
        result.proof.raise_if_failed()


def _stages(progress: Progress) -> Any:
    """Show each new phase as a stage."""
    seen: list[str] = []

    def report(phase: str, _done: int, _total: int) -> None:
        if phase not in seen:
            seen.append(phase)
            progress.stage(phase)

    return report


def _report_eligibility(source: Any, given: Mapping[str, Any]) -> None:
    from ..api import sparse_eligibility
    from .tables import Page, plural

    rows = sparse_eligibility(source)
    if given["as_json"]:
        emit(json.dumps({"command": "sparsify", "model": given["model"], "eligibility": rows}, indent=1))
        return
    page = Page()
    page.line(f"{given['model']}: {plural(len(rows), 'weight')}", style="bold")
    _print_eligibility(page, rows)
    emit(page.text)


def _print_eligibility(page: Page, rows: list[dict[str, Any]]) -> None:
    table = [
        (row["name"], row["op"], "x".join(map(str, row["shape"])), row["dtype"], *(_yes(row[r]) for r in RUNTIMES))
        for row in rows
    ]
    page.table(("weight", "operator", "shape", "type", *RUNTIMES), table, left=4)
    reasons: dict[str, list[str]] = {}
    for row in rows:
        for runtime in RUNTIMES:
            if row[runtime]:
                reasons.setdefault(f"{runtime}: {row[runtime]}", []).append(row["name"])
    from .tables import some

    for reason, names in reasons.items():
        page.item(f"{reason} ({some(names)})")


def _yes(reason: str | None) -> str:
    return "no" if reason else "yes"


def _print(document: Mapping[str, Any]) -> None:
    from .tables import Page, percent, quantity, storage

    page = Page()
    rows = [
        (
            row["name"],
            "x".join(map(str, row["shape"])),
            row["pattern"],
            percent(row["sparsity"]),
            percent(row["valid"]),
            percent(row["kept_magnitude"]),
            row["stored"],
            storage(row["bytes_after"]),
        )
        for row in document["layers"]
    ]
    head = ("weight", "shape", "pattern", "zeros", "fit the pattern", "magnitude kept", "stored", "bytes")
    page.table(head, rows, left=3)
    notes: dict[str, list[str]] = {}
    for row in document["layers"]:
        if row["note"]:
            notes.setdefault(row["note"], []).append(row["name"])
    _list(page, notes)
    left: dict[str, list[str]] = {}
    for row in document["left"]:
        left.setdefault(f"left alone, {row['reason']}", []).append(row["name"])
    _list(page, left)
    total = document["total"]
    size = total["bytes"]
    page.line()
    page.line(
        f"{total['layers']} weights, {quantity(total['size'])} elements, {percent(total['sparsity'])} zero; "
        f"{storage(size['before'])} became {storage(size['after'])} ({percent(size['ratio'])})",
        style="bold",
    )
    _print_proof(page, document)
    wrote = f"wrote {document['output']}" if document["output"] else "wrote no model"
    page.line(f"{wrote} ({document['seconds']:.1f} s)")
    from .result import emit as write

    write(page.text)


def _list(page: Page, by_reason: Mapping[str, list[str]]) -> None:
    from .tables import some

    for reason, names in by_reason.items():
        page.item(f"{reason}: {some(names)}")


def _print_proof(page: Page, document: Mapping[str, Any]) -> None:
    proof = document["verification"]
    if proof is None:
        page.line("not verified")
        return
    from .verdicts import agreement_line

    for check in proof["checks"]:
        if not check["ok"]:
            page.line(f"FAILED {check['name']}: {check['detail']}")
    same = "the same as" if proof["same_as_dense"] else "NOT the same as"
    page.line(f"as stored, the model computes {same} zeros in place")
    if proof["agreement"] is not None:
        page.line(f"with the original on {proof['data']}: {agreement_line(proof['agreement'])}")
    page.line("verified" if proof["ok"] else "verification FAILED", style="bold green" if proof["ok"] else "bold red")
