"""What a plan decides, for `prune` and `mask`: as a document and as tables."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ..planfile import Plan
    from .tables import Page


def plan_document(plan: Plan) -> dict[str, Any]:
    """Sum up a plan for `--json`; the indices themselves are in the file of `--save-plan`."""
    return {
        "sha256": plan.sha256,
        "source_sha256": plan.source_sha256,
        "exact": plan.exact,
        "groups": [
            {
                "id": group.id,
                "kind": group.kind,
                "size": group.size,
                "removed": len(group.removed),
                "exact": group.exact,
                "why_inexact": group.why_inexact,
                "score": dict(group.score),
                "locked": group.locked,
            }
            for group in plan.groups
        ],
    }


def print_plan(page: Page, plan: Mapping[str, Any]) -> None:
    """Print what was found and removed, by kind, and what was left alone."""
    from .tables import plural

    groups = plan["groups"]
    kinds = list(dict.fromkeys(g["kind"] for g in groups))
    rows: list[tuple[str, ...]] = []
    for kind in kinds:
        of_kind = [g for g in groups if g["kind"] == kind]
        pruned = [g for g in of_kind if g["removed"]]
        units, removed = sum(g["size"] for g in of_kind), sum(g["removed"] for g in of_kind)
        rows.append((kind, f"{len(of_kind):,}", f"{len(pruned):,}", f"{units:,}", f"{removed:,}"))
    if len(rows) > 1:
        rows.append(("all", *(f"{sum(int(r[k].replace(',', '')) for r in rows):,}" for k in range(1, 5))))
    page.table(("kind", "groups", "pruned", "units", "removed"), rows)
    reasons: dict[str, list[str]] = {}
    for group in groups:
        if group["locked"]:
            reasons.setdefault(group["locked"], []).append(group["id"])
    for reason, ids in list(reasons.items())[:MOST_REASONS]:
        page.line(f"left alone: {plural(len(ids), 'group')}, {reason}")
    if len(reasons) > MOST_REASONS:
        page.line(f"left alone: {len(reasons) - MOST_REASONS} more reasons, all in --json")
    inexact = [g for g in groups if g["removed"] and not g["exact"]]
    if inexact:
        page.line(
            f"inexact: {plural(len(inexact), 'group')} pruned behind a statistic over the pruned axis "
            f"({inexact[0]['why_inexact']}); the result differs from the masked model"
        )


MOST_REASONS = 4
