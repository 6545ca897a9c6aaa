"""The runs: original, pruned model and masked twin side by side on every feed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnxruntime as ort

from ..axes.costs import change
from ..data import Data, Feed, input_specs
from ..errors import ModelError
from ..graph.model import Model
from ..graph.session import open_session, output_names, run
from .checks import Check
from .compare import Comparison, is_float, leaves
from .figures import agreement_figures
from .latency import measure_latency
from .metric import Metric

TWIN_FEEDS = 16


@dataclass
class Trial:
    """What the runs of one verification share and gather."""

    before: Model
    after: Model
    session: ort.InferenceSession
    feeds: Data
    threads: int | None
    checks: list[Check] = field(default_factory=list)
    pruned: ort.InferenceSession | None = None
    agreement: Comparison | None = None
    twin: Comparison | None = None
    moved: Comparison | None = None
    n_feeds: int = 0
    twin_is_undefined: bool = False

    def run(self, twin: Model | None) -> None:
        """Run everything and add the checks "runs" and "finite"."""
        try:
            self.pruned = open_session(self.after, threads=self.threads)
            self._pass(self.pruned, twin)
        except _PrunedFailedError as failure:
            self.pruned = None
            self.checks.append(Check("runs", False, str(failure)))
        except ModelError as error:
            if self.pruned is not None:
                raise
            self.checks.append(Check("runs", False, str(error)))

    def _pass(self, pruned: ort.InferenceSession, twin: Model | None) -> None:
        names, after_names = output_names(self.session), output_names(pruned)
        if len(names) != len(after_names):
            raise _PrunedFailedError(f"gives {len(after_names)} outputs, the original {len(names)}")
        agreement, against_twin, moved = Comparison.of(names), Comparison.of(names), Comparison.of(names)
        other = open_session(twin, threads=self.threads) if twin is not None else None
        finite: dict[str, None] = {}
        for k, feed in enumerate(self.feeds):
            expected = run(self.session, feed, self.before.label)
            found = _run_pruned(pruned, feed, self.after.label)
            agreement.add(expected, found)
            finite.update(dict.fromkeys(_not_finite(names, expected, found)))
            if other is not None and k < TWIN_FEEDS:
                masked = run(other, feed, "the masked twin")
                against_twin.add(masked, found)
                moved.add(expected, masked)
                self.twin_is_undefined |= any(_not_finite(names, found, masked))
            self.n_feeds = k + 1
        self.agreement = agreement
        if other is not None:
            self.twin, self.moved = against_twin, moved
        self.checks.append(Check("runs", True, f"{self.n_feeds} feeds of {self.feeds.label}"))
        detail = f"NaN or infinity where the original has none, in {', '.join(map(repr, finite))}" if finite else ""
        self.checks.append(Check("finite", not finite, detail))

    def compare_again(self, twin: Model) -> None:
        """Compare with another twin, where the first has NaN or infinity and the pruned model has not."""
        assert self.pruned is not None
        other = open_session(twin, threads=self.threads)
        names = output_names(self.session)
        self.twin, self.moved = Comparison.of(names), Comparison.of(names)
        for _, feed in zip(range(TWIN_FEEDS), self.feeds, strict=False):
            masked = run(other, feed, "the masked twin")
            self.twin.add(masked, _run_pruned(self.pruned, feed, self.after.label))
            self.moved.add(run(self.session, feed, self.before.label), masked)

    def agreement_figures(self) -> dict[str, Any] | None:
        """Give the agreement with the original, None when the pruned model does not run."""
        if self.agreement is None:
            return None
        return agreement_figures(self.agreement, input_specs(self.before), self.n_feeds)

    def latency(self) -> dict[str, Any] | None:
        """Time both models on the first feed."""
        if self.pruned is None:
            return None
        feed = next(iter(self.feeds.start()))
        return measure_latency(self.before, self.after, feed, threads=self.threads).to_json()

    def metric(self, figure: Metric) -> dict[str, Any] | None:
        """Evaluate the user's metric on both models."""
        if self.pruned is None:
            return None
        return change(figure(self.session), figure(self.pruned))


class _PrunedFailedError(Exception):
    """The pruned model loads but does not run as the original does."""


def _run_pruned(session: ort.InferenceSession, feed: Feed, label: str) -> Sequence[Any]:
    try:
        return run(session, feed, label)
    except ModelError as error:
        raise _PrunedFailedError(str(error)) from error


def _not_finite(names: Sequence[str], expected: Sequence[Any], found: Sequence[Any]) -> Iterator[str]:
    """Give the outputs with a NaN or an infinity where the original has a finite number."""
    for name, before, after in zip(names, expected, found, strict=True):
        pairs = zip(leaves(before), leaves(after), strict=False)
        for x, y in pairs:
            if not (is_float(x) and is_float(y)):
                continue
            sound = np.isfinite(x.astype(np.float64))
            bad = ~np.isfinite(y.astype(np.float64))
            if (bad & sound).any() if x.shape == y.shape else (bad.any() and sound.all()):
                yield name
                break
