"""A verdict for people: the checks, how close, how much smaller."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ..axes.analysis import Analysis
    from ..axes.costs import Cost
    from ..graph.model import Model
    from .tables import Page


class Meter:
    """Measures models for `verify`, and remembers what input shapes the figures hold for.

    `known` is an analysis made before, which is not repeated.
    """

    def __init__(self, known: Analysis | None = None) -> None:
        self._known = known
        self.shapes: dict[str, list[int]] = {}

    def __call__(self, model: Model, input_shapes: Mapping[str, Sequence[int]] | None) -> Cost:
        """Count parameters, multiply-accumulates and bytes."""
        import onnxprune

        from .survey import shapes_taken

        known = self._known is not None and self._known.model is model
        analysis = onnxprune.analyze(self._known if known else model, input_shapes=input_shapes)
        self.shapes = self.shapes or shapes_taken(analysis)
        return analysis.cost


def print_verdict(page: Page, verdict: Mapping[str, Any], *, checks: bool) -> None:
    """Print a verdict in the form of `verify --json`: all its checks, or the failed ones only."""
    shown = [c for c in verdict["checks"] if checks or not c["ok"]]
    width = max((len(c["name"]) for c in shown), default=0)
    for check in shown:
        found = "ok" if check["ok"] else "FAILED"
        page.labeled(found, f"{check['name']:<{width}}  {check['detail']}", indent=0, width=6)
    exact, agreement = verdict["exact"], verdict["agreement"]
    if exact is not None:
        page.line(
            f"masked twin: largest difference {exact['max_abs']:.2g}, {exact['max_rel']:.2g} of the output's range "
            f"(allowed {exact['rtol']:g})"
        )
    else:
        page.line(f"masked twin: not compared, {verdict['exact_reason']}")
    if agreement is not None:
        page.line(f"with the original on {verdict['data']}: {agreement_line(agreement)}")
    if verdict["ok"]:
        page.line("verified", style="bold green")
    else:
        page.line("verification FAILED", style="bold red")


_FIGURES: tuple[tuple[str, str, Callable[[float], str]], ...] = (
    ("cosine", "cosine", lambda x: f"{x:.4f}"),
    ("relative_error", "relative error", lambda x: f"{x:.3g}"),
    ("top1", "same top 1", lambda x: f"{100 * x:.1f} %"),
)


def agreement_line(agreement: Mapping[str, Any]) -> str:
    """Spell how close two models are in one line."""
    parts = [f"{label} {spell(agreement[key])}" for key, label, spell in _FIGURES if agreement[key] is not None]
    return ", ".join(parts) or "no figure"
