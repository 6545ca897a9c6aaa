"""onnxprune: structured pruning of ONNX models, as graphs, with proof.

    import onnxprune

    model = onnxprune.load("model.onnx")
    plan = onnxprune.plan(model, target={"macs": 0.5})
    pruned = onnxprune.apply(model, plan)
    onnxprune.verify(model, pruned, plan=plan).raise_if_failed()
    onnxprune.save(pruned, "model.pruned.onnx")

Names are imported when first used, so that importing the package costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from ._version import __version__

if TYPE_CHECKING:
    from .api import PruneResult as PruneResult
    from .api import analyze as analyze
    from .api import apply as apply
    from .api import load as load
    from .api import mask as mask
    from .api import plan as plan
    from .api import prune as prune
    from .api import save as save
    from .api import verify as verify
    from .axes.analysis import Analysis as Analysis
    from .axes.analysis import Group as Group
    from .axes.collect import op_rule as op_rule
    from .axes.op import Op as Op
    from .chains import match as match
    from .chains import register_chain as register_chain
    from .criteria import criterion as criterion
    from .criteria import unit_scores as unit_scores
    from .errors import DataError as DataError
    from .errors import ModelError as ModelError
    from .errors import NotMetError as NotMetError
    from .errors import OnnxPruneError as OnnxPruneError
    from .errors import OptionError as OptionError
    from .errors import PlanError as PlanError
    from .errors import TargetError as TargetError
    from .errors import UnknownNameError as UnknownNameError
    from .errors import VerificationError as VerificationError
    from .graph.model import Model as Model
    from .planfile import Plan as Plan

_HOMES = {
    "api": ("PruneResult", "analyze", "apply", "load", "mask", "plan", "prune", "save", "verify"),
    "axes.analysis": ("Analysis", "Group"),
    "axes.collect": ("op_rule",),
    "axes.op": ("Op",),
    "chains": ("match", "register_chain"),
    "criteria": ("criterion", "unit_scores"),
    "errors": (
        "DataError",
        "ModelError",
        "NotMetError",
        "OnnxPruneError",
        "OptionError",
        "PlanError",
        "TargetError",
        "UnknownNameError",
        "VerificationError",
    ),
    "graph.model": ("Model",),
    "planfile": ("Plan",),
}
_HOME = {name: module for module, names in _HOMES.items() for name in names}
_OWN_RULES = ("op_rule",)

__all__ = ["__version__", *sorted(_HOME)]  # noqa: PLE0604  the names are strings of the table above


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'onnxprune' has no attribute {name!r}")
    if name in _OWN_RULES:
        import_module(".rules", __name__)
    value = getattr(import_module(f".{_HOME[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
