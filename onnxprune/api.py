"""The Python interface: one function per stage, and their composition.

load → analyze → plan → apply → verify → save
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .axes.analysis import Analysis, analyze_model
from .axes.costs import change
from .errors import OptionError
from .graph import model as files
from .graph.model import Model
from .planfile import Plan
from .select.choose import Options, choose
from .select.eligible import eligible

__all__ = [
    "PruneResult",
    "analyze",
    "apply",
    "change",
    "eligible",
    "load",
    "mask",
    "plan",
    "prune",
    "refuse_source",
    "save",
    "verify",
    "write_text",
]

InputShapes = Mapping[str, Sequence[int]]
refuse_source = files.refuse_source
write_text = files.write_text


def load(source: Any) -> Model:
    """Open a model from a path, an `onnx.ModelProto` or an onnx-graphsurgeon `Graph`.

    Raises `ModelError` when there is no such file, or it is no ONNX model this package can use.
    """
    return files.load(source)


def analyze(model: Any, *, input_shapes: InputShapes | None = None) -> Analysis:
    """Find what can go together: prunable groups, and locked axes with reasons.

    `input_shapes` gives sizes for dynamic axes during analysis, by input name. An `Analysis` is given back as it is.
    """
    if isinstance(model, Analysis):
        return model
    return analyze_model(files.load(model), input_shapes)


def plan(  # noqa: PLR0913  one argument per option of the command line
    model: Any,
    *,
    ratio: float | None = None,
    target: Mapping[str, float] | None = None,
    criterion: str = "l2",
    scope: str | None = None,
    max_ratio: float = 0.9,
    round_to: int | str | None = None,
    kinds: Sequence[str] | None = None,
    allow_inexact: bool = False,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    chains: str | Sequence[str] | None = None,
    seed: int = 0,
    input_shapes: InputShapes | None = None,
) -> Plan:
    """Decide which units go.

    `ratio` removes that fraction of every prunable group; `target` maps "params", "macs" or "bytes" to the fraction
    of the original that may remain. `chains` limits the choice to groups on matched node chains. `model` may be an
    `Analysis` made before. The other arguments are those of the command line's `prune`.

    Raises `OptionError` for bad arguments, `NotMetError` when nothing can be pruned, `TargetError` for a target out
    of reach.
    """
    options = Options(
        ratio=ratio,
        target=dict(target or {}),
        criterion=criterion,
        scope=scope,
        max_ratio=max_ratio,
        round_to=round_to,
        kinds=kinds,
        allow_inexact=allow_inexact,
        include=tuple(include),
        exclude=tuple(exclude),
        seed=seed,
    )
    options.check()
    analysis = analyze(model, input_shapes=input_shapes)
    return choose(analysis, options, _chain_weights(analysis, chains))


def _chain_weights(analysis: Analysis, names: str | Sequence[str] | None) -> set[str] | None:
    if names is None:
        return None
    from .chains import chain_weights, match

    wanted = [names] if isinstance(names, str) else list(names)
    graph = analysis.collection.view.graph
    return chain_weights([m for name in wanted for m in match(graph, name)])


def apply(model: Any, plan: Plan | str | os.PathLike[str]) -> Model:
    """Give a smaller model: cut what the plan says and refresh every size. An empty plan gives the model itself.

    `plan` may be the path of a plan file. Raises `PlanError` when the plan was made for another model.
    """
    from .rewrite.apply import apply_plan

    decided = plan if isinstance(plan, Plan) else Plan.load(plan)
    return apply_plan(_analysis_for(model, decided), decided)


def _analysis_for(model: Any, plan: Plan) -> Analysis:
    return model if isinstance(model, Analysis) else analyze(model, input_shapes=plan.input_shapes or None)


def mask(model: Any, plan: Plan | str | os.PathLike[str]) -> Model:
    """Give the masked twin of a plan: the model's own shapes, every removed slice zero.

    The pruned model is made on the way: it says which node reads which version of a shared initializer.
    """
    from .rewrite.apply import apply_plan, stamp
    from .verification.twin import masked_twin

    decided = plan if isinstance(plan, Plan) else Plan.load(plan)
    analysis = _analysis_for(model, decided)
    smaller = apply_plan(analysis, decided)
    if decided.empty:
        return analysis.model
    twin = masked_twin(analysis.model, decided, smaller)
    stamp(twin, analysis.model.sha256, decided.sha256)
    return Model(twin, analysis.model.path)


def save(model: Any, path: str | os.PathLike[str], *, external_data: bool | None = None) -> None:
    """Write a model whole or not at all.

    One file below 2 GB unless its data lay outside already; `external_data` True or False chooses.
    Raises `OptionError` when `path` is the model's own file or cannot be written.
    """
    files.save(files.load(model), path, external_data=external_data)


def verify(original: Any, pruned: Any, **options: Any) -> Any:
    """Check a pruned model against its original: see `onnxprune.verification.verify`."""
    from .verification import verify as check

    return check(original, pruned, **options)


@dataclass(frozen=True)
class PruneResult:
    """What `prune` gives: the smaller model, its plan, the analysis, and the verdict (None unless asked for)."""

    model: Model
    plan: Plan
    analysis: Analysis
    report: Any = None


def prune(
    model: Any,
    output: str | os.PathLike[str] | None = None,
    *,
    plan: Plan | str | os.PathLike[str] | None = None,
    verify: bool = True,
    input_shapes: InputShapes | None = None,
    **options: Any,
) -> PruneResult:
    """Load, analyze, plan, apply and verify in one call; write to `output` when given.

    `options` are those of `plan`; a `plan` made before replaces them. With `verify` (the default) the result carries
    the verdict in `report`, and nothing is written when it fails: `VerificationError`.
    """
    if plan is not None and options:
        raise OptionError(f"a plan was given, so {', '.join(sorted(options))} cannot be chosen as well")
    source = files.load(model)
    if output is not None:
        files.refuse_source(source, Path(output))
    decided = plan if isinstance(plan, Plan) or plan is None else Plan.load(plan)
    shapes = (decided.input_shapes or input_shapes) if decided is not None else input_shapes
    analysis = analyze(source, input_shapes=shapes)
    if decided is None:
        decided = globals()["plan"](analysis, **options)
    smaller = apply(analysis, decided)
    report = None
    if verify and not decided.empty:
        report = globals()["verify"](source, smaller, plan=decided, input_shapes=input_shapes)
        report.raise_if_failed()
    if output is not None:
        save(smaller, output)
    return PruneResult(smaller, decided, analysis, report)
