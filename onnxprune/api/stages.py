"""One function per stage: load, analyze, plan, apply, verify, save, and what lies between them."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from ..axes.analysis import Analysis, analyze_model
from ..axes.probe import probing
from ..errors import OptionError
from ..graph import model as files
from ..graph.model import Model
from ..planfile import Plan
from ..select.choose import DEFAULT_CRITERION, Options, choose
from .memory import within_memory

if TYPE_CHECKING:
    from ..recover import Recovery
    from ..select.curves import ErrorCurve

DEFAULT_WITH_DATA = "obs"
InputShapes = Mapping[str, Sequence[int]]


@within_memory
def load(source: Any) -> Model:
    """Open a model from a path, an `onnx.ModelProto` or an onnx-graphsurgeon `Graph`.

    Raises `ModelError` when there is no such file, or it is no ONNX model this package can use.
    """
    return files.load(source)


@within_memory
def analyze(model: Any, *, input_shapes: InputShapes | None = None, probe: bool = True) -> Analysis:
    """Find what can go together: prunable groups, and locked axes with reasons.

    `input_shapes` gives sizes for dynamic axes during analysis, by input name. `probe` tries operators without a rule
    in onnxruntime; without it they freeze all they touch. An `Analysis` is given back as it is.
    """
    if isinstance(model, Analysis):
        return model
    with probing(wanted=probe):
        return analyze_model(files.load(model), input_shapes)


@within_memory
def plan(  # noqa: PLR0913  one argument per option of the command line
    model: Any,
    *,
    ratio: float | None = None,
    target: Mapping[str, float] | None = None,
    max_drop: float | None = None,
    metric: str | Callable[..., Any] | None = None,
    minimize: str = "macs",
    criterion: str | None = None,
    scope: str | None = None,
    max_ratio: float = 0.9,
    round_to: int | str | None = None,
    kinds: Sequence[str] | None = None,
    allow_inexact: bool = False,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    chains: str | Sequence[str] | None = None,
    seed: int = 0,
    data: Any = None,
    recover: str | None = None,
    input_shapes: InputShapes | None = None,
    threads: int | None = None,
    progress: Callable[[str], None] | None = None,
) -> Plan:
    """Decide which units go.

    `ratio` removes that fraction of every prunable group; `target` maps "params", "macs", "bytes" or "latency" to the
    fraction of the original that may remain; `max_drop` makes the model as small as can be, by `minimize`, while
    `metric` (a function of an InferenceSession, or `FILE.py:FUNCTION`; higher = better) falls by no more than that.
    A latency or a drop is searched for with models that are really made and measured, on `threads` threads of
    onnxruntime; `progress` is told what is under way, and the plan's `trade` is the curve that was seen. `chains`
    limits the choice to groups on matched node chains. `model` may be an `Analysis` made before. `criterion` is "obs"
    by default with `data`, samples to run the model on, and "l2" without; `recover` is how models are repaired while
    they are searched for, see `apply`. The other arguments are those of the command line's `prune`.

    Raises `OptionError` for bad arguments, `NotMetError` when nothing can be pruned, `TargetError` for a target out
    of reach.
    """
    options = Options(
        ratio=ratio,
        target=dict(target or {}),
        max_drop=max_drop,
        minimize=minimize,
        criterion=criterion or (DEFAULT_CRITERION if data is None else DEFAULT_WITH_DATA),
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
    if data is not None:
        from ..data import load_data
        from ..recover import with_data

        data = load_data(data, analysis.model, seed=seed, input_shapes=input_shapes)
        options = with_data(analysis, options, data, threads=threads, say=progress)
    weights = chain_weights(analysis, chains)
    if max_drop is None and metric is None and "latency" not in options.target:
        return choose(analysis, options, weights)
    from ..search import decide

    # Gradients for every model that is tried would take too long; what they add comes on top of the drop found.
    repairs = "lstsq" if recover == "distill" else recover

    def build(decided: Plan) -> Model:
        # A repair takes long, and no model runs faster or slower for it.
        return apply(analysis, decided) if max_drop is None else apply(analysis, decided, recover=repairs, data=data)

    return decide(
        analysis, options, weights, build=build, metric=metric, threads=threads, say=progress or (lambda _: None)
    )


@within_memory
def error_curves(
    model: Any,
    *,
    data: Any = None,
    criterion: str | None = None,
    input_shapes: InputShapes | None = None,
    **options: Any,
) -> tuple[ErrorCurve, ...]:
    """Say for every group that may be pruned what its cheapest units cost, by how many of them go.

    `options` are those of `plan` that limit or rank: `max_ratio`, `round_to`, `kinds`, `allow_inexact`, `include`,
    `exclude`, `seed`. Raises as `plan` does.
    """
    from ..select.choose import rank
    from ..select.curves import error_curves as curves

    chosen = Options(ratio=0.0, criterion=criterion or (DEFAULT_CRITERION if data is None else DEFAULT_WITH_DATA))
    chosen = replace(chosen, **options)
    chosen.check()
    analysis = analyze(model, input_shapes=input_shapes)
    if data is not None:
        from ..data import load_data
        from ..recover import with_data

        samples = load_data(data, analysis.model, seed=chosen.seed, input_shapes=input_shapes)
        chosen = with_data(analysis, chosen, samples)
    return curves(rank(analysis, chosen))


def chain_weights(analysis: Analysis, names: str | Sequence[str] | None) -> set[str] | None:
    """Name the weights on the node chains `names`, None for all weights."""
    if names is None:
        return None
    from ..chains import chain_weights as weights_on
    from ..chains import match

    wanted = [names] if isinstance(names, str) else list(names)
    graph = analysis.collection.view.graph
    return weights_on([m for name in wanted for m in match(graph, name)])


@within_memory
def apply(
    model: Any,
    plan: Plan | str | os.PathLike[str],
    *,
    recover: str | Recovery | None = None,
    data: Any = None,
    distill_steps: int | None = None,
) -> Model:
    """Give a smaller model: cut what the plan says and refresh every size. An empty plan gives the model itself.

    `plan` may be the path of a plan file. `recover` repairs the weights that stay from samples, `data`: "bias" shifts
    biases by what is gone, "lstsq" (the default with `data`) fits weights and biases anew, "distill" then tunes them by
    `distill_steps` steps of gradients, "none" leaves them; or it is what `repair` gave. Raises `PlanError` when the
    plan was made for another model.
    """
    from ..rewrite.apply import apply_plan

    decided = plan if isinstance(plan, Plan) else Plan.load(plan)
    analysis = _analysis_for(model, decided)
    if recover is None and data is None:
        return apply_plan(analysis, decided)
    found = recover if recover is not None and not isinstance(recover, str) else None
    if found is None:
        how = recover if isinstance(recover, str) else None
        found = repair(analysis, decided, data, how=how, distill_steps=distill_steps)
    return apply_plan(analysis, decided, found.values)


@within_memory
def repair(
    model: Any,
    plan: Plan | str | os.PathLike[str],
    data: Any,
    *,
    how: str | None = None,
    distill_steps: int | None = None,
    seed: int = 0,
    threads: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Recovery:
    """Find new values for the weights that `plan` leaves, layer by layer, from unlabeled samples.

    `how` is "bias", "lstsq" (the default), "distill" or "none". "distill" goes on from "lstsq" with `distill_steps`
    steps of gradients (400) towards the outputs of the original, and needs torch. Gives a `Recovery`: the values by
    initializer for `apply`, and what was done to every layer. `progress(done, total)` counts stages, then steps.

    Raises `UnknownNameError` for another way, `OptionError` without data, `DataError` for data that does not fit, and
    with "distill" `ModelError` for an operator that cannot be differentiated.
    """
    from ..recover import recover

    decided = plan if isinstance(plan, Plan) else Plan.load(plan)
    analysis = _analysis_for(model, decided)
    if data is not None:
        from ..data import load_data

        data = load_data(data, analysis.model, seed=seed, input_shapes=decided.input_shapes or None)
    if how == "distill":
        from ..distill import distill

        return distill(analysis, decided, data, steps=distill_steps, seed=seed, threads=threads, progress=progress)
    if distill_steps is not None:
        raise OptionError("distill_steps counts the steps of recover='distill'; choose that, or leave it out")
    return recover(analysis, decided, data, how or "lstsq", threads=threads, progress=progress)


def _analysis_for(model: Any, plan: Plan) -> Analysis:
    return model if isinstance(model, Analysis) else analyze(model, input_shapes=plan.input_shapes or None)


@within_memory
def mask(model: Any, plan: Plan | str | os.PathLike[str]) -> Model:
    """Give the masked twin of a plan: the model's own shapes, every removed slice zero.

    The pruned model is made on the way: it says which node reads which version of a shared initializer.
    """
    from ..rewrite.apply import apply_plan, stamp
    from ..verification.twin import twin_model

    decided = plan if isinstance(plan, Plan) else Plan.load(plan)
    analysis = _analysis_for(model, decided)
    smaller = apply_plan(analysis, decided)
    if decided.empty:
        return analysis.model
    twin = twin_model(analysis.model, decided, smaller)
    stamp(twin.skeleton, analysis.model.sha256, decided.sha256)
    return twin


@within_memory
def save(model: Any, path: str | os.PathLike[str], *, external_data: bool | None = None) -> None:
    """Write a model whole or not at all.

    One file below 2 GB unless its data lay outside already; `external_data` True or False chooses.
    Raises `OptionError` when `path` is the model's own file or cannot be written.
    """
    files.save(files.load(model), path, external_data=external_data)


@within_memory
def verify(original: Any, pruned: Any, **options: Any) -> Any:
    """Check a pruned model against its original: see `onnxprune.verification.verify`."""
    from ..verification import verify as check

    return check(original, pruned, **options)
