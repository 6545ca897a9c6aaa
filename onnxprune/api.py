"""The Python interface: one function per stage, and their composition.

load → analyze → plan → apply → verify → save, and beside it sparsify, which needs no analysis
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .axes.analysis import Analysis, analyze_model
from .axes.costs import change
from .axes.probe import probing
from .errors import OptionError
from .graph import model as files
from .graph import staging
from .graph.model import Model
from .planfile import Plan
from .select.choose import DEFAULT_CRITERION, Options, choose
from .select.eligible import eligible

if TYPE_CHECKING:
    from .recover import Recovery
    from .select.curves import ErrorCurve
    from .trade import Trade

__all__ = [
    "PruneResult",
    "analyze",
    "apply",
    "change",
    "check_report",
    "compact",
    "eligible",
    "error_curves",
    "load",
    "mask",
    "plan",
    "prune",
    "read_report",
    "refuse_source",
    "repair",
    "report_details",
    "save",
    "save_masks",
    "sensitivity",
    "sparse_eligibility",
    "sparsify",
    "stored_weights",
    "unpack",
    "verify",
    "write_report",
    "write_text",
]

DEFAULT_WITH_DATA = "obs"
InputShapes = Mapping[str, Sequence[int]]
refuse_source = files.refuse_source
write_text = staging.write_text


def load(source: Any) -> Model:
    """Open a model from a path, an `onnx.ModelProto` or an onnx-graphsurgeon `Graph`.

    Raises `ModelError` when there is no such file, or it is no ONNX model this package can use.
    """
    return files.load(source)


def analyze(model: Any, *, input_shapes: InputShapes | None = None, probe: bool = True) -> Analysis:
    """Find what can go together: prunable groups, and locked axes with reasons.

    `input_shapes` gives sizes for dynamic axes during analysis, by input name. `probe` tries operators without a rule
    in onnxruntime; without it they freeze all they touch. An `Analysis` is given back as it is.
    """
    if isinstance(model, Analysis):
        return model
    with probing(wanted=probe):
        return analyze_model(files.load(model), input_shapes)


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
        from .data import load_data
        from .recover import with_data

        data = load_data(data, analysis.model, seed=seed, input_shapes=input_shapes)
        options = with_data(analysis, options, data, threads=threads, say=progress)
    weights = _chain_weights(analysis, chains)
    if max_drop is None and metric is None and "latency" not in options.target:
        return choose(analysis, options, weights)
    from .search import decide

    # Gradients for every model that is tried would take too long; what they add comes on top of the drop found.
    repairs = "lstsq" if recover == "distill" else recover

    def build(decided: Plan) -> Model:
        # A repair takes long, and no model runs faster or slower for it.
        return apply(analysis, decided) if max_drop is None else apply(analysis, decided, recover=repairs, data=data)

    return decide(
        analysis, options, weights, build=build, metric=metric, threads=threads, say=progress or (lambda _: None)
    )


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
    from .select.choose import rank
    from .select.curves import error_curves as curves

    chosen = Options(ratio=0.0, criterion=criterion or (DEFAULT_CRITERION if data is None else DEFAULT_WITH_DATA))
    chosen = replace(chosen, **options)
    chosen.check()
    analysis = analyze(model, input_shapes=input_shapes)
    if data is not None:
        from .data import load_data
        from .recover import with_data

        samples = load_data(data, analysis.model, seed=chosen.seed, input_shapes=input_shapes)
        chosen = with_data(analysis, chosen, samples)
    return curves(rank(analysis, chosen))


def _chain_weights(analysis: Analysis, names: str | Sequence[str] | None) -> set[str] | None:
    if names is None:
        return None
    from .chains import chain_weights, match

    wanted = [names] if isinstance(names, str) else list(names)
    graph = analysis.collection.view.graph
    return chain_weights([m for name in wanted for m in match(graph, name)])


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
    from .rewrite.apply import apply_plan

    decided = plan if isinstance(plan, Plan) else Plan.load(plan)
    analysis = _analysis_for(model, decided)
    if recover is None and data is None:
        return apply_plan(analysis, decided)
    found = recover if recover is not None and not isinstance(recover, str) else None
    if found is None:
        how = recover if isinstance(recover, str) else None
        found = repair(analysis, decided, data, how=how, distill_steps=distill_steps)
    return apply_plan(analysis, decided, found.values)


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
    from .recover import recover

    decided = plan if isinstance(plan, Plan) else Plan.load(plan)
    analysis = _analysis_for(model, decided)
    if data is not None:
        from .data import load_data

        data = load_data(data, analysis.model, seed=seed, input_shapes=decided.input_shapes or None)
    if how == "distill":
        from .distill import distill

        return distill(analysis, decided, data, steps=distill_steps, seed=seed, threads=threads, progress=progress)
    if distill_steps is not None:
        raise OptionError("distill_steps counts the steps of recover='distill'; choose that, or leave it out")
    return recover(analysis, decided, data, how or "lstsq", threads=threads, progress=progress)


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
    """What `prune` gives: the smaller model, its plan, the analysis, and the verdict (None unless asked for).

    `recovery` says how the weights that stay were repaired, None where they were not.
    """

    model: Model
    plan: Plan
    analysis: Analysis
    report: Any = None
    recovery: Recovery | None = None

    @property
    def trade(self) -> Trade | None:
        """Give what the search for a latency or a largest drop saw, None where none was made."""
        return self.plan.trade


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
    default) the result carries
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
    if data is not None:
        from .data import load_data

        data = load_data(data, source, seed=options.get("seed", 0), input_shapes=input_shapes)
    how = recover or ("none" if data is None else None)
    if decided is None:
        decided = globals()["plan"](analysis, data=data, recover=how, threads=threads, **options)
    recovery = None
    if how != "none":
        seed = options.get("seed", 0)
        recovery = repair(analysis, decided, data, how=how, distill_steps=distill_steps, seed=seed, threads=threads)
    smaller = apply(analysis, decided, recover=recovery)
    report = None
    if verify and not decided.empty:
        recovered = recovery is not None and bool(recovery.values)
        report = globals()["verify"](
            source, smaller, plan=decided, data=data, input_shapes=input_shapes, recovered=recovered
        )
        report.raise_if_failed()
    if output is not None:
        save(smaller, output)
    return PruneResult(smaller, decided, analysis, report, recovery)


def sparsify(  # noqa: PLR0913  one argument per option of the command line
    model: Any,
    output: str | os.PathLike[str] | None = None,
    *,
    pattern: Any = "unstructured",
    sparsity: float | None = None,
    zeros_per_block: int | None = None,
    scope: str = "local",
    criterion: Any = None,
    norm: Any = None,
    max_ratio: float = 1.0,
    min_ratio: float = 0.0,
    keep_zeros: bool = False,
    recover: str | None = None,
    store: str = "dense",
    steps: int = 1,
    schedule: Any = "linear",
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    kinds: Sequence[str] | None = None,
    skip_outputs: bool = False,
    layers: Mapping[str, Mapping[str, Any]] | None = None,
    data: Any = None,
    masks: Any = None,
    permute: bool = False,
    allow_nonfinite: bool = False,
    seed: int = 0,
    input_shapes: InputShapes | None = None,
    verify: bool = True,
    external_data: bool | None = None,
    progress: Any = None,
) -> Any:
    """Set weights to zero by a pattern, shapes unchanged; write to `output` when given.

    - `pattern`: `unstructured`, `RxC`, `N:M` (N kept of M), `channelx1`, `1xchannel`, or what `parse_pattern` takes.
    - `sparsity`: the fraction of zeros; without it what N:M says by itself, a half for others.
    - `scope`: "local", every layer its own sparsity, or "global", ranked across layers; no layer loses more than
      `max_ratio` or less than `min_ratio`.
    - `criterion`: "l1", "l2", a function of the weights, or with `data` "wanda" and "sparsegpt"; `norm` as of
      `keep_mask`.
    - `recover`: "lstsq" fits what is left to `data`, so that layers give what they gave (the default with "wanda" and
      "sparsegpt"), or "none".
    - `store`: "dense", "packed", "sparse" or "mask".
    - `layers`: glob to settings that differ from these: any of the names above up to `recover` but `scope`, and
      `skip`. Merged key by key in order, so that later ones win.
    - `steps`, `schedule`: reach the sparsity in several levels, each keeping the zeros of the one before. Without
      training in between this only matters for "sparsegpt".
    - `masks`: keep masks by weight name, or a file of them; what they zero stays zero.
    - `permute`: reorder channels first, exactly, so that more magnitude survives N:M.

    Gives a `SparsifyResult`: `model`, `layers` (what became of each weight), `masks`, `proof` and more. With `verify`
    nothing is written unless the result runs and computes what zeros in place would: `VerificationError`.

    Raises `OptionError` for settings that do not fit, `UnknownNameError` for globs and names that are none,
    `ModelError` for weights that are not finite, `NotMetError` when nothing can be sparsified.
    """
    from .sparsity.run import Options, sparsify_model
    from .sparsity.settings import Settings

    source = files.load(model)
    if output is not None:
        files.refuse_source(source, Path(output))
    defaults = Settings(
        pattern=pattern,
        sparsity=sparsity,
        zeros_per_block=zeros_per_block,
        criterion=criterion,
        norm=norm,
        max_ratio=max_ratio,
        min_ratio=min_ratio,
        keep_zeros=keep_zeros,
        recover=recover,
    )
    options = Options(
        defaults=defaults,
        layers=dict(layers or {}),
        scope=scope,
        steps=steps,
        schedule=schedule,
        store=store,
        include=tuple(include),
        exclude=tuple(exclude),
        kinds=None if kinds is None else tuple(kinds),
        skip_outputs=skip_outputs,
        permute=permute,
        allow_nonfinite=allow_nonfinite,
        data=data,
        masks=masks,
        seed=seed,
        input_shapes=input_shapes,
        verify=verify,
    )
    result = sparsify_model(source, options, progress)
    if output is not None:
        if result.proof is not None:
            result.proof.raise_if_failed()
        save(result.model, output, external_data=external_data)
    return result


def save_masks(masks: Mapping[str, Any], path: str | os.PathLike[str]) -> None:
    """Write keep masks by name to an `.npz`, whole or not at all."""
    from .masks.interchange import save_masks as write

    write(path, masks)


def sparse_eligibility(model: Any) -> list[dict[str, Any]]:
    """Say for every weight which runtimes could run it sparse; see `sparsity.eligibility`."""
    from .sparsity.eligibility import eligibility
    from .sparsity.weights import find_weights

    source = unpack(model)
    return eligibility(source, find_weights(source))


def unpack(model: Any, output: str | os.PathLike[str] | None = None) -> Model:
    """Give the model with every packed, sparse or masked weight dense again, exactly; write to `output` when given.

    It undoes `store` of `sparsify`, so that the weights can be pruned or compacted. A model without stored weights is
    given back as it is.
    """
    from .sparsity.storage import unpack as undo

    source = files.load(model)
    dense = undo(source)
    if output is not None:
        save(dense, output)
    return dense


def stored_weights(model: Any) -> tuple[str, ...]:
    """Name the weights that `unpack` would make dense."""
    from .sparsity.storage import stored_weights as stored

    return stored(files.load(model))


def compact(  # noqa: PLR0913  one argument per option of the command line
    model: Any,
    output: str | os.PathLike[str] | None = None,
    *,
    data: Any = None,
    assume_data: bool = False,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    kinds: Sequence[str] | None = None,
    verify: bool = True,
    rtol: float | None = None,
    seed: int = 0,
    input_shapes: InputShapes | None = None,
) -> Any:
    """Remove what is dead or constant already, leaving every output as it is; write to `output` when given.

    Gives a `CompactResult`: `model` (the source itself where nothing is dead), `plan`, `groups` with what went and why
    the rest stayed, and `report`, the comparison with the source. With `data`, units that are constant on every sample
    are listed, and with `assume_data` removed. The other arguments are those of the command line's `compact`.

    Raises `OptionError` for bad arguments; with `verify` (the default) nothing is written when the outputs differ by
    more than `rtol` of their range: `VerificationError`.
    """
    from .compaction import compact as run

    source = model.model if isinstance(model, Analysis) else files.load(model)
    if output is not None:
        files.refuse_source(source, Path(output))
    analysis = analyze(model if isinstance(model, Analysis) else source, input_shapes=input_shapes)
    result = run(
        analysis,
        data=data,
        assume_data=assume_data,
        include=tuple(include),
        exclude=tuple(exclude),
        kinds=kinds,
        verified=verify,
        rtol=rtol,
        seed=seed,
        input_shapes=input_shapes,
    )
    if output is not None:
        if result.report is not None:
            result.report.raise_if_failed()
        save(result.model, output)
    return result


def sensitivity(  # noqa: PLR0913  one argument per option of the command line
    model: Any,
    *,
    ratios: Sequence[float] = (0.1, 0.3, 0.5),
    data: Any = None,
    metric: Any = None,
    criterion: str | None = None,
    round_to: int | str | None = None,
    kinds: Sequence[str] | None = None,
    allow_inexact: bool = False,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    chains: str | Sequence[str] | None = None,
    jobs: int | None = 1,
    backend: str = "loky",
    address: str | None = None,
    threads: int = 1,
    resume: str | os.PathLike[str] | None = None,
    seed: int = 0,
    input_shapes: InputShapes | None = None,
    progress: Any = None,
) -> Any:
    """Measure how much each group hurts when it alone is pruned, at each of `ratios`.

    Each measurement rewrites the model and runs it: on `data`, compared with the original, or by `metric`, a function
    of an onnxruntime session or `FILE.py:FUNCTION`, or both. Groups lose their least important units by `criterion`,
    "obs" by default with `data` and "l2" without.

    `jobs` workers measure, None for one per core: processes here, or with `backend` "ray" or "dask" those of the
    cluster at `address`, each with `threads` threads of onnxruntime. The result is the same whoever measures. `resume`
    names a journal of finished cells that an interrupted run goes on from; `progress(done, total)` is called after
    every cell. The other arguments are those of `plan`.

    Gives a `Sensitivity`. A cell that cannot be measured says why: `raise_if_failed`. Raises `OptionError` for bad
    arguments and a package that is missing, `NotMetError` when nothing can be pruned or workers keep dying.
    """
    from .data import load_data
    from .select.choose import rank
    from .sweep import Settings, Workers, measure_sensitivity

    settings = Settings(ratios, Workers(jobs, backend, address), threads, resume, progress)
    settings.check()
    options = Options(
        ratio=max(ratios),
        criterion=criterion or (DEFAULT_CRITERION if data is None else DEFAULT_WITH_DATA),
        max_ratio=1.0,
        round_to=round_to,
        kinds=kinds,
        allow_inexact=allow_inexact,
        include=tuple(include),
        exclude=tuple(exclude),
        seed=seed,
    )
    options.check()
    analysis = analyze(model, input_shapes=input_shapes)
    feeds = None
    if data is not None:
        from .recover import with_data

        feeds = load_data(data, analysis.model, seed=seed, input_shapes=input_shapes)
        options = with_data(analysis, options, feeds, threads=threads)
    ranking = rank(analysis, options, _chain_weights(analysis, chains))
    return measure_sensitivity(ranking, settings, criterion=options.criterion, data=feeds, metric=metric)


def report_details(analysis: Analysis, plan: Plan) -> dict[str, Any]:
    """Give what a report says beyond the document of its run: frozen parts with reasons, and how scores are spread."""
    from .report import report_details as details

    return details(analysis, plan, plan.scores)


def check_report(path: str | os.PathLike[str]) -> None:
    """Refuse a report that could not be written, before the work begins; see `write_report`."""
    from .report import check_report as check

    check(path)


def write_report(document: Mapping[str, Any], path: str | os.PathLike[str]) -> int:
    """Write the document of a run as `.json` or as one self-contained `.html` page, and give its size in bytes.

    Raises `OptionError` for another ending, and where a page needs matplotlib and it is missing.
    """
    from .report import write_report as write

    return write(document, path)


def read_report(path: str | os.PathLike[str], *, sensitivity: str | os.PathLike[str] | None = None) -> dict[str, Any]:
    """Read the document of a run, and that of a sensitivity of the same model beside it."""
    from .report import read_report as read

    return read(path, sensitivity=sensitivity)
