"""Other structured pruners at the same MACs, for the columns that `accuracy.py --peers` adds.

onnxsim is the one that prunes ONNX files, by l2 or with samples by its Wanda, and repairs matrix products by ridge
regression. It takes a ratio and no target, so the ratio is found by bisection. Torch-Pruning works on torch modules,
which an ONNX file does not hold; `peer_torch.py` has two of them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import onnx

import onnxprune

ROUNDS = 8
MOST = 0.98
CLOSE = 0.01
Prune = Callable[[onnx.ModelProto, float], onnx.ModelProto]


class Attempt(NamedTuple):
    """A model that a peer made, the part of the MACs it kept, and the ratio it was asked for."""

    model: onnx.ModelProto
    macs: float
    ratio: float


class Peer(NamedTuple):
    """A pruner of a model by a ratio, and its repair of (original, pruned)."""

    prune: Prune
    repair: Callable[[onnx.ModelProto, onnx.ModelProto], onnx.ModelProto] = lambda _, pruned: pruned


def onnxsim_peers(feeds: list[dict[str, Any]]) -> dict[str, Peer]:
    """Name onnxsim's ways: by weights alone, and with everything that it does with samples."""
    import onnxsim

    def wanda(model: onnx.ModelProto, ratio: float) -> onnx.ModelProto:
        return onnxsim.apply_structured_wanda_pruning(model, calibration_data=feeds, sparsity=ratio)

    def ridge(model: onnx.ModelProto, pruned: onnx.ModelProto) -> onnx.ModelProto:
        return onnxsim.apply_pruning_finetune(model, pruned, calibration_data=feeds)

    return {
        "onnxsim": Peer(lambda model, ratio: onnxsim.apply_structured_pruning(model, sparsity=ratio)),
        "onnxsim+": Peer(wanda, ridge),
    }


def simplified(model: onnx.ModelProto) -> onnx.ModelProto:
    """Give what onnxsim works best on: weights as initializers, no shape arithmetic; else the model itself."""
    import onnxsim

    result, checked = onnxsim.simplify(model)
    return result if checked else model


def at_macs(peer: Peer, model: onnx.ModelProto, whole: int, target: float) -> Attempt:
    """Find by bisection the least ratio that leaves at most `target` of `whole` MACs, and repair what it leaves.

    Where the target is out of reach, the most that the peer can do.
    """
    low, high = 0.0, MOST
    best = _attempt(peer, model, whole, MOST)
    for _ in range(ROUNDS if best.macs <= target else 0):
        middle = (low + high) / 2
        trial = _attempt(peer, model, whole, middle)
        if trial.macs <= target:
            best, high = trial, middle
            if trial.macs >= target - CLOSE:
                break
        else:
            low = middle
    return best._replace(model=peer.repair(_copy(model), best.model))


def _attempt(peer: Peer, model: onnx.ModelProto, whole: int, ratio: float) -> Attempt:
    pruned = peer.prune(_copy(model), ratio)
    # onnxsim leaves the sizes of before in the declarations of inner values.
    del pruned.graph.value_info[:]
    return Attempt(pruned, onnxprune.analyze(pruned, probe=False).cost.macs / max(1, whole), ratio)


def _copy(model: onnx.ModelProto) -> onnx.ModelProto:
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    return copy
