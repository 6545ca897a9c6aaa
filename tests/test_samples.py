"""The sample models are what they claim to be, and every sample script runs."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest

import onnxprune

ROOT = Path(__file__).resolve().parent.parent
SAMPLES = ROOT / "samples"
SCRIPTS = {
    "compact_masked.py": [],
    "custom_op_rule.py": [],
    "pipeline.py": [str(SAMPLES / "digits_transformer.onnx"), "pruned.onnx"],
    "prune_and_quantize.py": [],
    "prune_cnn.py": [],
    "prune_for_mobile.py": [],
    "prune_transformer.py": [],
}
ACCURATE = ("prune_and_quantize.py", "prune_for_mobile.py")
NOT_RUN = {
    "ci_gate.py",  # needs a pruned model; has tests of its own
    "digits_eval.py",
    "digits_training.py",
    "train_digits_cnn.py",
    "train_digits_masked.py",
    "train_digits_transformer.py",
}


def run(script: str, arguments: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    return subprocess.run(
        [sys.executable, str(SAMPLES / script), *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )


def test_every_script_is_accounted_for():
    assert {path.name for path in SAMPLES.glob("*.py")} == set(SCRIPTS) | NOT_RUN


@pytest.mark.parametrize("script", sorted(SCRIPTS))
def test_script_runs(script, tmp_path):
    result = run(script, SCRIPTS[script], tmp_path)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "Traceback" not in result.stderr
    accuracies = [float(number) for number in re.findall(r"\b[01]\.\d{4}\b", result.stdout)]
    assert len(accuracies) >= 2, result.stdout
    assert list(tmp_path.glob("*.onnx"))
    if script in ACCURATE:
        assert min(accuracies) > 0.96
    if script == "prune_and_quantize.py":
        before, after = (tmp_path / f"digits_cnn.half{end}.onnx" for end in ("", ".int8"))
        assert 2 * after.stat().st_size < before.stat().st_size


@pytest.fixture(scope="module")
def pruned(tmp_path_factory):
    folder = tmp_path_factory.mktemp("gate")
    data = SAMPLES / "digits_calibration.npz"
    plan = onnxprune.prune(SAMPLES / "digits_cnn.onnx", folder / "pruned.onnx", ratio=0.25, data=data).plan
    (folder / "plan.json").write_text(plan.dumps())
    return folder


@pytest.mark.slow
@pytest.mark.parametrize(
    ("limits", "code", "says"),
    [
        (["--min-accuracy", "0.9", "--max-latency", "1000"], 0, ""),
        (["--min-accuracy", "1.1", "--max-latency", "1000"], 1, "1.1 is the least"),
        (["--min-accuracy", "0.1", "--max-latency", "0.001"], 1, "0.001 is the most"),
        (["--min-accuracy", "0.1", "--max-latency", "1000", "--plan", "other.json"], 3, "other.json"),
        (["--metric", "missing.py:f"], 2, "missing.py"),
    ],
    ids=["good", "worse", "slower", "no plan", "no metric"],
)
def test_gate(limits, code, says, pruned, tmp_path):
    files = [str(SAMPLES / "digits_cnn.onnx"), str(pruned / "pruned.onnx"), "--plan", str(pruned / "plan.json")]
    result = run("ci_gate.py", [*files, *limits], tmp_path)
    assert result.returncode == code, result.stderr
    assert says in result.stderr
    assert "Traceback" not in result.stderr
    assert (tmp_path / "verdict.json").exists() == (code < 2)


@pytest.mark.slow
def test_gate_refuses_a_model_of_another_plan(pruned, tmp_path):
    other = onnxprune.plan(SAMPLES / "digits_cnn.onnx", ratio=0.5)
    (tmp_path / "plan.json").write_text(other.dumps())
    files = [str(SAMPLES / "digits_cnn.onnx"), str(pruned / "pruned.onnx"), "--plan", "plan.json"]
    result = run("ci_gate.py", [*files, "--min-accuracy", "0", "--max-latency", "1000"], tmp_path)
    assert result.returncode == 1
    assert "FAILED: slices" in result.stderr


@pytest.mark.slow
def test_pre_commit_hook_runs_what_the_sample_configures(pruned, tmp_path):
    hook = (ROOT / ".pre-commit-hooks.yaml").read_text(encoding="utf-8")
    sample = (SAMPLES / "pre-commit-config.yaml").read_text(encoding="utf-8")
    (entry,), (arguments,) = re.findall(r"entry: (.*)", hook), re.findall(r"args: (\[.*\])", sample)
    assert re.findall(r"- id: (\S+)", hook) == re.findall(r"- id: (\S+)", sample)
    for path in (ROOT / "samples", pruned / "pruned.onnx", pruned / "plan.json"):
        (tmp_path / path.name).symlink_to(path)
    program, *words = shlex.split(entry)
    assert program == "onnxprune"
    command = [sys.executable, "-m", program, *words, *json.loads(arguments)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}

    def commit() -> int:
        return subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, check=False).returncode

    assert commit() == 0
    (tmp_path / "pruned.onnx").unlink()
    shutil.copy(SAMPLES / "digits_cnn.onnx", tmp_path / "pruned.onnx")
    assert commit() == 1


def test_the_container_takes_files_that_exist():
    text = (SAMPLES / "Dockerfile").read_text(encoding="utf-8")
    sources = [name for line in re.findall(r"^COPY (.*) \S+$", text, flags=re.MULTILINE) for name in line.split()]
    assert sources
    assert not [name for name in sources if not (ROOT / name).exists()]
    python = re.findall(r"^FROM python:(3\.\d+)", text, flags=re.MULTILINE)
    assert f"Python :: {python[0]}" in (ROOT / "pyproject.toml").read_text(encoding="utf-8")


def test_the_list_of_samples_is_whole():
    index = (SAMPLES / "README.md").read_text(encoding="utf-8")
    shown = set(re.findall(r"\]\(([\w.-]+)\)", index))
    others = {"README.md", "digits_eval.py", "digits_training.py", "digits_calibration.npz"}
    there = {path.name for path in SAMPLES.iterdir() if path.is_file() and path.suffix != ".onnx"}
    assert {name for name in there if not name.startswith("train_")} - others == shown


@pytest.mark.parametrize(
    ("arguments", "code"),
    [([], 2), (["missing.onnx", "out.onnx"], 3), ([str(SAMPLES / "digits_calibration.npz"), "out.onnx"], 3)],
    ids=["no arguments", "no source", "not a model"],
)
def test_pipeline_exit_codes(arguments, code, tmp_path):
    result = run("pipeline.py", arguments, tmp_path)
    assert result.returncode == code, result.stderr
    assert result.stderr.strip()
    assert "Traceback" not in result.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("name", "floor"),
    [("digits_cnn", 0.97), ("digits_transformer", 0.95), ("digits_masked_ao", 0.96), ("digits_masked_prune", 0.96)],
)
def test_model_is_small_and_accurate(name, floor, tmp_path):
    path = SAMPLES / f"{name}.onnx"
    result = run("digits_eval.py", [str(path)], tmp_path)
    assert result.returncode == 0, result.stderr
    assert float(result.stdout.split()[-1]) >= floor
    assert path.stat().st_size < 400_000


@pytest.mark.parametrize("name", ["digits_cnn", "digits_transformer", "digits_masked_ao", "digits_masked_prune"])
def test_model_is_one_clean_file(name):
    proto = onnx.load(SAMPLES / f"{name}.onnx", load_external_data=False)
    onnx.checker.check_model(proto, full_check=True)
    assert all(tensor.data_location != onnx.TensorProto.EXTERNAL for tensor in proto.graph.initializer)
    assert "Identity" not in {node.op_type for node in proto.graph.node}
    assert not any(node.metadata_props for node in proto.graph.node)
    assert proto.graph.input[0].type.tensor_type.shape.dim[0].dim_param == "batch"


@pytest.mark.parametrize("name", ["digits_cnn", "digits_transformer"])
@pytest.mark.parametrize("batch_size", [1, 5])
def test_model_takes_calibration_batches(name, batch_size):
    with np.load(SAMPLES / "digits_calibration.npz") as archive:
        images = archive["image"]
    assert images.shape == (128, 1, 16, 16)
    assert images.dtype == np.float32
    session = ort.InferenceSession(SAMPLES / f"{name}.onnx", providers=["CPUExecutionProvider"])
    (logits,) = session.run(None, {"image": images[:batch_size]})
    assert logits.shape == (batch_size, 10)
    assert np.isfinite(logits).all()
