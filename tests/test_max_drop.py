"""The smallest model that keeps a metric: the search itself, and a real metric on a trained model."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import onnxruntime as ort
import pytest
from click.testing import CliRunner

import onnxprune
from onnxprune.axes.analysis import Analysis, analyze_model
from onnxprune.axes.costs import measure
from onnxprune.cli import main
from onnxprune.errors import OptionError, TargetError, UnknownNameError
from onnxprune.graph.model import Model
from onnxprune.planfile import Plan
from onnxprune.rewrite.apply import apply_plan
from onnxprune.search import Sizes, keep_metric
from onnxprune.search.drop import MOST_EVALUATIONS, RESOLUTION
from onnxprune.select.choose import Options, rank
from onnxprune.select.curves import error_curves
from tests.test_select import chain

SAMPLES = Path(__file__).resolve().parent.parent / "samples"
ACCURACY = f"{SAMPLES / 'digits_eval.py'}:accuracy"


class FakeMetric:
    """A metric that is a function of the fraction of some size that is left."""

    def __init__(self, original: Model, by: str, curve: Callable[[float], float]) -> None:
        self.by = by
        self.size = getattr(measure(original), by)
        self.curve = curve
        self.seen: list[float] = []

    def __call__(self, model: Model) -> float:
        self.seen.append(getattr(measure(model), self.by) / self.size)
        return self.curve(self.seen[-1])


def search(
    curve: Callable[[float], float], max_drop: float, *, by: str = "macs", round_to: int = 1
) -> tuple[Plan, FakeMetric, Analysis]:
    analysis = analyze_model(chain(96, 160))
    metric = FakeMetric(analysis.model, by, curve)
    ranking = rank(analysis, Options(max_drop=max_drop, minimize=by, round_to=round_to))
    return keep_metric(Sizes(ranking, by, lambda p: apply_plan(analysis, p)), max_drop, metric), metric, analysis


@pytest.mark.parametrize("by", ["macs", "params", "bytes"])
@pytest.mark.parametrize("edge", [0.9, 0.52, 0.31, 0.07])
def test_the_search_finds_the_edge(edge: float, by: str) -> None:
    plan, metric, _ = search(lambda f: 0.9 if f >= edge else 0.2, 0.05, by=by)
    assert plan.trade is not None
    assert edge <= plan.trade.chosen <= edge + 2 * RESOLUTION
    assert len(metric.seen) <= MOST_EVALUATIONS
    assert metric.seen[0] == 1.0


def test_the_drop_is_measured_from_the_original() -> None:
    plan, _, analysis = search(lambda f: 3.0 + f, 0.4)
    assert plan.trade is not None
    assert plan.trade.original == pytest.approx(4.0)
    assert plan.trade.bound == pytest.approx(3.6)
    assert plan.trade.figures["after"] >= 3.6
    assert plan.trade.chosen == pytest.approx(0.6, abs=2 * RESOLUTION)
    left = analysis.costs(analysis.alive({g.id: g.removed for g in plan.groups}))
    assert left.macs / analysis.cost.macs == plan.trade.chosen


def test_equal_plans_are_evaluated_once() -> None:
    _, metric, _ = search(lambda f: float(f > 0.35), 0.5, round_to=32)
    assert len(metric.seen) == len(set(metric.seen))


def test_all_that_may_go_goes_where_the_metric_does_not_mind() -> None:
    plan, _, analysis = search(lambda _: 1.0, 0.0)
    assert plan.trade is not None
    least = Sizes(rank(analysis, Options(max_drop=0.0)), "macs", lambda p: apply_plan(analysis, p)).least
    assert plan.trade.chosen <= least + RESOLUTION


def test_nothing_that_holds_is_said_with_the_nearest() -> None:
    with pytest.raises(TargetError, match=r"within 0\.01 of 1; at 9\d(\.\d+)? % of the macs it is 0\.5"):
        search(lambda f: 1.0 if f == 1 else 0.5, 0.01)


def test_the_same_metric_gives_the_same_plan_and_curve() -> None:
    one, other = (search(lambda f: f**2, 0.3)[0] for _ in range(2))
    assert one.dumps() == other.dumps()
    assert one.trade == other.trade
    assert one.trade is not None
    assert one.trade.to_json()["points"] == sorted(one.trade.to_json()["points"], key=lambda p: p["fraction"])


def accuracy(session: ort.InferenceSession) -> float:
    from samples.digits_eval import accuracy

    return accuracy(session)


@pytest.mark.slow
def test_the_metric_of_a_trained_model_stays_within_the_drop() -> None:
    model = onnxprune.load(SAMPLES / "digits_cnn.onnx")
    result = onnxprune.prune(model, max_drop=0.05, metric=ACCURACY, scope="local")
    trade = result.trade
    assert trade is not None
    verdict = onnxprune.verify(model, result.model, metric=ACCURACY)
    assert verdict.metric is not None
    assert verdict.metric["after"] == pytest.approx(trade.figures["after"])
    assert verdict.metric["after"] >= verdict.metric["before"] - 0.05
    assert trade.chosen < 0.97
    assert verdict.macs["ratio"] == pytest.approx(trade.chosen)
    assert not all(point.holds for point in trade.points)


@pytest.mark.slow
def test_the_command_line_writes_the_model_and_the_curve(tmp_path: Path) -> None:
    source, out = SAMPLES / "digits_cnn.onnx", tmp_path / "out.onnx"
    arguments = [
        "prune",
        str(source),
        "-o",
        str(out),
        "--max-drop",
        "0.1",
        "--metric",
        ACCURACY,
        "--minimize",
        "params",
    ]
    result = CliRunner().invoke(main, [*arguments, "--json"])
    assert result.exit_code == 0, result.stderr
    document = json.loads(result.stdout)
    assert document["trade"]["by"] == "params"
    assert document["trade"]["measure"] == "metric"
    assert document["metric"]["after"] >= document["metric"]["before"] - 0.1
    assert document["params"]["ratio"] == pytest.approx(document["trade"]["chosen"])
    assert out.exists()
    assert "your metric" in CliRunner().invoke(main, arguments).stdout


def test_calibration_data_repairs_every_candidate(monkeypatch: pytest.MonkeyPatch) -> None:
    import onnxprune.api

    made: list[tuple[object, object]] = []
    real = onnxprune.api.stages.apply

    def watched(model: object, plan: Plan, **options: object) -> Model:
        made.append((options.get("recover"), options.get("data")))
        return real(model, plan)

    monkeypatch.setattr(onnxprune.api.stages, "apply", watched)
    data = str(SAMPLES / "digits_calibration.npz")
    plan = onnxprune.plan(
        SAMPLES / "digits_cnn.onnx", max_drop=0.1, metric=ACCURACY, data=data, recover="bias", criterion="l2"
    )
    assert plan.trade is not None
    assert len(made) == len(plan.trade.points)
    assert all(recover == "bias" and given is not None for recover, given in made)


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({"max_drop": 0.1}, OptionError, "max_drop and metric go together"),
        ({"metric": accuracy, "ratio": 0.5}, OptionError, "max_drop and metric go together"),
        ({"max_drop": 0.1, "metric": accuracy, "ratio": 0.5}, OptionError, "give one of"),
        ({"max_drop": 0.1, "metric": accuracy, "target": {"macs": 0.5}}, OptionError, "give one of"),
        ({"max_drop": -0.1, "metric": accuracy}, OptionError, "out of range"),
        ({"max_drop": 0.1, "metric": accuracy, "minimize": "mac"}, UnknownNameError, "Did you mean 'macs'"),
        ({"max_drop": 0.1, "metric": "no_such_file.py:f"}, OptionError, "no_such_file"),
    ],
)
def test_what_does_not_fit_is_refused(options: dict[str, object], error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match):
        onnxprune.plan(chain(16, 24), **options)  # type: ignore[arg-type]


def test_the_command_line_wants_both(tmp_path: Path) -> None:
    source = str(SAMPLES / "digits_cnn.onnx")
    for arguments in (["--max-drop", "0.1"], ["--ratio", "0.5", "--metric", ACCURACY]):
        result = CliRunner().invoke(main, ["prune", source, "-o", str(tmp_path / "out.onnx"), *arguments])
        assert result.exit_code == 2
        assert "go together" in result.stderr


def test_a_ratio_on_the_command_line_puts_a_recipe_for_a_drop_out_of_force(tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(f'max-drop = 0.1\nmetric = "{ACCURACY}"\nminimize = "params"\n', encoding="utf-8")
    arguments = ["prune", str(SAMPLES / "digits_cnn.onnx"), "--config", str(recipe), "--dry-run", "--json"]
    result = CliRunner().invoke(main, [*arguments, "--ratio", "0.5"])
    assert result.exit_code == 0, result.stderr
    assert json.loads(result.stdout)["trade"] is None


def test_error_curves_rise_and_end_at_what_may_go() -> None:
    analysis = analyze_model(chain(24, 40))
    ranking = rank(analysis, Options(ratio=0.5, round_to=8, max_ratio=0.75))
    first, second = error_curves(ranking)
    assert (first.removed, second.removed) == ((0, 8, 16), (0, 8, 16, 24))
    for curve, candidate in zip((first, second), ranking.candidates, strict=True):
        assert curve.error[0] == 0
        assert list(curve.error) == sorted(curve.error)
        assert curve.error[-1] == pytest.approx(candidate.scores[: curve.removed[-1]].sum())
        # The cheapest units cost less than their share.
        assert curve.error[1] < 8
    assert first.to_json() == {"group": first.group, "removed": [0, 8, 16], "error": list(first.error)}
