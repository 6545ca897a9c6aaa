"""`verify`: every check, in one pass over the data."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort

from ..axes.costs import change
from ..data import Data, Feed, load_data, random_feeds
from ..errors import ModelError, OptionError, RuleDefect
from ..graph.model import Model, load
from ..graph.session import run
from ..planfile import REPAIRED, Plan
from .checks import Check, check_interface, check_shapes, check_slices, check_unlisted, check_valid
from .figures import check_twin, exact_figures, full_scales
from .metric import load_metric
from .room import refuse_too_large
from .tensors import graphs, held_tensors
from .trial import Trial
from .twin import twin_model
from .verdict import Verdict

RTOL = 1e-3
RTOL_REDUCED = 1e-2
ATOL = 1e-7
RANDOM_SAMPLES = 4
_REDUCED = frozenset({2, 3, 10, 16, 17, 18, 19, 20, 21, 22, 23})

Measure = Callable[[Model, Mapping[str, Sequence[int]] | None], Any]


def verify(  # noqa: PLR0913 - independent options, keyword only
    original: Any,
    pruned: Any,
    *,
    plan: Plan | str | Path | None = None,
    data: Any = None,
    rtol: float | None = None,
    atol: float = ATOL,
    metric: str | Callable[..., Any] | None = None,
    latency: bool = False,
    threads: int | None = None,
    seed: int = 0,
    input_shapes: Mapping[str, Sequence[int]] | None = None,
    recovered: bool = False,
    measure: Measure | None = None,
) -> Verdict:
    """Check a pruned model against its original and, with a `plan`, against the masked twin.

    Models are whatever `load` takes; `data` whatever `load_data` takes, random feeds from `seed` without it. The twin
    is compared on the first 16 feeds, the original on all. An output agrees when it differs by at most
    `atol` + `rtol` * (largest magnitude of the twin's); `rtol` is 1e-3, or 1e-2 where 16-bit floats or quantized
    weights round. `recovered` says that kept weights were repaired: their values are then not compared with the
    original's, and the twin gets them too. `metric` takes an InferenceSession, or is `FILE.py:FUNCTION`.
    `measure(model, input_shapes)` gives `params`, `macs` and `bytes`.

    Raises `TooLargeError` before anything runs where memory does not suffice for it, `ModelError` when the original
    does not load or run, `DataError` and `PlanError` when data or plan do not
    belong to it. What is wrong with the pruned model is in the verdict.
    """
    if (rtol is not None and rtol < 0) or atol < 0:
        raise OptionError("rtol and atol must not be negative")
    before, after = load(original), load(pruned)
    recovered = recovered or any(entry.key == REPAIRED for entry in after.skeleton.metadata_props)
    decided = Plan.load(plan) if isinstance(plan, (str, Path)) else plan
    shapes = input_shapes or (decided.input_shapes if decided is not None else None) or None
    if rtol is None:
        rtol = RTOL_REDUCED if _rounds(before) else RTOL
    figure = load_metric(metric) if metric is not None else None
    if threads is None and _varies_with_threads(before):
        threads = 1
    refuse_too_large(before)
    trial = Trial(before, after, threads, figure)
    trial.run_original(lambda session: _feeds(before, session, data, seed, (input_shapes, shapes)))
    checks = [check_valid(before, after), check_shapes(before, after), check_interface(before, after)]
    if decided is not None:
        checks.append(check_slices(before, after, decided, recovered=recovered))
        checks.append(check_unlisted(before, after, decided, recovered=recovered))
    runs = trial.run_pruned()
    checks += trial.checks
    exact, reason = None, _why_no_twin(before, after, decided, recovered=recovered)
    if decided is not None and reason is None and runs:
        trial.run_twin(twin_model(before, decided, after, recovered=recovered))
        if trial.twin_is_undefined:
            # A statistic of a zeroed unit may divide zero by zero: let the unit be, and keep it from being read.
            trial.run_twin(twin_model(before, decided, after, recovered=recovered, unread=True))
        assert trial.twin is not None
        assert trial.moved is not None
        checks.append(check_twin(trial.twin, trial.moved, rtol, atol, full_scales(before)))
        exact = exact_figures(trial.twin, trial.moved, rtol, atol)
    elif reason is None:
        reason = "the pruned model does not run"
    costs = _costs(measure or _measure, before, after, shapes, checks)
    return Verdict(
        checks=tuple(checks),
        exact=exact,
        exact_reason=reason,
        agreement=trial.agreement_figures(),
        params=costs["params"],
        macs=costs["macs"],
        bytes=costs["bytes"],
        latency_ms=trial.latency() if latency else None,
        metric=trial.metric(),
        data=trial.feeds.label,
    )


def _measure(model: Model, input_shapes: Mapping[str, Sequence[int]] | None) -> Any:
    from ..axes.costs import measure

    return measure(model, input_shapes)


def _costs(
    measure: Measure,
    before: Model,
    after: Model,
    shapes: Mapping[str, Sequence[int]] | None,
    checks: list[Check],
) -> dict[str, dict[str, Any]]:
    """Measure both models; a pruned model that cannot be measured fails a check instead of ending the verification."""
    was, now = measure(before, shapes), None
    try:
        now = measure(after, shapes)
    except (ModelError, RuleDefect) as error:
        checks.append(Check("costs", False, str(error)))
    return {key: change(getattr(was, key), getattr(now, key, None)) for key in ("params", "macs", "bytes")}


def _varies_with_threads(model: Model) -> bool:
    """Say whether onnxruntime's result depends on the number of threads: each takes a range of its own."""
    return any(node.op_type == "DynamicQuantizeLSTM" for _, graph in graphs(model.skeleton) for node in graph.node)


def _rounds(model: Model) -> bool:
    """Say whether the model computes in 16 bits or less, where reordering a sum moves it by more than 1e-3."""
    inputs = [v.type.tensor_type.elem_type for v in model.skeleton.graph.input]
    quantizes = any(node.op_type == "QuantizeLinear" for _, graph in graphs(model.skeleton) for node in graph.node)
    weights = [h.tensor.data_type for h in held_tensors(model.skeleton).values() if len(h.tensor.dims) > 1]
    return quantizes or any(kind in _REDUCED for kind in weights + inputs)


# Sizes to try for dynamic axes when a model does not run at the usual ones: text lines, crops, audio frames.
LENGTHS = (48, 32, 128, 224, 256, 320, 512, 576, 640, 1024, 4096, 16000)


def _feeds(
    model: Model,
    session: ort.InferenceSession,
    data: Any,
    seed: int,
    shapes: tuple[Mapping[str, Sequence[int]] | None, Mapping[str, Sequence[int]] | None],
) -> tuple[Data, Sequence[Any] | None]:
    """Load the data, or draw feeds of a shape that the model runs on, with what it gives on the first.

    `shapes` are those the caller states and those the plan was made at. A model may name its axes and yet take
    certain sizes only. The plan's own sizes come after others: a size that was written into the graph by mistake shows
    at any other.
    """
    stated, planned = shapes
    if data is not None:
        return load_data(data, model, seed=seed, input_shapes=stated), None
    tries: list[Try] = [(stated, 2, None), (stated, 1, None), (planned, 1, None)]
    return runnable_feeds(model, session, seed, [*tries, *((stated, 1, n) for n in LENGTHS)])


Try = tuple[Mapping[str, Sequence[int]] | None, int, int | None]


def runnable_feeds(
    model: Model, session: ort.InferenceSession, seed: int, tries: Sequence[Try]
) -> tuple[Data, Sequence[Any]]:
    """Draw feeds at the first input shapes, batch and length of `tries` that the model runs on.

    Gives them with the outputs on the first.
    Raises `ModelError` with what onnxruntime says to the first when it runs on none.
    """
    # Texts: an error would hold this frame, and with it all that it ran on.
    problems = []
    for wanted, batch, length in tries:
        draw = partial(random_feeds, model, seed=seed, input_shapes=wanted, batch=batch, length=length)
        try:
            trial = draw(1)[0]
            outputs = run(session, trial, model.label)
        except ModelError as error:
            problems.append(str(error))
        else:
            feeds = draw(_enough(trial))
            return Data(f"random:{len(feeds)}", partial(iter, feeds), len(feeds)), outputs
    raise ModelError(problems[0])


def _enough(feed: Feed) -> int:
    """Count the feeds that hold `RANDOM_SAMPLES`, but two at least: an output must show that it follows its input."""
    rows = [len(value) for value in feed.values() if isinstance(value, np.ndarray) and value.ndim]
    return max(2, -(-RANDOM_SAMPLES // max(1, min(rows, default=1))))


def _why_no_twin(before: Model, after: Model, plan: Plan | None, *, recovered: bool) -> str | None:
    """Give the reason why a masked twin would say nothing, None where it does."""
    if plan is None:
        return "no plan given"
    for group in plan.groups:
        if group.removed and not group.exact:
            return f"group {group.id!r} is not exact: {group.why_inexact or 'no reason in the plan'}"
    if recovered and _n_inputs(after) > _n_inputs(before):
        return "recovery added nodes or inputs that the original lacks"
    return None


def _n_inputs(model: Model) -> int:
    return sum(len(node.input) for _, graph in graphs(model.skeleton) for node in graph.node)
