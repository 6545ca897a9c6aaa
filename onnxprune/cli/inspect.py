"""`onnxprune inspect`: what is in a model, what may go, and why the rest may not."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import click

from .failures import Command
from .options import common_options, group_options, input_shape_option, model_argument
from .progress import Progress
from .result import emit
from .stored import note_stored

if TYPE_CHECKING:
    from .tables import Page


@click.command(cls=Command)
@model_argument
@click.option("--why", "tensor", metavar="NAME", help="Explain the axes of one initializer or value instead.")
@group_options
@input_shape_option
@common_options
def inspect(  # noqa: PLR0913 - click passes options by name
    *,
    model: str,
    tensor: str | None,
    include: tuple[str, ...],
    exclude: tuple[str, ...],
    kinds: tuple[str, ...] | None,
    input_shapes: dict[str, tuple[int, ...]] | None,
    as_json: bool,
    quiet: bool,
    debug: bool,
) -> None:
    """Show parameters, MACs, prunable groups, and locked axes with reasons."""
    del debug
    with Progress(3, quiet=quiet) as progress:
        progress.stage("loading")
        import onnxprune

        from .survey import survey, why

        loaded = onnxprune.load(model)
        note_stored(loaded)
        progress.stage("analyzing")
        analysis = onnxprune.analyze(loaded, input_shapes=input_shapes)
        progress.stage("counting")
        found = why(analysis, tensor) if tensor is not None else survey(analysis, kinds, include, exclude)
    if as_json:
        emit(json.dumps({"command": "inspect", "model": model, **found}, indent=1))
        return
    from .tables import Page

    page = Page()
    if tensor is not None:
        _print_why(page, found)
    else:
        _print_survey(page, model, found)
    emit(page.text)


def _print_survey(page: Page, model: str, found: Mapping[str, Any]) -> None:
    from .tables import quantity, shapes_note, storage

    figures = f"{quantity(found['params'])} parameters, {quantity(found['macs'])} MACs, {storage(found['bytes'])}"
    page.line(f"{model}: {figures}", style="bold")
    if found["input_shapes"]:
        page.line(shapes_note(found["input_shapes"]))
    page.line()
    _print_groups(page, found["groups"])
    _print_locked(page, found["locked"])
    for row in found["without_rule"]:
        page.line(f"no rule for {row['op']}: {', '.join(row['nodes'])}")
    for row in found["tried"]:
        page.line(f"what {row['op']} does with its axes was found by running it: {', '.join(row['nodes'])}")


def _print_groups(page: Page, groups: list[dict[str, Any]]) -> None:
    from .tables import plural, quantity

    if not groups:
        page.line("No prunable groups.", style="bold")
        page.line()
        return
    inexact = sum(not g["exact"] for g in groups)
    note = f"; {inexact} inexact, pruned only with --allow-inexact or --kinds" if inexact else ""
    page.line(f"{plural(len(groups), 'prunable group')}{note}", style="bold")
    rows = [
        (g["id"], g["kind"], f"{g['size']:,}", f"{g['unit']['params']:,}", quantity(g["unit"]["macs"]), _exact(g))
        for g in groups
    ]
    details = []
    for group in groups:
        axes: dict[str, list[str]] = {}
        for span in group["spans"]:
            axes.setdefault(span["role"], []).append(f"{span['initializer']}[{span['axis']}]")
        detail: list[tuple[str, str]] = [
            (role, ", ".join(axes[role])) for role in ("output", "input", "parameter") if role in axes
        ]
        detail.append(("layout", f"{group['layout']['initializer']}: {group['layout']['axes']}"))
        if not group["exact"]:
            detail.append(("inexact", str(group["why_inexact"])))
        if group["tried"]:
            detail.append(("by trial", f"no rule, found by running: {', '.join(group['tried'])}"))
        details.append(detail)
    page.listing(("group", "kind", "units", "params each", "MACs each", ""), rows, details)
    page.line()


def _exact(group: Mapping[str, Any]) -> str:
    return "exact" if group["exact"] else "inexact"


WINDOW = "a window moves over it"


def _print_locked(page: Page, locked: list[dict[str, Any]]) -> None:
    from .tables import plural, some

    if not locked:
        return
    page.line(f"{len(locked):,} locked {'axis' if len(locked) == 1 else 'axes'}", style="bold")
    windows = [row for row in locked if row["reason"].startswith(WINDOW)]
    if windows:
        names = list(dict.fromkeys(row["initializer"] for row in windows))
        page.item(f"kernel axes of {plural(len(names), 'weight')}, since {WINDOW}: {some(names)}")
    by_reason: dict[str, list[str]] = {}
    weights: dict[str, dict[str, int]] = {}
    for row in locked:
        if not row["reason"].startswith(WINDOW):
            axis = f"{row['initializer']}[{row['axis']}] of {row['size']}"
            by_reason.setdefault(row["reason"], []).append(axis)
            weights.setdefault(row["reason"], {})[row["initializer"]] = row["params"]
    for reason, axes in by_reason.items():
        page.item(f"{reason} ({sum(weights[reason].values()):,} parameters): {', '.join(axes)}")
    page.line()


def _print_why(page: Page, found: Mapping[str, Any]) -> None:
    shape = " x ".join(map(str, found["shape"])) or "scalar"
    page.line(f"{found['name']}  {shape}{', initializer' if found['initializer'] else ''}", style="bold")
    for row in found["axes"]:
        page.line()
        head = f"axis {row['axis']}, size {row['size']}"
        groups = ", ".join(map(repr, row["groups"]))
        chain = row["chain"]
        if chain is None:
            page.line(f"{head}: prunable, in group {groups}", style="green")
            continue
        if not row["groups"]:
            page.line(f"{head}: locked", style="red")
        elif row["prunable"] < row["size"]:
            page.line(f"{head}: {row['prunable']} prunable, in group {groups}; the rest is locked", style="yellow")
        else:
            page.line(f"{head}: prunable, in group {groups}; another factor of it is locked", style="yellow")
        for step in chain["steps"]:
            through = f"  through {step['through']}" if step["through"] else ""
            page.item(f"{step['value']}[{step['axis']}]{through}")
        page.item(f"frozen: {chain['reason']}")
