"""Real models with 30 % of the units of every exact group dead: what can go goes, and the outputs stay."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from onnxprune.axes.analysis import analyze_model
from onnxprune.axes.cuts import make_plan
from onnxprune.compaction import compact
from onnxprune.graph.model import Model, load
from onnxprune.planfile import PlanGroup
from tests.compact.planting import choose_units, has_rows, zero_rows
from tests.test_properties import run

FRACTION = 0.3
RTOL = 1e-5
MOST_KEPT = 0.05
# Units that no exact transformation takes out, by model: states rounded by the range of all states at the time.
LASTING = {"dksplit_bilstm_int8": "rounds what is not zero by the range of all its states"}
# A model whose own outputs hang on the batch: a LayerNorm over a dead channel divides what is left
# of rounding by the root of epsilon. It is compared where the sums are made in the same order.
ALONE = {"magika_v3_3": {"bytes": (1, 2048)}}


def models() -> list[Path]:
    """List the real models of the zoo."""
    zoo = os.environ.get("ONNXPRUNE_ZOO")
    return sorted(Path(zoo, "real", "models").glob("*.onnx")) if zoo else []


def spread(model: Model) -> float:
    """Measure how much outputs of a model hang on what else is in the batch, of their range."""
    (name,) = (v.name for v in model.proto.graph.input)
    x = np.random.default_rng(5).integers(0, 257, (4, 2048)).astype(np.int32)
    (together,) = run(model.proto, {name: x})
    alone = np.concatenate([run(model.proto, {name: x[k : k + 1]})[0] for k in range(len(x))])
    return float(np.abs(alone - together).max() / np.ptp(together))


@pytest.mark.slow
@pytest.mark.skipif(not models(), reason="ONNXPRUNE_ZOO names no folder with the zoo's models")
@pytest.mark.parametrize("path", models() or [Path("none")], ids=lambda p: p.stem)
def test_dead_units_of_a_real_model(path: Path) -> None:
    source = analyze_model(load(path))
    rng = np.random.default_rng(7)
    dead = {g.id: choose_units(g, FRACTION, rng) for g in source.groups if g.exact and has_rows(g)}
    analysis = analyze_model(zero_rows(source, dead))
    result = compact(analysis, input_shapes=ALONE.get(path.stem))
    kept = {(g.id, u): why for g in result.groups for u, why in g.kept if u in dead.get(g.id, ())}
    lasting = LASTING.get(path.stem)
    unexpected = [why for why in kept.values() if lasting is None or lasting not in why]
    n_units = sum(g.size for g in source.groups if g.exact)
    assert len(unexpected) <= MOST_KEPT * n_units, unexpected[:3]
    if result.n_removed:
        assert result.report is not None
        result.report.raise_if_failed()
        rows = result.report.agreement["outputs"].values()
        assert path.stem not in ALONE or spread(analysis.model) > RTOL
        assert max(row["max_rel"] for row in rows) <= RTOL
    went = {g.id: tuple(u for u in dead.get(g.id, ()) if (g.id, u) not in kept) for g in analysis.groups}
    if not kept:
        rows = [PlanGroup(g.id, g.kind, g.size, went[g.id], g.exact) for g in analysis.groups]
        pruned = analysis.costs(analysis.alive({g.id: g.removed for g in make_plan(analysis, rows).groups}))
        assert analyze_model(result.model).cost.params <= pruned.params
