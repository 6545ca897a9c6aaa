"""The same bytes from every process, hash seed and number of threads."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.determinism import COMMANDS, outputs

SAMPLES = Path(__file__).resolve().parent.parent / "samples"


@pytest.mark.slow
@pytest.mark.parametrize("command", COMMANDS)
def test_outputs_are_the_same_bytes(command: str, tmp_path: Path) -> None:
    found = outputs(SAMPLES / "digits_transformer.onnx", command, str(SAMPLES / "digits_calibration.npz"), tmp_path)
    assert len(found) == 4
    assert len(set(found)) == 1
    assert len(found[0]) == 64, found[0]
