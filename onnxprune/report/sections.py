"""The sections of a page, each made of some fields of the document; one whose fields are not there is empty."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from . import plots
from .html import NOTHING, Note, Number, figure, folded, paragraph, percent, plot, quantity, section, table, text

Document = Mapping[str, Any]
_LABELS = {
    "params": "Parameters",
    "macs": "MACs",
    "bytes": "Weight bytes",
    "latency_ms": "Time of a run",
    "metric": "Metric",
}
MOST_AXES = 200


@dataclass(frozen=True)
class Section:
    """A part of the page by name and title; `content` is "" when there is nothing to say."""

    name: str
    title: str
    content: str


def _made(name: str, title: str, *parts: str) -> Section:
    return Section(name, title, section(name, title, *parts) if any(parts) else "")


def prune_sections(document: Document) -> Iterator[Section]:
    """Give the sections of a `prune` run, the most asked for first."""
    yield _summary(document)
    yield _trade(document.get("trade"))
    yield _widths(document["plan"]["groups"])
    yield _scores(document.get("histograms") or {})
    yield _repairs(document.get("recovery"))
    if document.get("sensitivity"):
        yield from _sensitivity(document["sensitivity"])
    yield _frozen(document.get("frozen") or [], document["params"]["before"])
    yield _verification(document.get("verification"))


def sensitivity_sections(document: Document) -> Iterator[Section]:
    """Give the sections of a `sensitivity` run."""
    yield from _sensitivity(document)


# --- summary ---


def _summary(document: Document) -> Section:
    rows = {name: document.get(name) for name in _LABELS}
    verdict = document.get("verification") or {}
    rows = {name: row or verdict.get(name) for name, row in rows.items()}
    cards = "".join(_card(name, row) for name, row in rows.items() if row)
    shapes = document.get("input_shapes") or {}
    sizes = ", ".join(f"{name} {' x '.join(map(str, shape))}" for name, shape in shapes.items())
    note = paragraph(f"MACs for {sizes}.", "muted") if sizes else ""
    agreement = verdict.get("agreement")
    close = paragraph(f"With the original on {verdict['data']}: {_agreement(agreement)}.") if agreement else ""
    return _made("summary", "Summary", f'<dl class="cards">{cards}</dl>', note, close)


def _card(name: str, row: Document) -> str:
    unit = " ms" if name == "latency_ms" else ""
    before, after, ratio = row["before"], row["after"], row.get("ratio")
    spell = figure if name in ("metric", "latency_ms") else quantity
    sizes = f"{spell(before)}{unit} → {spell(after) if after is not None else NOTHING}{unit}"
    meter = ""
    if ratio is not None and name != "metric":
        meter = f'<span class="meter" aria-hidden="true"><i style="width:{100 * min(1.0, ratio):.1f}%"></i></span>'
    return (
        f'<div><dt>{_LABELS[name]}</dt><dd><span class="ratio">{percent(ratio)}</span>{meter}{text(sizes)}</dd></div>'
    )


def _agreement(agreement: Document) -> str:
    spelled = (
        ("cosine", "cosine", figure),
        ("relative_error", "relative error", figure),
        ("top1", "same top 1", percent),
    )
    parts = [f"{label} {spell(agreement[name])}" for name, label, spell in spelled if agreement.get(name) is not None]
    return ", ".join(parts) or "no figure"


# --- the search ---


def _trade(curve: Document | None) -> Section:
    if not curve or not curve["points"]:
        return Section("trade", "Trade", "")
    rows = [
        (
            "holds" if p["holds"] else "does not hold",
            Number(percent(p["fraction"]), p["fraction"]),
            Number(figure(p["value"]), p["value"]),
        )
        for p in curve["points"]
    ]
    by = plots.SIZES.get(curve["by"], "size")
    caption = f"Every model that was made and measured; the original has {figure(curve['original'])}."
    listed = table("trade-points", caption, ("bound", f"{by} left", "measured"), rows)
    drawn = plot(plots.trade(curve), f"What was measured, against the {by} that are left.")
    return _made("trade", "Trade", drawn, folded("The points as a table", listed))


# --- groups ---


def _widths(groups: Sequence[Document]) -> Section:
    pruned = [g for g in groups if g["removed"]]
    most = sorted(pruned, key=lambda g: -g["removed"])[: plots.MOST_BARS]
    names = {g["id"] for g in most}
    shown = [g for g in pruned if g["id"] in names]
    drawn = ""
    if shown:
        which = (
            f"The {len(shown)} groups that lose most of {len(pruned)}" if len(shown) < len(pruned) else "Pruned groups"
        )
        drawn = plot(plots.widths(shown), f"{which}, in the order of the graph.")
    rows = [
        (
            g["id"],
            Number(f"{g['size']:,}", g["size"]),
            Number(f"{g['size'] - g['removed']:,}", g["size"] - g["removed"]),
            Number(percent(g["removed"] / g["size"]), g["removed"] / g["size"]),
            g["kind"],
            "exact" if g["exact"] else "inexact",
            Note(g["locked"] or (g["why_inexact"] if g["removed"] else "") or ""),
        )
        for g in groups
    ]
    head = ("group", "before", "after", "removed", "kind", "exact", "note")
    caption = f"{len(groups)} prunable groups, {len(pruned)} of them pruned"
    return _made("widths", "Widths", drawn, table("groups", caption, head, rows) if rows else "")


def _scores(histograms: Mapping[str, Document]) -> Section:
    if not histograms:
        return Section("scores", "Scores", "")
    most = sorted(histograms, key=lambda name: -sum(histograms[name]["removed"]))[: plots.MOST_HISTOGRAMS]
    shown = {name: found for name, found in histograms.items() if name in set(most)}
    more = f" The {len(shown)} groups that lose most of {len(histograms)}." if len(shown) < len(histograms) else ""
    return _made(
        "scores", "Scores", plot(plots.scores(shown), f"Units by score; a higher score is worth keeping.{more}")
    )


def _repairs(recovery: Document | None) -> Section:
    layers = (recovery or {}).get("layers") or []
    if not layers:
        return Section("repairs", "Repairs", "")
    measured = [r for r in layers if r["error_before"] is not None and r["error_after"] is not None]
    worst = sorted(measured, key=lambda r: -r["error_before"])[: plots.MOST_BARS]
    marked = {id(r) for r in worst}
    shown = [r for r in measured if id(r) in marked]
    rows = [
        (
            r["node"] or r["weight"],
            r["how"],
            Number(figure(r["error_before"]), r["error_before"]),
            Number(figure(r["error_after"]), r["error_after"]),
            Note(r.get("why") or ""),
        )
        for r in layers
    ]
    head = ("layer", "repair", "error before", "error after", "note")
    drawn = plot(plots.repairs(shown), "Error of each layer's output on samples held out.") if shown else ""
    return _made("repairs", "Repairs", drawn, table("layers", f"{len(layers)} layers", head, rows))


# --- sensitivity ---


def _sensitivity(document: Document) -> Iterator[Section]:
    name, ratios = document["figure"], document["ratios"]
    groups = [g for g in document["groups"] if g["cells"]]
    original = document["original"][name]
    if not groups:
        yield Section("sensitivity", "Sensitivity", "")
        return
    falls = name == "metric"
    values = [c[name] for g in groups for c in g["cells"] if c[name] is not None]
    far = max((abs(v - original) for v in values), default=0.0)
    rows = [
        (g["id"], g["kind"], Number(f"{g['size']:,}", g["size"]), *(_hot(c, name, original, far) for c in g["cells"]))
        for g in groups
    ]
    head = ("group", "kind", "units", *(f"-{100 * r:g} %" for r in ratios))
    what = plots.FIGURE_NAMES[name]
    caption = f"{what} when one group alone loses units; the stronger the color, the farther from {figure(original)}"
    ranked = sorted(groups, key=lambda g: -_worst(g, name, original))[: plots.MOST_BARS]
    which = f"The {len(ranked)} most sensitive of {len(groups)} groups" if len(ranked) < len(groups) else "Groups"
    drawn = plot(plots.sensitivity(ranked, ratios, name, original), f"{which}, the most sensitive first.")
    on = f"Measured by {document['metric']}; higher is better." if falls else f"Measured on {document['data']}."
    left = [g for g in document["groups"] if not g["cells"]]
    note = paragraph(f"{len(left)} groups were left alone.", "muted") if left else ""
    heat = table("heat", caption[:1].upper() + caption[1:], head, rows, kind="heat")
    yield _made("sensitivity", "Sensitivity", paragraph(on), drawn)
    yield _made("heat-map", "Heat map", heat, note)


def _worst(group: Document, name: str, original: float) -> float:
    return max((abs(c[name] - original) for c in group["cells"] if c[name] is not None), default=0.0)


def _hot(cell: Document, name: str, original: float, far: float) -> Number:
    value = cell[name]
    if value is None:
        return Number("failed" if cell["error"] else NOTHING)
    return Number(figure(value), value, abs(value - original) / far if far else 0.0)


# --- frozen parts and checks ---


def _frozen(rows: Sequence[Document], total: int) -> Section:
    if not rows:
        return Section("frozen", "Frozen parts", "")
    listed = [
        (
            row["reason"],
            Number(f"{len(row['axes']):,}", len(row["axes"])),
            Number(quantity(row["params"]), row["params"]),
            Number(percent(row["params"] / total if total else None), row["params"]),
        )
        for row in rows
    ]
    head = ("reason", "axes", "parameters", "of the model")
    caption = "Why axes are locked; a weight with a locked axis may still be pruned along another"
    return _made("frozen", "Frozen parts", table("reasons", caption, head, listed), *map(_axes, rows))


def _axes(row: Document) -> str:
    names = [_axis(a) for a in row["axes"]]
    more = f" and {len(names) - MOST_AXES:,} more" if len(names) > MOST_AXES else ""
    count = "1 axis" if len(names) == 1 else f"{len(names):,} axes"
    return folded(f"{count}: {row['reason']}", paragraph(", ".join(names[:MOST_AXES]) + more, "muted"))


def _axis(axis: Document) -> str:
    at = f" by {axis['node']}" if axis["node"] else ""
    return f"{axis['initializer']}[{axis['axis']}] of {axis['size']}{at}"


def _verification(verdict: Document | None) -> Section:
    if not verdict:
        return Section("verification", "Verification", "")
    rows = [(c["name"], "ok" if c["ok"] else "FAILED", Note(c["detail"])) for c in verdict["checks"]]
    exact = verdict.get("exact")
    if exact is not None:
        words = (
            f"Against the masked twin the outputs differ by at most {figure(exact['max_abs'])}, "
            f"{figure(exact['max_rel'])} of their range; {exact['rtol']:g} is allowed."
        )
    else:
        words = f"Not compared with the masked twin: {verdict.get('exact_reason')}."
    return _made(
        "verification", "Verification", paragraph(words), table("checks", "Checks", ("check", "result", "detail"), rows)
    )
