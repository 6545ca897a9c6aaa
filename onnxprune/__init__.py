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
    from .api import compact as compact
    from .api import error_curves as error_curves
    from .api import load as load
    from .api import mask as mask
    from .api import plan as plan
    from .api import prune as prune
    from .api import repair as repair
    from .api import save as save
    from .api import sensitivity as sensitivity
    from .api import sparsify as sparsify
    from .api import unpack as unpack
    from .api import verify as verify
    from .axes.analysis import Analysis as Analysis
    from .axes.collect import op_rule as op_rule
    from .axes.groups import Group as Group
    from .axes.op import Op as Op
    from .chains import match as match
    from .chains import register_chain as register_chain
    from .compaction.result import CompactResult as CompactResult
    from .criteria import criterion as criterion
    from .criteria import data_criterion as data_criterion
    from .criteria import unit_scores as unit_scores
    from .errors import DataError as DataError
    from .errors import ModelError as ModelError
    from .errors import NotMetError as NotMetError
    from .errors import OnnxPruneError as OnnxPruneError
    from .errors import OptionError as OptionError
    from .errors import PlanError as PlanError
    from .errors import TargetError as TargetError
    from .errors import TooLargeError as TooLargeError
    from .errors import UnknownNameError as UnknownNameError
    from .errors import VerificationError as VerificationError
    from .graph.model import Model as Model
    from .masks import keep_mask as keep_mask
    from .masks import keep_masks as keep_masks
    from .masks import measure as measure
    from .masks import parse_pattern as parse_pattern
    from .masks import pattern as pattern
    from .planfile import Plan as Plan
    from .recover import Recovery as Recovery
    from .sparsity.result import SparsifyResult as SparsifyResult
    from .sparsity.sparsifier import Sparsifier as Sparsifier
    from .sweep.result import Sensitivity as Sensitivity

_HOMES = {
    "api": (
        "PruneResult",
        "analyze",
        "apply",
        "compact",
        "error_curves",
        "load",
        "mask",
        "plan",
        "prune",
        "repair",
        "save",
        "sensitivity",
        "sparsify",
        "unpack",
        "verify",
    ),
    "axes.analysis": ("Analysis",),
    "axes.groups": ("Group",),
    "axes.collect": ("op_rule",),
    "axes.op": ("Op",),
    "chains": ("match", "register_chain"),
    "compaction.result": ("CompactResult",),
    "criteria": ("criterion", "data_criterion", "unit_scores"),
    "errors": (
        "DataError",
        "ModelError",
        "NotMetError",
        "OnnxPruneError",
        "OptionError",
        "PlanError",
        "TargetError",
        "TooLargeError",
        "UnknownNameError",
        "VerificationError",
    ),
    "graph.model": ("Model",),
    "masks": ("keep_mask", "keep_masks", "measure", "parse_pattern", "pattern"),
    "planfile": ("Plan",),
    "recover": ("Recovery",),
    "sparsity.result": ("SparsifyResult",),
    "sparsity.sparsifier": ("Sparsifier",),
    "sweep.result": ("Sensitivity",),
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
