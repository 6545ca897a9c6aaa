"""What the README shows is there and runs."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

import onnxprune

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, flags=re.MULTILINE | re.DOTALL)


BASH = blocks("bash")
COMMANDS = [
    shlex.split(part)[1:]
    for block in BASH
    for line in block.splitlines()
    for part in re.split(r"\s*&&\s*", line)
    if re.match(r"(\.venv/bin/)?onnxprune\s", part)
]


@cache
def command_help(command: str) -> str:
    result = subprocess.run(
        [sys.executable, "-m", "onnxprune", command, "--help"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


def without_environment() -> dict[str, str]:
    """Give the environment less what ties Python to this run's."""
    return {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "VIRTUAL_ENV", "PYTEST"))}


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
@pytest.mark.parametrize("block", BASH, ids=range(len(BASH)))
def test_bash_block_parses(block):
    result = subprocess.run(["bash", "-n"], input=block, capture_output=True, text=True, check=False)  # noqa: S607
    assert result.returncode == 0, result.stderr


def test_there_are_commands():
    assert len(BASH) >= 3
    assert len(COMMANDS) >= 8


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_command_and_options_exist(command):
    text = command_help(command[0])
    for word in command[1:]:
        if word.startswith("-"):
            assert re.search(rf"(?<![\w-]){re.escape(word)}(?![\w-])", text), f"{command[0]} has no {word}"


def test_commands_name_files_that_exist():
    names = {word.split(":")[0] for command in COMMANDS for word in command if word.startswith("samples/")}
    assert names
    assert not [name for name in names if not (ROOT / name).exists()]


def test_relative_links_exist():
    targets = re.findall(r"\]\((?!https?:)([^)#]+)", README)
    assert targets
    assert not [target for target in targets if not (ROOT / target).exists()]


def test_names_in_python_exist():
    names = set(re.findall(r"\bonnxprune\.([A-Za-z_]\w*)", "\n".join([*blocks("python"), README])))
    assert names
    assert not [name for name in sorted(names) if not hasattr(onnxprune, name)]


@pytest.mark.parametrize("block", blocks("python"), ids=range(len(blocks("python"))))
def test_python_block_runs(block, tmp_path):
    shutil.copytree(ROOT / "samples", tmp_path / "samples", ignore=shutil.ignore_patterns("__pycache__"))
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    result = subprocess.run(
        [sys.executable, "-c", block],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "pruned.onnx").stat().st_size < (tmp_path / "samples/digits_cnn.onnx").stat().st_size


@pytest.mark.slow
def test_commands_run_in_order(tmp_path):
    """All blocks but the first, which has a test of its own, and the one that starts the tests."""
    (tmp_path / "samples").symlink_to(ROOT / "samples")
    assert len(BASH) == 3
    assert BASH[1].rstrip().endswith("-m pytest -q")
    lines = [shlex.split(line) for line in BASH[2].splitlines() if line and not line.startswith("#")]
    assert {line[0] for line in lines} == {"onnxprune"}
    for line in lines:
        result = subprocess.run(
            [sys.executable, "-m", *line],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            timeout=600,
            check=False,
        )
        assert result.returncode == 0, f"{shlex.join(line)}\n{result.stdout}{result.stderr}"
        assert result.stdout.strip()


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="the quick start is for a POSIX shell")
def test_quick_start_in_an_empty_environment(tmp_path):
    checkout = tmp_path / "checkout"
    hidden = shutil.ignore_patterns(".git", ".venv*", "build", "*.egg-info", "__pycache__", ".*_cache", ".hypothesis")
    shutil.copytree(ROOT, checkout, ignore=hidden)
    before = (checkout / "samples/digits_cnn.onnx").read_bytes()
    result = subprocess.run(
        ["bash", "-c", BASH[0]],  # noqa: S607
        cwd=checkout,
        env=without_environment(),
        capture_output=True,
        text=True,
        timeout=1800,
        check=False,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    assert (checkout / "plan.json").exists()
    assert (checkout / "pruned.onnx").stat().st_size < len(before)
    assert (checkout / "samples/digits_cnn.onnx").read_bytes() == before
    assert result.stdout.strip()
