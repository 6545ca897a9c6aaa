"""The sample models are what they claim to be, and every sample script runs."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest

ROOT = Path(__file__).resolve().parent.parent
SAMPLES = ROOT / "samples"
SCRIPTS = {
    "compact_masked.py": [],
    "custom_op_rule.py": [],
    "pipeline.py": [str(SAMPLES / "digits_transformer.onnx"), "pruned.onnx"],
    "prune_cnn.py": [],
    "prune_transformer.py": [],
}
NOT_RUN = {
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
