"""A target for latency: what the search does with given timings, and what a real clock says of the result."""

from __future__ import annotations

import json
import runpy
from collections.abc import Callable
from itertools import cycle
from pathlib import Path

import numpy as np
import onnx
import pytest
from click.testing import CliRunner
from onnx import TensorProto, helper, numpy_helper

import onnxprune
from onnxprune.axes.analysis import analyze_model
from onnxprune.axes.costs import measure
from onnxprune.cli import main
from onnxprune.errors import OptionError, TargetError
from onnxprune.graph.model import Model
from onnxprune.planfile import Plan
from onnxprune.rewrite.apply import apply_plan
from onnxprune.search import Clock, Sizes, decide, meet_latency
from onnxprune.search import latency as module
from onnxprune.select.choose import Options, rank
from onnxprune.verification import Latency
from tests.test_select import chain

Timing = Callable[[float, float], float]


class FakeClock:
    """Times a model by a function of the fraction of MACs that is left and of the seconds asked for."""

    def __init__(self, original: Model, timing: Timing) -> None:
        self.macs = measure(original).macs
        self.timing = timing
        self.calls: list[tuple[float, float]] = []

    def __call__(self, model: Model, seconds: float) -> Latency:
        fraction = measure(model).macs / self.macs
        self.calls.append((fraction, seconds))
        ratio = self.timing(fraction, seconds)
        return Latency(10.0, 10.0 * ratio, ratio, 11.0, 11.0 * ratio, 9, 1)


def search(
    timing: Timing, bound: float, *, model: Model | None = None, **options: object
) -> tuple[Plan, FakeClock, list[str]]:
    model = model or chain(96, 160)
    analysis = analyze_model(model)
    clock, lines = FakeClock(model, timing), []
    chosen = Options(target={"latency": bound, **options.pop("target", {})}, **options)  # type: ignore[dict-item,arg-type]
    plan = decide(analysis, chosen, build=lambda p: apply_plan(analysis, p), clock=lambda: clock, say=lines.append)
    return plan, clock, lines


def kept_macs(plan: Plan, model: Model) -> float:
    analysis = analyze_model(model)
    return analysis.costs(analysis.alive({g.id: g.removed for g in plan.groups})).macs / analysis.cost.macs


@pytest.mark.parametrize("bound", [0.85, 0.7, 0.5, 0.33])
@pytest.mark.parametrize(
    "timing",
    [
        pytest.param(lambda f, _: f, id="proportional"),
        pytest.param(lambda f, _: 0.25 + 0.75 * f, id="overhead"),
        pytest.param(lambda f, _: f**0.5, id="bent"),
        pytest.param(lambda f, _: f**2, id="bent the other way"),
    ],
)
def test_the_search_ends_just_below_the_bound(timing: Timing, bound: float) -> None:
    plan, clock, _ = search(timing, bound, round_to=1)
    assert plan.trade is not None
    found = timing(kept_macs(plan, chain(96, 160)), 1.0)
    assert 0.9 * bound <= found <= bound
    assert plan.trade.figures["ratio"] == pytest.approx(found)
    assert len(clock.calls) <= module.MOST_MODELS + 2


def test_what_is_chosen_was_timed_again_for_longer_and_the_slower_figure_counts() -> None:
    slower = iter([1.0, 1.01, 1.0, 1.01])
    plan, clock, lines = search(lambda f, s: f * (next(slower) if s > module.SECONDS else 1.0), 0.6, round_to=1)
    for fraction, seconds in clock.calls[-2:]:
        assert seconds > module.SECONDS
        assert fraction == pytest.approx(kept_macs(plan, chain(96, 160)))
    assert plan.trade is not None
    assert plan.trade.figures["ratio"] == pytest.approx(1.01 * clock.calls[-1][0])
    assert [line for line in lines if "timing smaller models" in line][-1].endswith(f", {len(clock.calls)}")


def test_a_timing_that_does_not_hold_up_sends_the_search_lower() -> None:
    def optimistic(fraction: float, seconds: float) -> float:
        return fraction * (1.0 if seconds > module.SECONDS else 0.93)

    plan, _, _ = search(optimistic, 0.6, round_to=1)
    assert kept_macs(plan, chain(96, 160)) <= 0.6


def test_noise_ends_in_a_model_that_was_measured_fast_enough() -> None:
    noise = cycle(np.random.default_rng(3).normal(1.0, 0.08, 997))
    for _ in range(20):
        plan, clock, _ = search(lambda f, _: f * next(noise), 0.6, round_to=1)
        assert plan.trade is not None
        assert plan.trade.figures["ratio"] <= 0.6
        assert len(clock.calls) <= 3 * module.MOST_MODELS + 1


def test_the_same_timings_give_the_same_plan_and_curve() -> None:
    one, other = (search(lambda f, _: 0.1 + 0.9 * f, 0.55, round_to=4)[0] for _ in range(2))
    assert one.dumps() == other.dumps()
    assert one.trade == other.trade
    assert one.trade is not None
    fractions = [point.fraction for point in one.trade.points]
    assert fractions == sorted(fractions)
    assert one.trade.chosen in fractions


def test_coarse_steps_are_timed_once_each() -> None:
    _, clock, _ = search(lambda f, _: f, 0.7, model=chain(32, 48), round_to=16)
    short = [fraction for fraction, seconds in clock.calls if seconds == module.SECONDS]
    assert len(short) == len(set(short))


def test_coarse_steps_do_not_end_the_search_early() -> None:
    # 16 channels of 32 are half of it all: what 70 % of the time allows and what is reached lie far apart.
    analysis = analyze_model(chain(32, 48))
    plan, _, _ = search(lambda f, _: 0.5 * f, 0.7, model=chain(32, 48), round_to=16)
    smaller = [g for g in plan.groups if g.removed]
    assert len(smaller) == 1
    assert len(smaller[0].removed) == 16
    assert kept_macs(plan, analysis.model) > 0.6


def test_out_of_reach_says_the_least_and_where() -> None:
    with pytest.raises(TargetError, match=r"at most 30 % of the time; 5\d(\.\d)? % is the least measured, at .* macs"):
        search(lambda f, _: 0.5 + 0.5 * f, 0.3, round_to=1)


def test_the_least_model_is_tried_when_guesses_run_out() -> None:
    def cliff(fraction: float, _: float) -> float:
        return 0.2 if fraction < 0.016 else 0.9

    plan, clock, _ = search(cliff, 0.7, round_to=1, max_ratio=0.9)
    assert plan.trade is not None
    assert plan.trade.figures["ratio"] == 0.2
    assert len(clock.calls) <= module.MOST_MODELS + 2


def test_other_targets_hold_as_well() -> None:
    model = chain(96, 160)
    plan, _, _ = search(lambda f, _: f, 0.8, round_to=1, target={"params": 0.4})
    analysis = analyze_model(model)
    left = analysis.costs(analysis.alive({g.id: g.removed for g in plan.groups}))
    assert left.params <= 0.4 * analysis.cost.params
    with pytest.raises(TargetError, match="params"):
        search(lambda f, _: f, 0.8, round_to=1, target={"params": 0.001})


def test_widths_are_aligned_unless_told_otherwise() -> None:
    plan, _, _ = search(lambda f, _: f, 0.6)
    assert all((g.size - len(g.removed)) % 8 == 0 for g in plan.groups)
    plan, _, _ = search(lambda f, _: f, 0.6, round_to=5)
    assert all((g.size - len(g.removed)) % 5 == 0 for g in plan.groups if g.removed)


def test_the_curve_is_no_part_of_the_plan_file(tmp_path: Path) -> None:
    plan, _, _ = search(lambda f, _: f, 0.6)
    (tmp_path / "plan.json").write_text(plan.dumps(), encoding="utf-8")
    again = Plan.load(tmp_path / "plan.json")
    assert again == plan
    assert again.trade is None


def test_sizes_reach_what_they_are_asked_for() -> None:
    analysis = analyze_model(chain(40, 56))
    sizes = Sizes(rank(analysis, Options(ratio=0.1)), "params", lambda p: apply_plan(analysis, p))
    assert sizes.reached(sizes.plan(0.5)) == pytest.approx(0.5, abs=0.02)
    assert sizes.reached(sizes.plan(0.0)) == pytest.approx(sizes.least)
    assert sizes.plan(1.0).empty


def wide(path: Path, width: int = 256) -> Path:
    """Build Conv 3 to width, Conv width to width, Conv width to 5, at 24 by 26."""
    rng = np.random.default_rng(5)
    shapes = {"a": (width, 3, 3, 3), "b": (width, width, 3, 3), "c": (5, width, 3, 3)}
    nodes, last = [], "x"
    for name in shapes:
        nodes += [
            helper.make_node("Conv", [last, f"{name}.weight"], [name], name=name, pads=[1, 1, 1, 1]),
            helper.make_node("Relu", [name], [f"{name}r"], name=f"{name}r"),
        ]
        last = f"{name}r"
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, 24, 26])],
        [helper.make_tensor_value_info(last, TensorProto.FLOAT, [1, 5, 24, 26])],
        [numpy_helper.from_array(rng.normal(size=s).astype(np.float32), f"{n}.weight") for n, s in shapes.items()],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), path)
    return path


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SECONDS", 0.2)
    monkeypatch.setattr(module, "SECONDS_TO_CONFIRM", 0.4)


@pytest.mark.slow
def test_a_real_clock_agrees(tmp_path: Path) -> None:
    model = onnxprune.load(wide(tmp_path / "m.onnx"))
    result = onnxprune.prune(model, target={"latency": 0.6}, threads=1)
    trade = result.plan.trade
    assert trade is not None
    assert trade.figures["ratio"] <= 0.6
    assert all((g.size - len(g.removed)) % 16 == 0 for g in result.plan.groups)
    # Two machines' worth of noise: the model must be faster, by about what was asked for.
    assert Clock(model, threads=1)(result.model, 2.0).ratio <= 0.75


@pytest.mark.usefixtures("quick")
def test_the_command_line_reports_the_curve(tmp_path: Path) -> None:
    path, out = wide(tmp_path / "m.onnx", 128), tmp_path / "out.onnx"
    arguments = ["prune", str(path), "-o", str(out), "--target", "latency=0.8", "--threads", "1", "--json"]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 0, result.stderr
    document = json.loads(result.stdout)
    assert document["trade"]["measure"] == "latency"
    assert document["trade"]["bound"] == 0.8
    assert document["latency_ms"]["ratio"] <= 0.8
    assert document["latency_ms"]["threads"] == 1
    assert any(point["holds"] for point in document["trade"]["points"])
    assert document["macs"]["ratio"] == pytest.approx(document["trade"]["chosen"])
    assert out.exists()


@pytest.mark.usefixtures("quick")
def test_an_unreachable_latency_exits_with_1_and_writes_nothing(tmp_path: Path) -> None:
    path, out = wide(tmp_path / "m.onnx", 48), tmp_path / "out.onnx"
    arguments = ["prune", str(path), "-o", str(out), "--target", "latency=0.01", "--threads", "1"]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 1
    assert "is the least measured" in result.stderr
    assert not out.exists()


def test_a_plain_ratio_has_no_curve(tmp_path: Path) -> None:
    path = wide(tmp_path / "m.onnx", 32)
    assert onnxprune.plan(path, ratio=0.5).trade is None
    with pytest.raises(OptionError, match="one of a ratio, a target and a largest drop"):
        onnxprune.plan(path, ratio=0.5, target={"latency": 0.5})


@pytest.mark.usefixtures("quick")
def test_the_benchmark_prints_its_figures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    script = Path(__file__).resolve().parent.parent / "benchmarks/latency.py"
    main_of_benchmark = runpy.run_path(str(script))["main"]
    path = wide(tmp_path / "m.onnx", 64)
    arguments = [str(path), "--ratios", "0.3", "--target", "0.9", "--seconds", "0.1", "--threads", "1"]
    assert main_of_benchmark([*arguments, "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    (row,) = document["models"]
    assert document["machine"]["threads"] == 1
    assert row["asked"] <= 0.9
    assert {"model", "ms", "at_0.3", "macs", "timed", "models"} <= set(row)
    assert main_of_benchmark([str(path), "--ratios", "", "--target", "0.001", "--seconds", "0.1"]) == 0
    assert "is the least measured" in capsys.readouterr().out


def test_auto_rounding_does_not_depend_on_the_machine(tmp_path: Path) -> None:
    analysis = analyze_model(onnxprune.load(wide(tmp_path / "m.onnx", 80)))
    plan = onnxprune.plan(analysis, ratio=0.3, round_to="auto")
    assert [g.size - len(g.removed) for g in plan.groups] == [64, 64]
    plan = onnxprune.plan(chain(80, 40), ratio=0.3, round_to="auto")
    assert [g.size - len(g.removed) for g in plan.groups] == [56, 32]


def test_meet_latency_gives_up_at_once_when_nothing_can_go() -> None:
    analysis = analyze_model(chain(16, 16))
    clock = FakeClock(analysis.model, lambda f, _: f)
    sizes = Sizes(rank(analysis, Options(ratio=0.1, round_to=16)), "macs", lambda p: apply_plan(analysis, p))
    with pytest.raises(TargetError, match="100 % is the least measured"):
        meet_latency(sizes, 0.7, clock)
    assert len(clock.calls) == 1
