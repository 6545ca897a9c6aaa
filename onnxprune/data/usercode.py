"""Names in the user's own code: `module:attribute` and `file.py:attribute`.

Code runs only because its name was given; nothing is imported on suspicion.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

from ..errors import OnnxPruneError, unknown_name


def load_attribute(reference: str, error: type[OnnxPruneError]) -> Any:
    """Give the object that `file.py:attribute` or `module:attribute` names.

    Raises `error` when there is no such file, module or attribute, or when importing it fails.
    """
    location, _, name = reference.rpartition(":")
    if not location or not name:
        raise error(f"{reference!r}: expected FILE.py:NAME or MODULE:NAME")
    value: Any = _file(Path(location), error) if location.endswith(".py") else _module(location, error)
    for part in name.split("."):
        if not hasattr(value, part):
            public = [n for n in dir(value) if not n.startswith("_")]
            raise error(f"{location}: {unknown_name('attribute', part, public)}")
        value = getattr(value, part)
    return value


def _file(path: Path, error: type[OnnxPruneError]) -> ModuleType:
    if not path.is_file():
        raise error(f"{path}: no such file")
    # One module object per file, whatever its name: two files called data.py must not meet in sys.modules.
    name = f"_onnxprune_user_{hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:16]}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    sys.path.insert(0, str(path.resolve().parent))
    try:
        spec.loader.exec_module(module)
    except BaseException as failure:
        del sys.modules[name]
        if not isinstance(failure, Exception):
            raise
        raise error(f"{path}: importing it failed ({type(failure).__name__}: {failure})") from failure
    finally:
        sys.path.remove(str(path.resolve().parent))
    return module


def _module(name: str, error: type[OnnxPruneError]) -> ModuleType:
    # A console script does not have the working folder on its path, and that is where users keep their module.
    here = str(Path.cwd())
    sys.path.insert(0, here)
    try:
        return importlib.import_module(name)
    except Exception as failure:
        raise error(f"{name}: importing it failed ({type(failure).__name__}: {failure})") from failure
    finally:
        sys.path.remove(here)
