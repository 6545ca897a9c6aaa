"""Prune, then convert to the format of onnxruntime's mobile and web builds, and run that.

python samples/prune_for_mobile.py        # writes digits_cnn.half.onnx and digits_cnn.half.ort
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

import onnxruntime as ort

import onnxprune
from digits_eval import accuracy, file_accuracy

HERE = Path(__file__).parent
SOURCE = HERE / "digits_cnn.onnx"
PRUNED = Path("digits_cnn.half.onnx")
CONVERTER = "onnxruntime.tools.convert_onnx_models_to_ort"


def main() -> int:
    """Prune with samples, convert in a folder of its own, and measure the converted model."""
    onnxprune.prune(SOURCE, PRUNED, target={"macs": 0.5}, data=HERE / "digits_calibration.npz")
    with tempfile.TemporaryDirectory() as folder:
        # "Fixed" optimizes now and not on the device; the converter also lists the operators a reduced build needs.
        command = [sys.executable, "-m", CONVERTER, str(PRUNED.resolve()), "--output_dir", folder]
        subprocess.run([*command, "--optimization_style", "Fixed"], check=True, stdout=subprocess.DEVNULL)  # noqa: S603
        converted = Path(folder, PRUNED.with_suffix(".ort").name)
        PRUNED.with_suffix(".ort").write_bytes(converted.read_bytes())

    session = ort.InferenceSession(PRUNED.with_suffix(".ort"), providers=["CPUExecutionProvider"])
    print(f"{PRUNED}: accuracy {file_accuracy(PRUNED):.4f}")
    print(f"{PRUNED.with_suffix('.ort')}: accuracy {accuracy(session):.4f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
