"""Layers import downward only, and importing the package costs nothing."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parent.parent / "onnxprune"
BASE = ("errors", "registry", "planfile", "trade", "watch", "ordered", "_version")
LAYERS = (
    BASE,
    ("masks",),
    ("graph",),
    ("axes",),
    ("rules", "criteria", "chains", "data"),
    ("calibration", "autograd"),
    ("select",),
    ("recover",),
    ("rewrite", "verification"),
    ("search", "distill"),
    ("sparsity", "compaction", "sweep", "report"),
    ("api", "__init__"),
    ("olive",),
    ("cli", "__main__"),
)
LEVEL = {name: k for k, names in enumerate(LAYERS) for name in names}
# (importing module, imported layer): analysis registers the built-in rules when it is first used.
ALLOWED = {("axes/analysis.py", "rules")}


def imports(path: Path, *, types: bool = True) -> set[str]:
    """List the parts of the package that a module imports, at any depth of its code; `types`: for annotations too."""
    here = path.relative_to(PACKAGE).parts
    found: set[str] = set()
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in list(ast.walk(tree)):
        if not types and isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            node.body = []
    for node in ast.walk(tree):
        names: list[str] = []
        if isinstance(node, ast.ImportFrom):
            if node.level:
                base = [*here[: len(here) - node.level], *(node.module or "").split(".")]
            elif (node.module or "").split(".")[0] == "onnxprune":
                base = (node.module or "").split(".")[1:]
            else:
                continue
            base = [b for b in base if b]
            names = [base[0]] if base else [a.name for a in node.names]
        elif isinstance(node, ast.Import):
            names = [a.name.split(".")[1] for a in node.names if a.name.startswith("onnxprune.")]
        found.update(n for n in names if n != "__version__")
    return found


def part_of(path: Path) -> str:
    first = path.relative_to(PACKAGE).parts[0]
    return first.removesuffix(".py")


MODULES = sorted(PACKAGE.rglob("*.py"))


def test_there_are_modules_to_check() -> None:
    assert len(MODULES) > 40
    assert imports(PACKAGE / "rewrite" / "apply.py") >= {"axes", "errors", "graph", "planfile", "_version"}


@pytest.mark.parametrize("path", MODULES, ids=lambda p: p.relative_to(PACKAGE).as_posix())
def test_layers_import_downward(path: Path) -> None:
    own = part_of(path)
    assert own in LEVEL, f"{own} belongs to no layer; add it to LAYERS"
    if own == "__init__":
        return
    name = path.relative_to(PACKAGE).as_posix()
    for other in imports(path) - {own}:
        if (name, other) in ALLOWED:
            continue
        assert other in LEVEL or own == "cli", f"{name} imports {other}, which belongs to no layer"
        if own not in ("cli", "__main__"):
            assert LEVEL[other] <= LEVEL[own], f"{name} imports {other} from a layer above"
            assert own in BASE or LEVEL[other] < LEVEL[own], f"{name} imports {other} beside it"


def test_verification_shares_nothing_with_rewrite() -> None:
    for path in (PACKAGE / "verification").glob("*.py"):
        assert not imports(path) & {"rewrite", "select", "criteria"}, path.name


def test_the_command_line_uses_the_public_interface() -> None:
    import onnxprune

    public = {*onnxprune.__all__, "errors", "planfile", "api", "olive", "cli", "watch", "_version"}
    for path in (PACKAGE / "cli").rglob("*.py"):
        used = imports(path, types=False)
        assert used <= public, f"{path.name} imports {sorted(used - public)}"


def test_importing_the_package_imports_neither_numpy_nor_onnx() -> None:
    code = (
        "import sys, onnxprune; onnxprune.__version__; dir(onnxprune); "
        "print(sorted({'numpy', 'onnx', 'onnxruntime', 'onnx_graphsurgeon', 'rich', 'click'} & set(sys.modules)))"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=PACKAGE.parent, capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == "[]"
