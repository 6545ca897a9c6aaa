"""`prune`: the stages in one call."""

from __future__ import annotations

import os
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..axes.analysis import Analysis
from ..errors import OptionError, TooLargeError
from ..graph import model as files
from ..graph.model import Model
from ..planfile import Plan
from . import stages
from .memory import within_memory
from .stages import InputShapes

if TYPE_CHECKING:
    from ..recover import Recovery
    from ..trade import Trade


@dataclass(frozen=True)
class PruneResult:
    """What `prune` gives: the smaller model, its plan, the analysis, and the verdict (None unless asked for).

    `recovery` says how the weights that stay were repaired, None where they were not. `why_unverified` says why there
    is no verdict, None where there is one.
    """

    model: Model
    plan: Plan
    analysis: Analysis
    report: Any = None
    recovery: Recovery | None = None
    why_unverified: str | None = None

    @property
    def trade(self) -> Trade | None:
        """Give what the search for a latency or a largest drop saw, None where none was made."""
        return self.plan.trade


@within_memory
def prune(  # noqa: PLR0913  one argument per option of the command line
    model: Any,
    output: str | os.PathLike[str] | None = None,
    *,
    plan: Plan | str | os.PathLike[str] | None = None,
    data: Any = None,
    recover: str | None = None,
    distill_steps: int | None = None,
    verify: bool = True,
    input_shapes: InputShapes | None = None,
    threads: int | None = None,
    **options: Any,
) -> PruneResult:
    """Load, analyze, plan, apply and verify in one call; write to `output` when given.

    `options` are those of `plan`; a `plan` made before replaces them. With `data`, units are ranked by "obs", the
    weights that stay are repaired (see `apply` for `recover`), and the result is verified on them. With `verify` (the
    default) the result carries the verdict in `report`, and nothing is written when it fails: `VerificationError`.
    Where memory does not suffice to verify, the result is written all the same, with a `RuntimeWarning`.
    """
    if plan is not None and options:
        raise OptionError(f"a plan was given, so {', '.join(sorted(options))} cannot be chosen as well")
    source = files.load(model)
    if output is not None:
        files.refuse_source(source, Path(output))
    decided = plan if isinstance(plan, Plan) or plan is None else Plan.load(plan)
    shapes = (decided.input_shapes or input_shapes) if decided is not None else input_shapes
    analysis = stages.analyze(source, input_shapes=shapes)
    if data is not None:
        from ..data import load_data

        data = load_data(data, source, seed=options.get("seed", 0), input_shapes=input_shapes)
    how = recover or ("none" if data is None else None)
    if decided is None:
        decided = stages.plan(analysis, data=data, recover=how, threads=threads, **options)
    recovery = None
    if how != "none":
        seed = options.get("seed", 0)
        recovery = stages.repair(
            analysis, decided, data, how=how, distill_steps=distill_steps, seed=seed, threads=threads
        )
    smaller = stages.apply(analysis, decided, recover=recovery)
    report, why = None, "nothing is removed" if decided.empty else None if verify else "verify=False"
    if why is None:
        recovered = recovery is not None and bool(recovery.values)
        given = {"data": data, "input_shapes": input_shapes, "recovered": recovered}
        try:
            report = stages.verify(source, smaller, plan=decided, **given)
        except TooLargeError as error:
            why = str(error)
            warnings.warn(f"not verified: {why}", RuntimeWarning, stacklevel=2)
        else:
            report.raise_if_failed()
    if output is not None:
        stages.save(smaller, output)
    return PruneResult(smaller, decided, analysis, report, recovery, why)
