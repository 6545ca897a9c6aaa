"""What is built holds the package and nothing else, and works from an empty environment."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
import tarfile
import venv
import zipfile
from importlib.util import find_spec
from pathlib import Path, PurePosixPath

import pytest

import onnxprune

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
PACKAGE = {path.relative_to(ROOT).as_posix() for path in (ROOT / "onnxprune").rglob("*.py")}
DATA = {"onnxprune/py.typed", "onnxprune/report/page.css", "onnxprune/report/page.js"}
HEAVY = {"dask", "matplotlib", "olive-ai", "pandas", "ray", "scikit-learn", "scipy", "torch", "transformers"}
BOUND = re.compile(r"^([\w-]+)(?:\[\w+\])?>=([\w.]+)(?:;.*)?$")


def test_the_version_is_in_one_place():
    assert "version" in PROJECT["dynamic"]
    for name in ("pyproject.toml", "docs/conf.py", "README.md"):
        assert onnxprune.__version__ not in (ROOT / name).read_text(encoding="utf-8"), name
    assert f"\n## {onnxprune.__version__}" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


def test_the_pythons_of_the_classifiers_are_those_required():
    listed = [int(n) for n in re.findall(r"Python :: 3\.(\d+)", "\n".join(PROJECT["classifiers"]))]
    assert listed == list(range(min(listed), max(listed) + 1))
    assert PROJECT["requires-python"] == f">=3.{min(listed)}"


def test_the_oldest_versions_are_the_lower_bounds():
    text = (ROOT / "constraints-oldest.txt").read_text(encoding="utf-8")
    oldest = dict(re.findall(r"^([\w-]+)==([\w.]+)$", text, flags=re.MULTILINE))
    bounds = [BOUND.match(line) for line in (*PROJECT["dependencies"], *PROJECT["optional-dependencies"]["test"])]
    assert all(bounds)
    for name, bound in (match.groups() for match in bounds if match):
        if name == "tomli":  # before Python 3.11 only
            continue
        assert re.fullmatch(rf"{re.escape(bound)}(\.0)*", oldest[name]), f"{name}: {oldest[name]} is not {bound}"


def test_tested_versions_are_allowed_and_complete():
    text = (ROOT / "constraints.txt").read_text(encoding="utf-8")
    pinned = dict(re.findall(r"^([\w-]+)==([\d.]+)", text, flags=re.MULTILINE))
    extras = [line for name in ("test", "dev", "docs") for line in PROJECT["optional-dependencies"][name]]
    for line in (*PROJECT["dependencies"], *extras):
        match = BOUND.match(line)
        assert match, line
        name, bound = match.groups()
        version = [int(part) for part in pinned[name].split(".")]
        assert version >= [int(part) for part in bound.split(".")], name


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """Build a wheel and an sdist of a copy of the checkout, the wheel from the sdist as package indexes' users do."""
    folder = tmp_path_factory.mktemp("built")
    hidden = shutil.ignore_patterns(".*", "build", "dist", "*.egg-info", "__pycache__")
    shutil.copytree(ROOT, folder / "checkout", ignore=hidden)
    command = [sys.executable, "-m", "build", "--outdir", str(folder / "dist"), str(folder / "checkout")]
    result = subprocess.run(command, capture_output=True, text=True, timeout=900, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "Warning" not in result.stdout + result.stderr, result.stdout + result.stderr
    (wheel,), (sdist,) = (folder / "dist").glob("*.whl"), (folder / "dist").glob("*.tar.gz")
    return wheel, sdist


needs_build = pytest.mark.skipif(find_spec("build") is None, reason="needs build, of the extra test")


@needs_build
@pytest.mark.slow
def test_contents(built):
    wheel, sdist = built
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        (metadata,) = (archive.read(name).decode() for name in names if name.endswith("/METADATA"))
    info = f"onnxprune-{onnxprune.__version__}.dist-info"
    assert {name for name in names if not name.startswith(info)} == PACKAGE | DATA
    assert f"{info}/licenses/LICENSE" in names
    assert f"\nVersion: {onnxprune.__version__}\n" in metadata
    for extra in PROJECT["optional-dependencies"]:
        assert f"Provides-Extra: {extra}\n" in metadata
    with tarfile.open(sdist) as archive:
        found = {PurePosixPath(*PurePosixPath(m.name).parts[1:]).as_posix() for m in archive.getmembers() if m.isfile()}
    assert found >= PACKAGE | DATA | {"LICENSE", "README.md", "CHANGELOG.md", "pyproject.toml"}
    assert not [name for name in found if name.startswith(("tests/", "samples/", "docs/", "benchmarks/"))]


@needs_build
@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="names of folders are POSIX")
def test_the_wheel_does_the_main_job_in_an_empty_environment(built, tmp_path):
    """The quick start's two commands, away from the checkout, with base dependencies alone."""
    venv.create(tmp_path / "venv", with_pip=True)
    binaries = tmp_path / "venv/bin"
    shutil.copytree(ROOT / "samples", tmp_path / "samples")
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "VIRTUAL_ENV", "PYTEST"))}

    def run(*command: str) -> str:
        result = subprocess.run(
            command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=1200, check=False
        )
        assert result.returncode == 0, f"{shlex.join(command)}\n{result.stdout}{result.stderr}"
        return result.stdout

    run(str(binaries / "pip"), "install", "-q", "-c", str(ROOT / "constraints.txt"), str(built[0]))
    listed = run(str(binaries / "pip"), "list", "--format", "freeze")
    assert not {line.partition("==")[0].lower() for line in listed.splitlines()} & HEAVY
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    steps = re.findall(r"\.venv/bin/(onnxprune [^&\n]+)", text.split("```bash")[1])
    assert len(steps) == 2
    for step in steps:
        name, *arguments = shlex.split(step)
        assert run(str(binaries / name), *arguments).strip()
    where = run(str(binaries / "python"), "-W", "error", "-c", "import onnxprune.api; print(onnxprune.api.__file__)")
    assert where.startswith(str(tmp_path / "venv"))
    assert (tmp_path / "pruned.onnx").stat().st_size < (tmp_path / "samples/digits_cnn.onnx").stat().st_size
