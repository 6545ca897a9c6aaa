"""Measure a digits classifier on the held-out part of scikit-learn's handwritten digits.

`accuracy` is a metric for the command line: `onnxprune verify A.onnx B.onnx --metric samples/digits_eval.py:accuracy`.
As a script, `python samples/digits_eval.py MODEL ...` prints the accuracy of each model; with `--write-calibration` it
writes `digits_calibration.npz` anew. Needs onnxruntime and scikit-learn (the `test` extra), not torch.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import onnxruntime as ort
from sklearn.datasets import load_digits

INPUT = "image"
N_TEST = 450
N_CALIBRATION = 128
CALIBRATION = Path(__file__).with_name("digits_calibration.npz")


def digits(part: str) -> tuple[np.ndarray, np.ndarray]:
    """Return the images and labels of one part of the digits, `"train"` (1347) or `"test"` (450).

    images: (N, 1, 16, 16) float32 in [0, 1], every pixel of the 8x8 originals doubled. labels: (N,) int64.
    The split is a fixed permutation, so a model never sees the part that `accuracy` counts.
    """
    source = load_digits()
    images = np.kron(source.images, np.ones((1, 2, 2)))[:, None].astype(np.float32) / 16
    labels = source.target.astype(np.int64)
    order = np.random.RandomState(0).permutation(len(labels))  # legacy stream: fixed for all numpy versions
    chosen = {"train": order[:-N_TEST], "test": order[-N_TEST:]}[part]
    return images[chosen], labels[chosen]


def accuracy(session: ort.InferenceSession) -> float:
    """Return the fraction of the 450 test digits that `session` classifies correctly."""
    images, labels = digits("test")
    (logits,) = session.run(None, {INPUT: images})
    return float((logits.argmax(axis=1) == labels).mean())


def file_accuracy(path: str | Path) -> float:
    """Return `accuracy` of the model in a file."""
    return accuracy(ort.InferenceSession(path, providers=["CPUExecutionProvider"]))


def calibration_feeds(batch_size: int = 32) -> list[dict[str, np.ndarray]]:
    """Return 128 training digits as feeds, labels left out; also `--data samples/digits_eval.py:calibration_feeds`."""
    images = np.load(CALIBRATION)[INPUT]
    return [{INPUT: images[i : i + batch_size]} for i in range(0, len(images), batch_size)]


def main(arguments: list[str]) -> int:
    """Print one line per model, or write the calibration file."""
    if arguments == ["--write-calibration"]:
        np.savez_compressed(CALIBRATION, **{INPUT: digits("train")[0][:N_CALIBRATION]})
        return 0
    for path in arguments:
        print(f"{path}: accuracy {file_accuracy(path):.4f}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
