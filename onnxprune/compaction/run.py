"""`compact`: find what is dead, cut it, fold what it left behind, and compare with the model as it was."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import onnx

from ..axes.analysis import Analysis
from ..axes.blame import blaming
from ..axes.cuts import make_plan
from ..data import load_data
from ..errors import OptionError
from ..graph.model import Model
from ..planfile import Plan, PlanGroup
from ..rewrite.apply import apply_plan, stamp
from ..select.eligible import eligible
from ..verification import Check, Verdict, verify
from .decide import Decision, decide
from .facts import Facts
from .fold import corrections, fold
from .observe import observe
from .result import CompactResult, outcomes

RTOL = 1e-4
RTOL_REDUCED = 1e-2
_REDUCED = frozenset((onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16))


def compact(  # noqa: PLR0913  one argument per option of the command line
    analysis: Analysis,
    *,
    data: Any = None,
    assume_data: bool = False,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    kinds: Sequence[str] | None = None,
    verified: bool = True,
    rtol: float | None = None,
    seed: int = 0,
    input_shapes: Mapping[str, Sequence[int]] | None = None,
) -> CompactResult:
    """Remove every unit of an analyzed model that is dead, and leave its outputs as they are.

    With `data`, units that are constant on every sample are listed as well; `assume_data` removes them, which is right
    for other inputs only as far as these samples speak for them. `include`, `exclude` and `kinds` limit the groups as
    in `plan`. The outputs are compared with the model's own on the data, or on random feeds: they may differ by `rtol`
    of their range, 1e-4, or 1e-2 where the model computes in 16 bits or quantized.

    Raises `OptionError` for `assume_data` without data, `UnknownNameError` for a glob or kind that names nothing.
    """
    if assume_data and data is None:
        raise OptionError("assume_data needs data: samples that stand for every input the model will see")
    left_out = eligible(analysis, kinds=kinds, allow_inexact=True, include=include, exclude=exclude)
    with blaming(analysis.model, input_shapes):
        facts = Facts(analysis)
    decision, seen = decide(facts, left_out), None
    if data is not None:
        samples = load_data(data, analysis.model, seed=seed, input_shapes=input_shapes)
        observe(facts, samples)
        seen = decide(facts, left_out)
        if assume_data:
            decision, seen = seen, None
    plan = _plan(analysis, decision, input_shapes)
    if plan.empty:
        return CompactResult(analysis.model, plan, analysis, outcomes(analysis, decision, seen))
    changes = corrections(facts, decision)
    smaller = fold(apply_plan(analysis, plan), changes)
    stamp(smaller.skeleton, analysis.model.sha256, plan.sha256, repaired=bool(changes))
    report = None
    if verified:
        report = compare(analysis.model, smaller, data=data, rtol=rtol, seed=seed, input_shapes=input_shapes)
    return CompactResult(smaller, plan, analysis, outcomes(analysis, decision, seen), report)


def _plan(analysis: Analysis, decision: Decision, input_shapes: Mapping[str, Sequence[int]] | None) -> Plan:
    rows = [
        PlanGroup(
            group.id,
            group.kind,
            group.size,
            tuple(sorted(decision.removed[g])),
            group.exact,
            {"criterion": "compact"},
            None,
            group.why_inexact,
            group.blocks,
        )
        for g, group in enumerate(analysis.groups)
    ]
    shapes = {name: tuple(shape) for name, shape in (input_shapes or {}).items()}
    return make_plan(analysis, rows, shapes)


def compare(
    before: Model,
    after: Model,
    *,
    data: Any = None,
    rtol: float | None = None,
    seed: int = 0,
    input_shapes: Mapping[str, Sequence[int]] | None = None,
) -> Verdict:
    """Verify a compacted model: valid, runs, and gives what the model before gives."""
    allowed = tolerance(before) if rtol is None else rtol
    verdict = verify(before, after, data=data, seed=seed, input_shapes=input_shapes)
    rows = (verdict.agreement or {}).get("outputs", {})
    wrong = [
        f"output {name!r} differs by {row['max_rel']:.1e} of its range (allowed {allowed:g})"
        for name, row in rows.items()
        if row["problem"] or row["max_rel"] > allowed or row["mismatch"] > allowed
    ]
    largest = max((row["max_rel"] for row in rows.values()), default=0.0)
    detail = "; ".join(wrong) or f"largest difference {largest:.1e} of an output's range"
    check = Check("same outputs", bool(rows) and not wrong, detail)
    return replace(verdict, checks=(*verdict.checks, check), exact_reason="compared with the model itself")


def tolerance(model: Model) -> float:
    """Give what rounding alone may do to the outputs of a model."""
    rounded = any(t.data_type in _REDUCED for t in model.tensors.values())
    quantized = any("Quantize" in node.op_type or "QLinear" in node.op_type for node in model.flat.nodes)
    return RTOL_REDUCED if rounded or quantized else RTOL
