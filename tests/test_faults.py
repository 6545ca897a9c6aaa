"""Runs that are killed, interrupted, or meet a full disk, and models that crash or never end."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper, parser

import onnxprune
from onnxprune.graph.staging import staged
from tests.attacks.cases import linear, outside, with_data

ROOT = Path(__file__).resolve().parent.parent
SAMPLE = ROOT / "samples" / "digits_cnn.onnx"
linux = pytest.mark.skipif(sys.platform != "linux", reason="signals with their senders, and limits, as Linux has them")


def start(*arguments: object, folder: Path, **environment: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "onnxprune", *map(str, arguments)],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def ended(child: subprocess.Popen[str]) -> tuple[int, str]:
    _, err = child.communicate(timeout=120)
    return child.returncode, err


def others(folder: Path, names: Sequence[str]) -> list[str]:
    return sorted(p.name for p in folder.iterdir() if p.name not in names and p.name != "__pycache__")


def endless(folder: Path) -> Path:
    """Write a model whose loop ends in some hundred years."""
    model = parser.parse_model(
        """<ir_version: 9, opset_import: ["" : 18]>
        g (float[2, 5] x) => (float[2, 3] y) {
          n = Constant <value = int64 {1000000000000000}> ()
          l = Loop (n, , x) <body = b (int64 i, bool go, float[2, 5] v) => (bool more, float[2, 5] u)
                { more = Identity (go) u = Sin (v) }>
          h = MatMul (l, w)
          r = Relu (h)
          y = MatMul (r, v)
        }"""
    )
    model.graph.initializer.extend(linear().graph.initializer)
    path = folder / "endless.onnx"
    path.write_bytes(model.SerializeToString())
    return path


@linux
def test_a_model_that_never_ends_is_stopped(tmp_path: Path) -> None:
    path = endless(tmp_path)
    code, err = ended(start("verify", path, path, folder=tmp_path, ONNXPRUNE_TIME_LIMIT="2"))
    assert code == 3, err
    assert err.startswith("error: onnxruntime has been running ")
    assert "for more than 2 seconds" in err


@linux
@pytest.mark.parametrize("number", [signal.SIGSEGV, signal.SIGABRT, signal.SIGKILL])
def test_a_crash_ends_with_a_message(number: signal.Signals, tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(f"import os\ndef crash(session):\n    os.kill(os.getpid(), {int(number)})\n")
    code, err = ended(start("verify", SAMPLE, SAMPLE, "--metric", "own.py:crash", folder=tmp_path))
    assert code == 3, err
    assert err.startswith(f"error: the process was ended by {number.name}")
    assert len(err.splitlines()) == 1


@linux
def test_a_limit_that_is_no_number_is_a_usage_error(tmp_path: Path) -> None:
    code, err = ended(start("inspect", SAMPLE, folder=tmp_path, ONNXPRUNE_TIME_LIMIT="soon"))
    assert code == 2
    assert "ONNXPRUNE_TIME_LIMIT='soon'" in err


@linux
def test_the_child_goes_with_its_parent(tmp_path: Path) -> None:
    (tmp_path / "slow.py").write_text(
        "import os, pathlib, time\n"
        "def feeds():\n    pathlib.Path('pid').write_text(str(os.getpid()))\n    time.sleep(60)\n"
    )
    child = start("prune", SAMPLE, "-o", "o.onnx", "--ratio", "0.5", "--data", "slow.py:feeds", folder=tmp_path)
    while not (tmp_path / "pid").exists() or not (tmp_path / "pid").read_text():
        time.sleep(0.05)
        assert child.poll() is None
    child.kill()
    ended(child)
    worker = int((tmp_path / "pid").read_text())
    assert worker != child.pid
    for _ in range(100):
        if not _runs(worker):
            break
        time.sleep(0.05)
    assert not _runs(worker)
    assert others(tmp_path, ["slow.py", "pid"]) == []


def _runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


@linux
def test_memory_that_is_not_there_is_refused(tmp_path: Path) -> None:
    model = parser.parse_model(
        """<ir_version: 9, opset_import: ["" : 18]>
        g (float[5] x) => (float[m] y) {
          big = Expand (x, s)
          t = ReduceSum <keepdims = 0> (big)
          y = Mul (x, t)
        }"""
    )
    model.graph.initializer.append(numpy_helper.from_array(np.array([2**36, 5], np.int64), "s"))
    path = tmp_path / "m.onnx"
    path.write_bytes(model.SerializeToString())
    code, err = ended(start("verify", path, path, folder=tmp_path))
    assert code == 3, err
    assert err.startswith("error: ")


# --- writing ---


@linux
def test_a_full_disk_leaves_nothing(tmp_path: Path) -> None:
    code = (
        "import resource, sys\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))\n"
        f"sys.argv = ['onnxprune', 'prune', {str(SAMPLE)!r}, '-o', 'o.onnx', '--ratio', '0.1', '--no-verify']\n"
        "from onnxprune.cli import main\n"
        "main()\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2, done.stderr
    assert "cannot be written (File too large)" in done.stderr
    assert others(tmp_path, []) == []


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root writes everywhere")
def test_a_folder_that_cannot_be_written_to(tmp_path: Path) -> None:
    tmp_path.chmod(0o555)
    code, err = ended(start("prune", SAMPLE, "-o", tmp_path / "o.onnx", "--ratio", "0.5", folder=ROOT))
    tmp_path.chmod(0o755)
    assert code == 2
    assert "cannot be written to" in err


def test_two_runs_on_one_output_leave_one_whole(tmp_path: Path) -> None:
    runs = [
        start("prune", SAMPLE, "-o", "o.onnx", "--ratio", r, "--no-verify", folder=tmp_path) for r in ("0.2", "0.6")
    ]
    for child in runs:
        code, err = ended(child)
        assert code == 0, err
    assert others(tmp_path, ["o.onnx"]) == []
    found = onnxprune.load(tmp_path / "o.onnx").sha256
    alone = [onnxprune.prune(SAMPLE, ratio=r, verify=False).model for r in (0.2, 0.6)]
    for k, model in enumerate(alone):
        onnxprune.save(model, tmp_path / f"{k}.onnx")
    assert found in [onnxprune.load(tmp_path / f"{k}.onnx").sha256 for k in range(2)]


@linux
def test_what_a_killed_run_left_goes_and_what_is_being_written_stays(tmp_path: Path) -> None:
    left = tmp_path / ".o.onnx.abc.partial"
    left.write_bytes(b"half")
    target = tmp_path / "o.onnx"
    with staged(target) as outer:
        outer(target, b"one")
        alive = outer.paths[target]
        assert not left.exists()
        with staged(target) as inner:
            inner(target, b"two")
            assert alive.exists()
        assert target.read_bytes() == b"two"
    assert target.read_bytes() == b"one"
    assert others(tmp_path, ["o.onnx"]) == []


def save_outside(folder: Path, value: float) -> None:
    weight = numpy_helper.from_array(np.full((40, 50), value, np.float32), "w")
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 40])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 50])],
        [weight],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnxprune.save(model, folder / "o.onnx", external_data=True)


def test_a_model_never_stands_beside_the_data_of_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between any two renames the output is the old model with its data, or the new one with its own."""
    save_outside(tmp_path, 1.0)
    seen: list[float] = []
    replace, unlink = Path.replace, Path.unlink

    def look() -> None:
        seen.append(float(onnxprune.load(tmp_path / "o.onnx").array("w")[0, 0]))

    def watched_replace(self: Path, target: Path) -> Path:
        look()
        found = replace(self, target)
        look()
        return found

    def watched_unlink(self: Path, missing_ok: bool = False) -> None:
        look()
        unlink(self, missing_ok=missing_ok)
        look()

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", watched_replace)
        patch.setattr(Path, "unlink", watched_unlink)
        save_outside(tmp_path, 2.0)
        save_outside(tmp_path, 3.0)
    assert seen == sorted(seen)
    assert set(seen) == {1.0, 2.0, 3.0}
    assert len(others(tmp_path, ["o.onnx"])) == 1


def test_the_same_result_written_again_is_the_same_bytes(tmp_path: Path) -> None:
    save_outside(tmp_path, 1.0)
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    save_outside(tmp_path, 1.0)
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before


def test_data_that_changes_after_the_model_was_opened_is_not_read(tmp_path: Path) -> None:
    folder = tmp_path / "models"
    folder.mkdir()
    model = onnxprune.load(with_data(folder, outside("w.bin")))
    (folder / "w.bin").write_bytes(bytes(141))
    with pytest.raises(onnxprune.ModelError, match="changed after the model was opened"):
        model.array("w")
    with pytest.raises(onnxprune.ModelError, match="changed after the model was opened"):
        onnxprune.save(model, tmp_path / "o.onnx")
    assert not (tmp_path / "o.onnx").exists()


@pytest.mark.parametrize("link", [os.link, os.symlink])
def test_an_input_is_not_written_over_under_another_name(link: object, tmp_path: Path) -> None:
    folder = tmp_path / "models"
    folder.mkdir()
    path = with_data(folder, outside("w.bin"))
    before = path.read_bytes(), (folder / "w.bin").read_bytes()
    for k, source in enumerate((path, folder / "w.bin")):
        other = tmp_path / f"other{k}.onnx"
        link(source, other)  # type: ignore[operator]
        with pytest.raises(onnxprune.OptionError, match="overwrite the source"):
            onnxprune.save(onnxprune.load(path), other)
    assert (path.read_bytes(), (folder / "w.bin").read_bytes()) == before


@linux
@pytest.mark.slow
@pytest.mark.parametrize("how", ["inline", "external"])
def test_kills_at_random_moments_damage_nothing(how: str) -> None:
    from benchmarks.kills import kill_runs

    tally = kill_runs(12, how, random.Random(1))  # noqa: S311 - moments, not secrets
    assert tally["damaged"] == 0
    assert tally["old or new"] == 12
    assert tally["files in the making after the next run"] == 0


def test_the_attacks_are_models(tmp_path: Path) -> None:
    """What the hostile models are made from is sound."""
    onnx.checker.check_model(linear())
    assert onnxprune.load(with_data(tmp_path, outside("w.bin"))).array("w").shape == (5, 7)
