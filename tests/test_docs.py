"""What the documentation shows runs, prints what it says, links to what is there, and lists all there is."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import textwrap
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path

import click
import pytest

import onnxprune
from onnxprune import errors
from onnxprune.chains.activations import VARIANTS
from onnxprune.chains.registry import SETS
from onnxprune.cli import main as program
from onnxprune.rules import coverage

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.glob("*.md"))
OTHERS = (ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", ROOT / "samples/README.md")
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
# Pages whose shell blocks do not run here, and why.
ELSEWHERE = {
    "docs/olive.md": "needs Olive; tests/test_olive.py runs them",
    "README.md": "tests/test_readme.py runs them",
    "CONTRIBUTING.md": "they make the environment of this run, and start it",
}

RUNNER = """
import contextlib, io, json, sys
names, printed = {"__name__": "__main__"}, []
for block in json.load(sys.stdin):
    sink = io.StringIO()
    with contextlib.redirect_stdout(sink):
        exec(compile(block, "docs", "exec"), names)
    printed.append(sink.getvalue())
json.dump(printed, sys.stdout)
"""


def blocks(page: Path) -> list[tuple[str, str]]:
    """Give language and text of every block of a page."""
    return BLOCK.findall(page.read_text(encoding="utf-8"))


def python_blocks(page: Path) -> list[tuple[str, str | None]]:
    """Give every Python block with the output that the page shows right after it."""
    found = blocks(page)
    pairs = pairwise([*found, ("", "")])
    return [
        (code, shown if kind == "text" else None) for (language, code), (kind, shown) in pairs if language == "python"
    ]


def shell_lines(page: Path) -> list[str]:
    """Give every line of the page's shell blocks that is no comment."""
    lines = [line for language, text in blocks(page) if language == "bash" for line in text.splitlines()]
    return [line for line in lines if line and not line.startswith("#")]


def commands(page: Path) -> list[list[str]]:
    """Give every command of the page's shell blocks as arguments, unless they run elsewhere."""
    if page.relative_to(ROOT).as_posix() in ELSEWHERE:
        return []
    return [shlex.split(line) for line in shell_lines(page)]


def without_trailing_spaces(text: str) -> list[str]:
    return [line.rstrip() for line in text.splitlines()]


def run(arguments: list[str], folder: Path, **extra: object) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONIOENCODING": "utf-8", "COLUMNS": "120"}
    return subprocess.run(
        arguments,
        cwd=folder,
        env=environment,
        capture_output=True,
        encoding="utf-8",
        timeout=300,
        check=False,
        **extra,  # type: ignore[call-overload]
    )


@pytest.fixture
def workplace(tmp_path: Path) -> Path:
    """Give a folder with the files that the pages name."""
    shutil.copy(ROOT / "samples/digits_cnn.onnx", tmp_path / "model.onnx")
    shutil.copy(ROOT / "samples/digits_calibration.npz", tmp_path / "samples.npz")
    (tmp_path / "models").mkdir()
    shutil.copy(ROOT / "samples/digits_cnn.onnx", tmp_path / "models")
    for folder in ("benchmarks", "docs", "samples"):
        (tmp_path / folder).symlink_to(ROOT / folder)
    return tmp_path


def test_there_are_pages_with_code():
    assert {"README", "chains", "cli", "errors", "how_it_works", "op_coverage"} <= {page.stem for page in PAGES}
    assert sum(len(python_blocks(page)) for page in PAGES) >= 8
    assert sum(len(commands(page)) for page in PAGES) >= 8


@pytest.mark.parametrize("page", [*PAGES, *OTHERS], ids=lambda p: p.relative_to(ROOT).as_posix())
def test_every_block_is_one_that_tests_know(page):
    """No fence hides code from the tests: every block has a language, and whatever is no data is run."""
    text = page.read_text(encoding="utf-8")
    quoted = re.findall(r"^ +```python\n(.*?)^ +```$", text, flags=re.MULTILINE | re.DOTALL)
    assert len(re.findall(r"^ *```", text, flags=re.MULTILINE)) == 2 * (len(blocks(page)) + len(quoted))
    assert {language for language, _ in blocks(page)} <= {"bash", "python", "text", "toml", "json", "yaml"}
    assert not quoted or page.name == "CONTRIBUTING.md"


def test_pages_that_run_elsewhere_have_commands():
    assert not [page for page in ELSEWHERE if not shell_lines(ROOT / page)]


def test_the_rule_shown_to_contributors_works():
    """It is registered in place of the built-in one, and units go through the node."""
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    (shown,) = re.findall(r"^ +```python\n(.*?)^ +```$", text, flags=re.MULTILINE | re.DOTALL)
    code = f"""
from functools import partial
import numpy as np
import onnx
from onnx import helper, numpy_helper
import onnxprune
op_rule, Op = partial(onnxprune.op_rule, replace=True), onnxprune.Op
{textwrap.dedent(shown)}
arrays = {{"first": (5, 7), "bias": (7,), "second": (7, 3)}}
weights = [numpy_helper.from_array(np.ones(shape, np.float32), name) for name, shape in arrays.items()]
nodes = [
    helper.make_node("MatMul", ["x", "first"], ["a"]),
    helper.make_node("BiasGelu", ["a", "bias"], ["b"], domain="com.microsoft"),
    helper.make_node("MatMul", ["b", "second"], ["y"]),
]
values = [[helper.make_tensor_value_info(n, 1, s)] for n, s in (("x", [2, 5]), ("y", [2, 3]))]
opsets = [helper.make_opsetid("", 18), helper.make_opsetid("com.microsoft", 1)]
graph = helper.make_graph(nodes, "g", *values, weights)
(group,) = onnxprune.analyze(helper.make_model(graph, opset_imports=opsets, ir_version=10)).groups
print(group.size, sorted(member.initializer for member in group.members))
"""
    result = run([sys.executable, "-c", code], ROOT)
    assert result.stdout.split(maxsplit=1) == ["7", "['bias', 'first', 'second']\n"], result.stderr


@pytest.mark.slow
@pytest.mark.skipif(find_spec("furo") is None or find_spec("myst_parser") is None, reason="needs the extra docs")
def test_the_site_builds_and_needs_no_network(tmp_path):
    """Broken links and anchors are errors of the build; scripts, styles and fonts come with the pages."""
    result = run([sys.executable, "-m", "sphinx", "-q", "-W", "-c", str(DOCS), str(ROOT), str(tmp_path)], ROOT)
    assert result.returncode == 0, result.stderr
    built = {path.stem: path.read_text(encoding="utf-8") for path in (tmp_path / "docs").glob("*.html")}
    assert {page.stem for page in PAGES} <= set(built)
    for name, text in built.items():
        for tag in re.findall(r"<(?:script|link|img|iframe)[^>]*>", text):
            assert not re.search(r"(?:src|href)=.?(?:https?:)?//", tag), (name, tag)
    for style in (tmp_path / "_static").rglob("*.css"):
        assert not re.findall(r"url\(.?https?:|@import", style.read_text(encoding="utf-8")), style


def test_the_reference_lists_every_public_name():
    text = (DOCS / "reference.rst").read_text(encoding="utf-8")
    shown = set(re.findall(r"^\.\. auto\w+:: (\w+)$", text, flags=re.MULTILINE))
    assert shown == set(onnxprune.__all__) - {"__version__"}


def test_every_page_is_in_the_sites_menu():
    index = (DOCS / "index.rst").read_text(encoding="utf-8")
    listed = set(re.findall(r"^   ([\w./]+)$", index, flags=re.MULTILINE))
    assert {page.stem for page in PAGES} | {"reference"} <= listed


@pytest.mark.parametrize("page", [p for p in PAGES if python_blocks(p)], ids=lambda p: p.stem)
def test_python_blocks_run_and_print_what_is_shown(page, workplace):
    code = [text for text, _ in python_blocks(page)]
    result = run([sys.executable, "-c", RUNNER], workplace, input=json.dumps(code))
    assert result.returncode == 0, result.stderr
    for (text, shown), printed in zip(python_blocks(page), json.loads(result.stdout), strict=True):
        if shown is None:
            assert not printed.strip(), text
        else:
            assert without_trailing_spaces(printed) == without_trailing_spaces(shown), text


@pytest.mark.parametrize("page", [p for p in PAGES if commands(p)], ids=lambda p: p.stem)
def test_commands_run(page, workplace):
    for language, text in blocks(page):
        name = re.match(r"# (\w+\.(?:toml|py))\n", text)
        if language in ("toml", "python") and name:
            (workplace / name[1]).write_text(text, encoding="utf-8")
    before = (workplace / "model.onnx").read_bytes()
    for name, *arguments in commands(page):
        program_of = {"onnxprune": [sys.executable, "-m", "onnxprune"], "python": [sys.executable]}
        if arguments[:2] == ["-m", "sphinx"]:
            continue  # test_the_site_builds_and_needs_no_network runs it, for a folder of its own
        result = run([*program_of[name], *arguments], workplace)
        assert result.returncode == 0, f"{shlex.join(arguments)}\n{result.stderr}"
        if name == "onnxprune" and "--json" in arguments:
            assert json.loads(result.stdout)["command"] == arguments[0]
    assert (workplace / "model.onnx").read_bytes() == before


def test_shown_output_of_commands_is_what_they_print(workplace):
    checked = 0
    for page in PAGES:
        for (language, text), (kind, shown) in pairwise(blocks(page)):
            if language == "bash" and kind == "text":
                result = run([sys.executable, "-m", "onnxprune", *shlex.split(text)[1:]], workplace)
                assert without_trailing_spaces(result.stdout) == without_trailing_spaces(shown), text
                checked += 1
    assert checked >= 1


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.stem)
def test_inline_commands_and_options_exist(page):
    text = page.read_text(encoding="utf-8")
    for command in re.findall(r"`onnxprune ([a-z][\w-]*)[^`]*`", text):
        assert command in program.commands
    known = {o for command in program.commands.values() for p in command.params for o in (*p.opts, *p.secondary_opts)}
    for option in re.findall(r"`(?:onnxprune [^`]*)?(--[a-z][a-z-]*)", text):
        assert option in {*known, "--help"}, option


def anchors(page: Path) -> set[str]:
    """Give the anchors of a page's headings, as GitHub spells them."""
    text = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    headings = re.findall(r"^#+ (.+)$", text, flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.stem)
def test_links_resolve(page):
    for target in re.findall(r"\]\((?!https?:)([^)]+)\)", page.read_text(encoding="utf-8")):
        name, _, anchor = target.partition("#")
        file = (page.parent / name).resolve() if name else page
        assert file.exists(), target
        assert not anchor or anchor in anchors(file), target


def test_index_links_every_page():
    index = (DOCS / "README.md").read_text(encoding="utf-8")
    assert [page.name for page in PAGES if page.name != "README.md" and f"({page.name})" not in index] == []


def test_op_coverage_is_not_stale():
    result = run([sys.executable, "-m", coverage.__name__], ROOT)
    assert result.returncode == 0, result.stderr
    shown = (DOCS / "op_coverage.md").read_text(encoding="utf-8")
    assert result.stdout == shown, f"stale; run: python -m {coverage.__name__} docs/op_coverage.md"


def test_op_coverage_writes_a_file_and_asks_for_an_axis_equation(tmp_path):
    assert coverage.main([str(tmp_path / "page.md")]) == 0
    assert "`Conv`" in (tmp_path / "page.md").read_text(encoding="utf-8")

    def bare(op: object) -> None:
        del op

    with pytest.raises(ValueError, match="no docstring"):
        coverage.axis_equation(bare)


def section(heading: str) -> str:
    """Give the text of one section of the page about the command line."""
    text = (DOCS / "cli.md").read_text(encoding="utf-8")
    return re.split(r"^## ", text.partition(f"\n## {heading}\n")[2], maxsplit=1, flags=re.MULTILINE)[0]


@pytest.mark.parametrize("name", sorted(program.commands))
def test_every_option_is_documented(name):
    rows = [row for row in section("Shared options").splitlines() if row.startswith("| `-")]
    shared = "\n".join(row.split("|")[1] for row in rows if name in row.split("|")[2] or "all" in row.split("|")[2])
    table = "\n".join(row.split("|")[1] for row in section(name).splitlines() if row.startswith("| `-"))
    documented = set(re.findall(r"--?[a-z][a-z-]*", shared + table))
    options = [p for p in program.commands[name].params if isinstance(p, click.Option)]
    wanted = {o for p in options for o in (*p.opts, *p.secondary_opts)}
    assert documented == wanted - {"--help", "-h"}


def test_every_error_is_documented_with_its_exit_code():
    text = (DOCS / "errors.md").read_text(encoding="utf-8")
    shown = dict(re.findall(r"^\| `(\w+Error)` \| (\d+) \|", text, flags=re.MULTILINE))
    kinds = [e for e in vars(errors).values() if isinstance(e, type) and issubclass(e, errors.OnnxPruneError)]
    assert shown == {kind.__name__: str(kind.exit_code) for kind in kinds}


def test_every_chain_and_activation_is_documented():
    text = (DOCS / "chains.md").read_text(encoding="utf-8")
    shown = set(re.findall(r"^\| `([a-z_{}-]+)` \|", text, flags=re.MULTILINE))
    assert {name.format("activation") for name in shown} == set(SETS["default"])
    listed = re.search(r"^Activations: (.*?)\n\n", text, flags=re.MULTILINE | re.DOTALL)
    assert listed
    assert re.findall(r"`(\w+)`", listed[1]) == sorted(VARIANTS)
