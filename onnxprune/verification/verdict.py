"""The verdict: what was checked, what was measured, and whether it holds."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ..errors import VerificationError
from .checks import Check

Figures = Mapping[str, Any]


@dataclass(frozen=True)
class Verdict:
    """Outcome of `verify`; figures are dictionaries as `to_json` writes them.

    `exact` compares with the masked twin (`max_abs`, `max_rel`, per output) or is None for `exact_reason`. `agreement`
    compares with the original on the data. `params`, `macs`, `bytes`, `latency_ms` and `metric` hold before and after.
    """

    checks: tuple[Check, ...]
    exact: Figures | None
    exact_reason: str | None
    agreement: Figures | None
    params: Figures
    macs: Figures
    bytes: Figures
    latency_ms: Figures | None = None
    metric: Figures | None = None
    data: str = field(default="random")

    @property
    def ok(self) -> bool:
        """Say whether every check holds."""
        return all(check.ok for check in self.checks)

    @property
    def failures(self) -> tuple[Check, ...]:
        """The checks that do not hold."""
        return tuple(check for check in self.checks if not check.ok)

    def raise_if_failed(self) -> Verdict:
        """Give the verdict back when it is ok, else raise `VerificationError` naming what failed."""
        if self.ok:
            return self
        first, *others = self.failures
        more = f"\nalso failed: {', '.join(check.name for check in others)}" if others else ""
        raise VerificationError(f"verification failed: {first.name}: {first.detail}{more}")

    def to_json(self) -> dict[str, Any]:
        """Give the document of `verify --json`; a figure that is no finite number becomes null."""
        document = {
            "ok": self.ok,
            "exact": self.exact,
            "exact_reason": self.exact_reason,
            "agreement": self.agreement,
            "params": self.params,
            "macs": self.macs,
            "bytes": self.bytes,
            "latency_ms": self.latency_ms,
            "metric": self.metric,
            "data": self.data,
            "checks": [{"name": c.name, "ok": c.ok, "detail": c.detail} for c in self.checks],
        }
        cleaned: dict[str, Any] = _finite(document)
        return cleaned


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
