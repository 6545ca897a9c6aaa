"""The plots of a report. Each takes rows of the document and gives a figure as SVG, with a text that says the same."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

from .svg import CARD, GONE, INK, KEPT, LINE, MARK, MUTED, themed, to_svg

MOST_BARS = 40
MOST_HISTOGRAMS = 18
_LABEL = 22

Row = Mapping[str, Any]


def short(name: str, most: int = _LABEL) -> str:
    """Cut a long name in its middle, where names of layers are alike."""
    if len(name) <= most:
        return name
    end = most * 2 // 3
    return f"{name[: most - end - 1]}…{name[-end:]}"


def labels(names: Sequence[str], most: int = _LABEL) -> list[str]:
    """Shorten names for a plot so that they stay apart.

    What all begin or end with goes, and so does a part that the next one repeats: /a/a.3/b/b.1/Conv becomes a.3/b.1.
    Where cutting makes two alike, their place in the list tells them apart.
    """
    paths = [_without_repeats(name.split("/")) for name in names]
    if len(paths) > 1:
        paths = _without_shared(paths)
        paths = [path[::-1] for path in _without_shared([path[::-1] for path in paths])]
    found = ["/".join(path) for path in paths]
    if len(set(found)) < len(found):
        found = list(names)
    cut = [short(name, most) for name in found]
    return [f"{short(c, most - 5)} ({k})" if cut.count(c) > 1 else c for k, c in enumerate(cut, 1)]


def _without_repeats(path: Sequence[str]) -> list[str]:
    return [
        part for part, after in pairwise([*path, ""]) if part and not after.startswith(f"{part}.") and part != after
    ]


def _without_shared(paths: Sequence[list[str]]) -> list[list[str]]:
    n = 0
    while all(len(path) > n + 1 and path[n] == paths[0][n] for path in paths):
        n += 1
    return [path[n:] for path in paths]


def widths(groups: Sequence[Row]) -> str:
    """Draw how wide each group was and is."""
    n = len(groups)
    with themed(64 + 15 * n) as figure:
        axes = figure.add_subplot()
        place = range(n)
        kept = [g["size"] - g["removed"] for g in groups]
        axes.barh(place, kept, color=KEPT, height=0.72, label="kept")
        axes.barh(place, [g["removed"] for g in groups], left=kept, color=GONE, height=0.72, label="removed")
        axes.set_yticks(place, labels([g["id"] for g in groups]))
        axes.set_ylim(n - 0.4, -0.6)
        axes.tick_params(axis="y", length=0)
        axes.set_xlabel("units")
        axes.grid(axis="x")
        axes.set_axisbelow(True)
        figure.legend(*axes.get_legend_handles_labels(), loc="outside upper right", ncols=2)
        most = max(groups, key=lambda g: g["removed"] / g["size"])
        text = (
            f"Bars of {n} groups, kept and removed units. Most is removed of {most['id']}: "
            f"{most['removed']} of {most['size']}."
        )
        return to_svg(figure, "widths", text)


def scores(histograms: Mapping[str, Row]) -> str:
    """Draw how the scores of kept and removed units are spread, a small plot per group."""
    from matplotlib.ticker import LogLocator, NullLocator

    columns = min(3, len(histograms))
    rows = -(-len(histograms) // columns)
    with themed(34 + 92 * rows) as figure:
        plots = figure.subplots(rows, columns, squeeze=False).ravel()
        titles = labels(list(histograms), 18)
        for axes, title, found in zip(plots, titles, histograms.values(), strict=False):
            edges, kept, gone = found["edges"], found["kept"], found["removed"]
            size = [b - a for a, b in pairwise(edges)]
            axes.bar(edges[:-1], gone, size, align="edge", color=GONE, label="removed")
            axes.bar(edges[:-1], kept, size, bottom=gone, align="edge", color=KEPT, label="kept")
            axes.set_title(title, fontsize=9, loc="left")
            axes.tick_params(labelsize=8, length=2)
            axes.locator_params(axis="y", nbins=3, integer=True)
            if found.get("scale") == "log":
                axes.set_xscale("log")
                axes.xaxis.set_major_locator(LogLocator(numticks=3))
                axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
                axes.xaxis.set_minor_locator(NullLocator())
            else:
                axes.locator_params(axis="x", nbins=3)
        for axes in plots[len(histograms) :]:
            axes.remove()
        handles, names = plots[0].get_legend_handles_labels()
        figure.legend(handles[::-1], names[::-1], loc="outside upper right", ncols=2)
        text = f"Histograms of unit scores in {len(histograms)} groups: the units with the lowest scores are removed."
        return to_svg(figure, "scores", text)


def trade(curve: Row) -> str:
    """Draw the measure against size, with the bound and the model that was taken."""
    points = curve["points"]
    with themed(260) as figure:
        axes = figure.add_subplot()
        x = [100 * p["fraction"] for p in points]
        axes.plot(x, [p["value"] for p in points], color=MUTED, linewidth=1.2, zorder=1)
        for holds, color, marker, label in ((True, KEPT, "o", "holds"), (False, GONE, "X", "does not hold")):
            chosen = [(100 * p["fraction"], p["value"]) for p in points if p["holds"] is holds]
            if chosen:
                across, up = zip(*chosen, strict=True)
                axes.scatter(across, up, s=36, color=color, marker=marker, label=label, zorder=3)
        taken = next((p for p in points if p["fraction"] == curve["chosen"]), None)
        if taken is not None:
            axes.scatter(
                100 * taken["fraction"], taken["value"], s=130, facecolor="none", edgecolor=INK, label="taken", zorder=2
            )
        axes.axhline(curve["bound"], color=MARK, linewidth=1, linestyle="--", label="bound")
        axes.axhline(curve["original"], color=LINE, linewidth=1, label="original")
        axes.set_xlabel(f"{SIZES.get(curve['by'], curve['by'])} left, % of the original's")
        axes.set_ylabel(str(_MEASURES.get(curve["measure"], curve["measure"])))
        axes.grid()
        axes.set_axisbelow(True)
        figure.legend(*axes.get_legend_handles_labels(), loc="outside upper right", ncols=3, handletextpad=0.4)
        text = (
            f"{len(points)} models of {min(x):.3g} to {max(x):.3g} % of the original's {curve['by']}. "
            f"Taken: {100 * curve['chosen']:.3g} %."
        )
        return to_svg(figure, "trade", text)


SIZES = {"macs": "MACs", "params": "parameters", "bytes": "weight bytes"}
_MEASURES = {"latency": "time of a run over the original's", "metric": "your metric"}


def sensitivity(groups: Sequence[Row], ratios: Sequence[float], figure_name: str, original: float) -> str:
    """Draw for each group what pruning it alone does, a dot per ratio."""
    n = len(groups)
    with themed(78 + 15 * n) as figure:
        axes = figure.add_subplot()
        for k, group in enumerate(groups):
            values = [c[figure_name] for c in group["cells"] if c[figure_name] is not None]
            if values:
                axes.plot(
                    [min([*values, original]), max([*values, original])], [k, k], color=LINE, linewidth=1, zorder=1
                )
        for j, ratio in enumerate(ratios):
            dots = [(g["cells"][j][figure_name], k) for k, g in enumerate(groups)]
            dots = [(value, k) for value, k in dots if value is not None]
            part = (j + 1) / len(ratios)
            if dots:
                across, up = zip(*dots, strict=True)
                axes.scatter(
                    across, up, s=14 + 34 * part, color=GONE, alpha=0.25 + 0.75 * part, linewidths=0.5,
                    edgecolors=CARD, label=f"{100 * ratio:g} %", zorder=2 + j,
                )  # fmt: skip
        axes.axvline(original, color=MARK, linewidth=1, linestyle="--", label="original")
        axes.set_yticks(range(n), labels([g["id"] for g in groups]))
        axes.set_ylim(n - 0.4, -0.6)
        axes.tick_params(axis="y", length=0)
        axes.set_xlabel(FIGURE_NAMES.get(figure_name, figure_name))
        axes.grid(axis="x")
        axes.set_axisbelow(True)
        handles, names = axes.get_legend_handles_labels()
        figure.legend(handles, names, loc="outside upper right", ncols=len(names), handletextpad=0.3, title="removed")
        text = (
            f"{FIGURE_NAMES.get(figure_name, figure_name)} of {n} groups, each pruned alone. First: {groups[0]['id']}."
        )
        return to_svg(figure, "sensitivity", text)


FIGURE_NAMES = {
    "metric": "your metric",
    "relative_error": "relative error of the outputs",
    "mismatch": "fraction of outputs that differ",
}


def repairs(layers: Sequence[Row]) -> str:
    """Draw the error of each repaired layer before and after."""
    n = len(layers)
    with themed(64 + 15 * n) as figure:
        axes = figure.add_subplot()
        for k, layer in enumerate(layers):
            axes.plot([layer["error_before"], layer["error_after"]], [k, k], color=LINE, linewidth=2, zorder=1)
        place = range(n)
        axes.scatter([r["error_before"] for r in layers], place, color=GONE, s=28, label="before", zorder=2)
        axes.scatter([r["error_after"] for r in layers], place, color=KEPT, s=28, label="after", zorder=3)
        axes.set_yticks(place, labels([r["node"] or r["weight"] for r in layers]))
        axes.set_ylim(n - 0.4, -0.6)
        axes.tick_params(axis="y", length=0)
        axes.set_xlabel("error of the layer's output on samples held out")
        axes.set_xlim(left=0)
        axes.grid(axis="x")
        axes.set_axisbelow(True)
        figure.legend(*axes.get_legend_handles_labels(), loc="outside upper right", ncols=2, handletextpad=0.1)
        better = sum(r["error_after"] < r["error_before"] for r in layers)
        return to_svg(figure, "repairs", f"Errors of {n} layers before and after repair; {better} are smaller after.")
