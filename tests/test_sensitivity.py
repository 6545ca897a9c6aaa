"""Sensitivity: every group alone at every ratio, the same figures whoever measures, and nothing lost on the way."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
from click.testing import CliRunner

import onnxprune
from onnxprune.cli import main
from onnxprune.sweep.bench import Figures
from onnxprune.sweep.cells import Cell
from onnxprune.sweep.journal import Journal

ROOT = Path(__file__).resolve().parent.parent
MODEL = ROOT / "samples" / "digits_cnn.onnx"
DATA = ROOT / "samples" / "digits_calibration.npz"
METRIC = f"{ROOT / 'samples' / 'digits_eval.py'}:accuracy"
RATIOS = (0.1, 0.4)

needs_joblib = pytest.mark.skipif(importlib.util.find_spec("joblib") is None, reason="needs joblib")
needs = {
    name: pytest.mark.skipif(importlib.util.find_spec(module) is None, reason=f"needs {name}")
    for name, module in (("ray", "ray"), ("dask", "distributed"))
}


@pytest.fixture(scope="module")
def alone():
    """Measure in this process."""
    return onnxprune.sensitivity(MODEL, ratios=RATIOS, data=str(DATA), metric=METRIC)


def without_run(result):
    document = result.to_json()
    document.pop("run")
    return json.dumps(document)


def outputs(model, feed):
    content = model.proto.SerializeToString()
    return ort.InferenceSession(content, providers=["CPUExecutionProvider"]).run(None, feed)[0].astype(np.float64)


def test_a_cell_is_what_pruning_that_group_alone_gives(alone):
    analysis = onnxprune.analyze(MODEL)
    feed = {"image": np.load(DATA)["image"]}
    expected = outputs(analysis.model, feed)
    checked = 0
    for group in alone.groups[:3]:
        for cell in group.cells:
            plan = onnxprune.plan(analysis, ratio=cell.ratio, include=(group.id,), max_ratio=1.0, data=str(DATA))
            assert {g.id for g in plan.groups if g.removed} == {group.id}
            assert sum(len(g.removed) for g in plan.groups) == cell.removed
            smaller = onnxprune.apply(analysis, plan)
            found = outputs(smaller, feed)
            error = np.linalg.norm(found - expected) / np.linalg.norm(expected)
            np.testing.assert_allclose(cell.figures.relative_error, error, rtol=1e-4)
            np.testing.assert_allclose(cell.figures.top1, (found.argmax(1) == expected.argmax(1)).mean(), atol=1e-12)
            assert cell.cost == onnxprune.analyze(smaller).cost
            checked += 1
    assert checked == 6


def test_more_hurts_more_and_every_figure_varies(alone):
    errors = np.array([[c.figures.relative_error for c in g.cells] for g in alone.groups])
    assert errors.shape == (6, 2)
    assert (errors > 0).all()
    assert (errors[:, 1] > errors[:, 0]).all()
    assert len(np.unique(errors)) == errors.size
    assert alone.original.relative_error == 0
    assert alone.original.top1 == 1
    assert alone.figure == "metric"
    metrics = [c.figures.metric for g in alone.groups for c in g.cells]
    assert alone.original.metric > 0.9 > min(metrics)


def test_a_metric_alone_needs_no_data():
    found = onnxprune.sensitivity(MODEL, ratios=(0.3,), metric=lambda s: len(s.get_inputs()), include=("stem",))
    assert (found.data, found.n_feeds) == (None, 0)
    measured = [g for g in found.groups if g.cells]
    assert [g.id for g in measured] == ["stem"]
    assert {g.locked for g in found.groups if not g.cells} == {"not included"}
    assert measured[0].cells[0].figures == Figures(metric=1.0)


def test_a_ratio_that_removes_no_unit_is_the_original_and_equal_cells_are_measured_once():
    seen = []
    found = onnxprune.sensitivity(
        MODEL, ratios=(0.01, 0.3, 0.301), data=str(DATA), include=("stem",), progress=lambda *n: seen.append(n)
    )
    (group,) = (g for g in found.groups if g.cells)
    assert [c.removed for c in group.cells] == [0, 9, 9]
    assert group.cells[0].figures == found.original
    assert group.cells[1].figures == group.cells[2].figures
    assert seen == [(1, 1)]


# --- the same whoever measures ---


@needs_joblib
@pytest.mark.slow
@pytest.mark.parametrize("jobs", [2, 3])
def test_processes_give_the_same_bytes(alone, jobs):
    found = onnxprune.sensitivity(MODEL, ratios=RATIOS, data=str(DATA), metric=METRIC, jobs=jobs)
    assert without_run(found) == without_run(alone)
    assert found == alone
    assert found.run["measured"] == 12


CLUSTER = """
import json, os, sys, warnings
from pathlib import Path
import onnxprune

class Dying:
    '''A metric whose worker dies once in the middle of a cell.'''
    def __init__(self, mark, parent):
        self.mark, self.parent = mark, parent
    def __call__(self, session):
        if os.getpid() != self.parent and not os.path.exists(self.mark):
            Path(self.mark).touch()
            os.kill(os.getpid(), 9)
        return float(len(session.get_outputs()))

if __name__ == "__main__":
    model, data, options = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
    metric = Dying(options.pop("mark"), os.getpid())
    result = onnxprune.sensitivity(model, ratios=(0.1, 0.4), data=data, metric=metric, **options)
    print(json.dumps(result.to_json()))
"""


def in_a_program(tmp_path, **options):
    """Run a sweep in a process of its own, which may start a cluster; its first worker to measure is killed."""
    script = tmp_path / "program.py"
    script.write_text(CLUSTER)
    options = {"mark": str(tmp_path / "died"), **options}
    result = subprocess.run(
        [sys.executable, str(script), str(MODEL), str(DATA), json.dumps(options)],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT), "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0"},
    )
    assert result.returncode == 0, result.stderr
    document = json.loads(result.stdout.splitlines()[-1])
    document.pop("run")
    return document


@pytest.mark.slow
@pytest.mark.parametrize(
    "backend",
    [
        pytest.param("loky", marks=needs_joblib),
        pytest.param("dask", marks=needs["dask"]),
        pytest.param("ray", marks=needs["ray"]),
    ],
)
def test_a_killed_worker_loses_nothing(tmp_path, backend):
    expected = in_a_program(tmp_path, jobs=1)
    assert not (tmp_path / "died").exists()
    found = in_a_program(tmp_path, jobs=2, backend=backend)
    assert (tmp_path / "died").exists()
    assert found == expected


@needs_joblib
@pytest.mark.slow
def test_workers_that_always_die_end_the_run():
    program = textwrap.dedent("""
        import os, sys
        import onnxprune
        parent = os.getpid()
        def metric(session):
            if os.getpid() != parent:
                os.kill(os.getpid(), 9)
            return 1.0
        try:
            onnxprune.sensitivity(sys.argv[1], ratios=(0.4,), metric=metric, jobs=2)
        except onnxprune.NotMetError as error:
            print(error)
    """)
    result = subprocess.run(
        [sys.executable, "-c", program, str(MODEL)], capture_output=True, text=True, timeout=300, check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert "workers died 3 times before any of 6 cells was done" in result.stdout, result.stderr
    assert "fewer --jobs" in result.stdout


@needs_joblib
@pytest.mark.slow
def test_a_rule_of_the_users_own_reaches_the_workers(tmp_path):
    program = textwrap.dedent("""
        import sys
        import numpy as np, onnx
        from onnx import helper, numpy_helper
        import onnxprune
        rng = np.random.default_rng(3)
        tensors = [numpy_helper.from_array(rng.normal(size=s).astype(np.float32), n)
                   for n, s in {"a": (7, 12), "b": (12, 5)}.items()]
        nodes = [helper.make_node("MatMul", ["x", "a"], ["h"]), helper.make_node("Softsign", ["h"], ["g"]),
                 helper.make_node("MatMul", ["g", "b"], ["y"])]
        info = lambda n, s: helper.make_tensor_value_info(n, 1, s)
        graph = helper.make_graph(nodes, "g", [info("x", [3, 7])], [info("y", [3, 5])], tensors)
        onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), "m.onnx")

        @onnxprune.op_rule("Softsign", replace=True)
        def softsign(op):
            '''x: (..., c)  y: (..., c).'''
            for a, b in zip(op.inputs[0].axes, op.outputs[0].axes):
                op.tie(a, b)
        results = [onnxprune.sensitivity("m.onnx", ratios=(0.5,), data="random:3", jobs=n) for n in (1, 2)]
        assert results[0] == results[1] and results[0].groups[0].cells[0].removed == 6
        print("same")
    """)
    result = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=300, check=False, cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert result.stdout.strip() == "same", result.stderr


# --- journals ---


def sweep(journal, ratios=RATIOS, **options):
    return onnxprune.sensitivity(
        MODEL, ratios=ratios, data=str(DATA), include=("stem", "narrow"), resume=journal, **options
    )


class StoppedError(Exception):
    pass


def test_an_interrupted_run_goes_on_where_it_ended(tmp_path):
    journal = tmp_path / "cells.jsonl"

    def stop(done, _total):
        if done == 2:
            raise StoppedError

    with pytest.raises(StoppedError):
        sweep(journal, progress=stop)
    assert len(journal.read_text().splitlines()) == 3
    found = sweep(journal)
    assert (found.run["resumed"], found.run["measured"]) == (2, 2)
    assert without_run(found) == without_run(sweep(None))
    more = sweep(journal, ratios=(0.1, 0.25, 0.4))
    assert (more.run["resumed"], more.run["measured"]) == (4, 2)


@pytest.mark.parametrize("cut", [1, 9, 60])
def test_a_torn_last_line_is_cut_off(tmp_path, cut):
    journal = tmp_path / "cells.jsonl"
    whole = sweep(journal)
    content = journal.read_bytes()
    journal.write_bytes(content[:-cut])
    found = sweep(journal)
    assert (found.run["resumed"], found.run["measured"]) == (3, 1)
    assert found == whole
    assert sorted(journal.read_bytes().splitlines()) == sorted(content.splitlines())


def test_a_journal_that_ends_in_its_header_starts_anew(tmp_path):
    journal = tmp_path / "cells.jsonl"
    sweep(journal)
    content = journal.read_bytes()
    journal.write_bytes(content[:30])
    assert sweep(journal).run["resumed"] == 0
    assert journal.read_bytes() == content


def test_a_journal_of_another_run_is_refused(tmp_path):
    journal = tmp_path / "cells.jsonl"
    sweep(journal)
    before = journal.read_bytes()
    with pytest.raises(onnxprune.OptionError, match="another data"):
        onnxprune.sensitivity(MODEL, data="random:3", resume=journal)
    with pytest.raises(onnxprune.OptionError, match="another model, data"):
        onnxprune.sensitivity(ROOT / "samples" / "digits_transformer.onnx", data="random:3", resume=journal)
    assert journal.read_bytes() == before


@pytest.mark.parametrize(
    "content", [b"my notes", b"my notes\n", b'{"schema": "other"}\n', b"[1]\n"], ids=["torn", "text", "schema", "list"]
)
def test_a_file_that_is_no_journal_is_left_alone(tmp_path, content):
    path = tmp_path / "notes"
    path.write_bytes(content)
    with pytest.raises(onnxprune.OptionError, match=r"no journal|no line of a journal"):
        sweep(path)
    assert path.read_bytes() == content


def test_a_damaged_line_in_the_middle_is_an_error(tmp_path):
    journal = tmp_path / "cells.jsonl"
    sweep(journal)
    lines = journal.read_bytes().splitlines(keepends=True)
    journal.write_bytes(b"".join([lines[0], b'{"cell": "stem/3/ab"}\n', *lines[2:]]))
    with pytest.raises(onnxprune.OptionError, match="line 2 is no line of a journal"):
        sweep(journal)


def test_failed_cells_are_not_written(tmp_path):
    path = tmp_path / "cells.jsonl"
    good, bad = Cell("a", (1, 2)), Cell("a", (1, 3))
    assert good.key != bad.key
    with Journal(path, {"model": "x"}) as journal:
        journal.add(good, Figures(relative_error=0.1))
        journal.add(bad, Figures(error="no"))
    with Journal(path, {"model": "x"}) as journal:
        assert journal.get(good) == Figures(relative_error=0.1)
        assert journal.get(bad) is None


# --- what goes wrong ---


def test_a_cell_that_fails_says_so_and_others_are_kept():
    def metric(session):
        (logits,) = session.run(None, {"image": np.zeros((3, 1, 16, 16), np.float32)})
        calls.append(float(logits.std()))
        if len(calls) == 2:
            raise ValueError("too bad")
        return calls[-1]

    calls: list[float] = []
    found = onnxprune.sensitivity(MODEL, ratios=RATIOS, metric=metric, include=("stem",))
    (group,) = (g for g in found.groups if g.cells)
    assert "too bad" in group.cells[0].figures.error
    assert group.cells[1].figures.error is None
    with pytest.raises(onnxprune.NotMetError, match=r"1 of 2 cells could not be measured.*'stem' at 0.1.*too bad"):
        found.raise_if_failed()


def test_a_metric_that_fails_on_the_original_ends_the_run():
    with pytest.raises(onnxprune.OptionError, match="finite number"):
        onnxprune.sensitivity(MODEL, metric=lambda _: float("nan"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ratios": ()}, "at least one ratio"),
        ({"ratios": (0.5, 1.0)}, "ratio 1 is out of range"),
        ({"jobs": 0}, "jobs must be at least 1"),
        ({"backend": "dusk"}, "Did you mean 'dask'"),
        ({"address": "tcp://x:1"}, "backend ray or dask"),
        ({"threads": 0}, "threads must be"),
        ({"data": None}, "say what to measure on"),
        ({"include": ("steem",)}, "Did you mean 'stem"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(onnxprune.OptionError, match=message):
        onnxprune.sensitivity(MODEL, **{"data": str(DATA), **options})


def test_a_missing_package_names_the_extra(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(onnxprune.OptionError, match=r"ray workers need joblib: pip install 'onnxprune\[ray\]'"):
        onnxprune.sensitivity(MODEL, data=str(DATA), backend="ray")
    with pytest.raises(onnxprune.OptionError, match=r"onnxprune\[parallel\]"):
        onnxprune.sensitivity(MODEL, data=str(DATA), jobs=2)


@pytest.mark.parametrize(
    ("backend", "address"),
    [
        pytest.param("dask", "tcp://127.0.0.1:9", marks=needs["dask"]),
        pytest.param("ray", "127.0.0.1:9", marks=needs["ray"]),
    ],
)
def test_a_cluster_that_is_not_there(backend, address):
    with pytest.raises(onnxprune.OptionError, match=f"cluster at {address} cannot be reached"):
        onnxprune.sensitivity(MODEL, ratios=(0.5,), data=str(DATA), backend=backend, address=address)


def test_the_original_is_not_changed():
    before = MODEL.read_bytes()
    model = onnxprune.load(MODEL)
    content = model.proto.SerializeToString()
    onnxprune.sensitivity(model, ratios=(0.5,), data=str(DATA))
    assert model.proto.SerializeToString() == content
    assert MODEL.read_bytes() == before


# --- the command ---


def invoke(*arguments):
    return CliRunner().invoke(main, ["sensitivity", *map(str, arguments)])


def test_the_command_prints_a_table_and_json(tmp_path):
    result = invoke(MODEL, "--data", DATA, "--ratios", "0.1,0.4", "--jobs", "1", "--include", "stem")
    assert result.exit_code == 0, result.output
    assert "relative error of the outputs after pruning one group alone" in result.stdout
    row = next(line.split() for line in result.stdout.splitlines() if line.startswith("stem"))
    assert row[:3] == ["stem", "channels", "32"]
    assert 0 < float(row[3]) < float(row[4])
    assert "left alone: 5 groups, not included" in result.stdout
    result = invoke(
        MODEL, "--metric", METRIC, "--ratios", "0.1,0.4", "--jobs", "1", "--include", "stem", "--json", "--resume",
        tmp_path / "cells",
    )  # fmt: skip
    document = json.loads(result.stdout)
    assert document["command"] == "sensitivity"
    assert document["figure"] == "metric"
    assert document["run"]["measured"] == 2
    assert (tmp_path / "cells").exists()


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        ([], 2, "say what to measure on"),
        (["--data", DATA, "--ratios", "a"], 2, "not of the form"),
        (["--data", DATA, "--jobs", "none"], 2, "neither a positive whole number nor auto"),
        (["--data", "missing.npz"], 3, "no such file"),
        (["--data", DATA, "--resume", MODEL], 2, "would overwrite the model"),
    ],
)
def test_the_command_refuses(arguments, code, message):
    result = invoke(MODEL, *arguments)
    assert result.exit_code == code, result.output
    assert message in result.output
