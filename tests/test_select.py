"""Selection: what a ratio or a target removes, ties, alignment, limits, globs, kinds, and what it says if it cannot."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from onnx import numpy_helper

import onnxprune
from onnxprune.axes.analysis import Analysis, analyze_model
from onnxprune.axes.costs import measure
from onnxprune.errors import NotMetError, OptionError, TargetError, UnknownNameError
from onnxprune.graph.model import Model
from onnxprune.planfile import Plan
from onnxprune.select.eligible import Limits, aligned_removal, limits
from tests.random_graphs import build
from tests.test_engine import model_of, node


def chain(*widths: int, norm: bool = False) -> Model:
    """Linear layers of these widths, from 5 features to 3; with `norm` a LayerNorm behind the first."""
    nodes, weights, last, size = [], {}, "x", 5
    for k, width in enumerate((*widths, 3)):
        out = "y" if k == len(widths) else f"h{k}"
        nodes.append(node("Gemm", f"{last} w{k} b{k}", out, transB=1))
        weights |= {f"w{k}": (width, size), f"b{k}": (width,)}
        last, size = out, width
        if k < len(widths):
            nodes.append(node("Relu", last, f"r{k}"))
            last = f"r{k}"
        if norm and k == 0:
            nodes.append(node("LayerNormalization", f"{last} g s", "n"))
            weights |= {"g": (width,), "s": (width,)}
            last = "n"
    return model_of(nodes, weights, ("n", 5), ("n", 3))


def set_weight(model: Model, name: str, array: np.ndarray) -> None:
    for t in model.proto.graph.initializer:
        if t.name == name:
            t.CopyFrom(numpy_helper.from_array(array.astype(np.float32), name))


def removed(plan: Plan) -> dict[str, tuple[int, ...]]:
    return {g.id: g.removed for g in plan.groups}


def counts(plan: Plan) -> list[int]:
    return [len(g.removed) for g in plan.groups]


# --- ratio ---


@pytest.mark.parametrize(("ratio", "expected"), [(0.0, [0, 0]), (0.25, [4, 6]), (0.5, [8, 12]), (0.3, [4, 7])])
def test_a_ratio_removes_its_share_of_every_group(ratio: float, expected: list[int]) -> None:
    assert counts(onnxprune.plan(chain(16, 24), ratio=ratio)) == expected


def test_the_least_important_units_go() -> None:
    model = chain(6)
    set_weight(model, "w0", np.outer([3, 1, 5, 2, 9, 4], np.ones(5)))
    set_weight(model, "w1", np.outer(np.ones(3), [3, 1, 5, 2, 9, 4]))
    assert list(removed(onnxprune.plan(model, ratio=0.5)).values()) == [(0, 1, 3)]


def test_among_equals_the_lower_index_stays() -> None:
    model = chain(7)
    set_weight(model, "w0", np.ones((7, 5)))
    set_weight(model, "w1", np.ones((3, 7)))
    for criterion in ("l1", "l2", "fpgm", "lamp"):
        assert list(removed(onnxprune.plan(model, ratio=0.45, criterion=criterion)).values()) == [(4, 5, 6)], criterion


def test_a_global_ratio_ranks_across_groups() -> None:
    model = chain(8, 8)
    rising = np.arange(1, 9) ** 3.0
    set_weight(model, "w0", np.outer(rising, np.ones(5)))
    set_weight(model, "w1", np.outer(np.ones(8), rising))
    set_weight(model, "w2", np.ones((3, 8)))
    plan = onnxprune.plan(model, ratio=0.25, scope="global")
    assert sum(counts(plan)) == 4
    assert counts(plan)[0] > counts(plan)[1]


def test_the_same_call_gives_the_same_plan() -> None:
    model = chain(16, 24)
    for criterion in ("l2", "random"):
        one = onnxprune.plan(model, ratio=0.4, criterion=criterion, seed=3)
        assert one.dumps() == onnxprune.plan(model, ratio=0.4, criterion=criterion, seed=3).dumps()
    assert removed(onnxprune.plan(model, ratio=0.4, criterion="random", seed=4)) != removed(one)


# --- limits ---


@pytest.mark.parametrize(
    ("size", "max_ratio", "step", "expected"),
    [
        (10, 0.9, 1, 9),
        (10, 1.0, 1, 9),
        (10, 0.35, 1, 3),
        (10, 0.0, 1, 0),
        (20, 0.9, 8, 12),
        (7, 0.9, 8, 0),
        (16, 0.5, 8, 8),
    ],
)
def test_what_a_group_may_lose(size: int, max_ratio: float, step: int, expected: int) -> None:
    analysis = analyze_model(chain(size))
    assert limits(analysis.groups[0], max_ratio, step if step > 1 else None).removable == expected


@pytest.mark.parametrize(
    ("size", "wanted", "step", "expected"),
    [(20, 5, 4, 4), (20, 3, 4, 0), (21, 1, 4, 1), (21, 9, 4, 9), (21, 8, 4, 5), (16, 99, 4, 12)],
)
def test_what_stays_is_a_multiple_of_the_step(size: int, wanted: int, step: int, expected: int) -> None:
    assert aligned_removal(size, wanted, Limits(size - step, step)) == expected


def test_max_ratio_bounds_every_group() -> None:
    assert counts(onnxprune.plan(chain(16, 24), ratio=0.9, max_ratio=0.5)) == [8, 12]


@pytest.mark.parametrize("step", [2, 4, 8])
def test_round_to_keeps_multiples(step: int) -> None:
    for plan in (
        onnxprune.plan(chain(17, 24, 40), ratio=0.4, round_to=step),
        onnxprune.plan(chain(17, 24, 40), target={"params": 0.5}, round_to=step),
    ):
        kept = [g.size - len(g.removed) for g in plan.groups]
        assert sum(counts(plan)) > 0
        assert all(k % step == 0 or k == g.size for k, g in zip(kept, plan.groups, strict=True))


def test_auto_rounding_leaves_small_groups_alone() -> None:
    plan = onnxprune.plan(chain(10, 40), ratio=0.3, round_to="auto")
    assert counts(plan) == [3, 8]


# --- which groups ---


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        # w1 produces the second group's units; it only reads the first one's, which counts for excluding alone
        ({"include": ["w1"]}, [0, 12, 0]),
        ({"include": ["Gemm_h1"]}, [0, 12, 0]),
        ({"include": ["w[01]"]}, [8, 12, 0]),
        ({"exclude": ["w1"]}, [0, 0, 16]),
        ({"exclude": ["Gemm_h0"]}, [0, 12, 16]),
        ({"exclude": ["b0"]}, [0, 12, 16]),
        ({"include": ["w[01]"], "exclude": ["b1"]}, [8, 0, 0]),
    ],
)
def test_include_and_exclude_match_groups_nodes_and_initializers(
    options: dict[str, list[str]], expected: list[int]
) -> None:
    plan = onnxprune.plan(chain(16, 24, 32), ratio=0.5, **options)
    assert counts(plan) == expected
    assert {g.locked for g in plan.groups if not g.removed} <= {"excluded", "not included"}


def test_a_glob_that_names_nothing_is_refused() -> None:
    with pytest.raises(UnknownNameError):
        onnxprune.plan(chain(16), ratio=0.5, exclude=["wx*"])


def test_kinds_limit_the_choice_and_allow_inexact_ones() -> None:
    model = chain(16, 24, norm=True)
    assert counts(onnxprune.plan(model, ratio=0.5)) == [0, 12]
    assert counts(onnxprune.plan(model, ratio=0.5, allow_inexact=True)) == [8, 12]
    assert counts(onnxprune.plan(model, ratio=0.5, kinds=["features"])) == [8, 12]
    assert "inexact" in str(onnxprune.plan(model, ratio=0.5).groups[0].locked)
    with pytest.raises(UnknownNameError, match="Did you mean 'heads'"):
        onnxprune.plan(model, ratio=0.5, kinds=["head"])


def test_nothing_to_prune_says_why() -> None:
    with pytest.raises(NotMetError, match="no group can be pruned"):
        onnxprune.plan(chain(16), ratio=0.5, exclude=["w0"])
    with pytest.raises(NotMetError, match="nothing can be pruned"):
        onnxprune.plan(chain(), ratio=0.5)


@pytest.mark.parametrize(
    "options",
    [
        {}, {"ratio": 1.0}, {"ratio": -0.1}, {"ratio": 0.5, "target": {"params": 0.5}}, {"target": {"params": 0}},
        {"target": {"params": 1.5}}, {"target": {"parms": 0.5}}, {"ratio": 0.5, "max_ratio": 2},
        {"ratio": 0.5, "scope": "all"}, {"ratio": 0.5, "round_to": 0}, {"ratio": 0.5, "criterion": "l3"},
    ],
)  # fmt: skip
def test_options_are_checked(options: dict[str, object]) -> None:
    with pytest.raises(OptionError):
        onnxprune.plan(chain(16), **options)


# --- targets ---


def conv_net() -> Model:
    nodes = [
        node("Conv", "x w0", "a"), node("Relu", "a", "b"), node("Conv", "b w1", "c"), node("Relu", "c", "d"),
        node("Conv", "d w2", "e"), node("Add", "e b", "f"), node("Conv", "f w3", "y"),
    ]  # fmt: skip
    weights = {"w0": (96, 3, 1, 1), "w1": (128, 96, 1, 1), "w2": (96, 128, 1, 1), "w3": (10, 96, 1, 1)}
    return model_of(nodes, weights, (1, 3, 8, 8), (1, 10, 8, 8))


@pytest.mark.parametrize("metric", ["params", "macs", "bytes"])
@pytest.mark.parametrize("fraction", [0.9, 0.5, 0.3, 0.1])
@pytest.mark.parametrize("scope", ["global", "local"])
def test_a_target_is_met_and_not_overshot(metric: str, fraction: float, scope: str) -> None:
    model = conv_net()
    plan = onnxprune.plan(model, target={metric: fraction}, scope=scope, max_ratio=0.95)
    pruned = onnxprune.apply(model, plan)
    reached = getattr(measure(pruned), metric) / getattr(measure(model), metric)
    assert 0.98 * fraction <= reached <= fraction


def test_several_targets_all_hold() -> None:
    model = conv_net()
    before = measure(model)
    after = measure(onnxprune.apply(model, onnxprune.plan(model, target={"params": 0.6, "macs": 0.4})))
    assert after.params <= 0.6 * before.params
    assert 0.98 * 0.4 <= after.macs / before.macs <= 0.4


def test_the_cost_of_a_choice_is_the_cost_of_the_written_model() -> None:
    for seed in range(20):
        analysis = analyze_model(Model(build(seed).model))
        if not any(g.exact for g in analysis.groups):
            continue
        plan = onnxprune.plan(analysis, ratio=0.4, max_ratio=0.6)
        alive = analysis.alive({g.id: g.removed for g in plan.groups})
        written = measure(onnxprune.apply(analysis, plan), plan.input_shapes or None)
        assert (analysis.costs(alive).macs, analysis.costs(alive).params) == (written.macs, written.params), seed


def test_a_target_out_of_reach_says_the_best_and_what_stands_in_the_way() -> None:
    with pytest.raises(TargetError) as caught:
        onnxprune.plan(chain(16, 24), target={"params": 0.01})
    text = str(caught.value)
    assert "cannot keep at most 1 % of the params" in text
    assert "is the least possible" in text
    assert "Frozen" in text or "No weight is frozen" in text
    assert "Try" in text
    assert caught.value.exit_code == 1


def test_a_loose_target_removes_nothing() -> None:
    assert sum(counts(onnxprune.plan(chain(16, 24), target={"params": 1.0}))) == 0


def units(analysis: Analysis, sizes: Sequence[int]) -> list[str]:
    return [g.id for g in analysis.groups if g.size in sizes]


def test_an_analysis_can_be_reused() -> None:
    analysis = analyze_model(chain(16, 24))
    one = onnxprune.plan(analysis, ratio=0.5)
    assert onnxprune.plan(analysis, ratio=0.5) == one
    assert units(analysis, [16, 24]) == [g.id for g in one.groups]
