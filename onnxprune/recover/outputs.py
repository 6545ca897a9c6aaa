"""How far a model with other weights is from the original, seen at its outputs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import onnx

from ..calibration.probe import Probe
from ..calibration.session import Session
from ..data import Feed
from .products import Array

SQUASHES = frozenset({"Softmax", "LogSoftmax", "Sigmoid", "HardSigmoid", "Tanh"})
PASSES = frozenset({"Identity", "Reshape", "Squeeze", "Unsqueeze", "Transpose", "Flatten"})


@dataclass(frozen=True)
class Head:
    """An output of the model as it is compared: the tensor `name`, and what squashes it, "" where nothing does."""

    name: str
    squash: str = ""
    axis: int = -1


class Outputs:
    """The outputs of the original on some feeds, to be compared with those of other weights.

    The distance is E[(y' - y)^2] over the variance of y, averaged over the outputs of floats: 0 for the same outputs,
    1 for the best constant. Where an output is a Softmax or a Sigmoid, y is what it is made from: probabilities near 0
    and 1 hide how much has changed.
    """

    def __init__(self, probe: Probe, feeds: list[Feed], threads: int | None) -> None:
        self._probe = probe
        self._feeds = feeds
        self._threads = threads
        self._names = [head.name for head in heads(probe)]
        runs = self._run({}, probe)
        self._kept = [k for k in range(len(self._names)) if runs[0][k].dtype.kind == "f"]
        self._reference = [[run[k].astype(np.float64) for k in self._kept] for run in runs]
        with np.errstate(over="ignore", invalid="ignore"):
            self._energy = [spread([run[j] for run in self._reference]) for j in range(len(self._kept))]

    def _run(self, weights: Mapping[str, Array], probe: Probe) -> list[list[Array]]:
        built, outputs = probe.build(self._names, weights)
        session = Session(built, probe.model.label, self._threads)
        return list(session.each([outputs[n] for n in self._names], self._feeds))

    @property
    def variances(self) -> list[float]:
        """Variance of every output, 0 for those that are no floats."""
        found = dict(zip(self._kept, self._energy, strict=True))
        return [found.get(k, 0.0) for k in range(len(self._names))]

    def distance(self, weights: Mapping[str, Array], of: Probe | None = None) -> float:
        """Give the distance of the model with other `weights`; infinite where it gives no finite number.

        `of` is another model with the same outputs, such as one that was cut.
        """
        if not self._kept:
            return 0.0
        runs = self._run(weights, of or self._probe)
        total = 0.0
        with np.errstate(over="ignore", invalid="ignore"):
            for j, k in enumerate(self._kept):
                wrong = [np.square(run[k] - ref[j]) for run, ref in zip(runs, self._reference, strict=True)]
                n = sum(w.size for w in wrong)
                error = sum(float(w.sum()) for w in wrong) / max(1, n)
                total += error / max(self._energy[j], float(np.finfo(np.float32).tiny))
        return total / len(self._kept) if np.isfinite(total) else np.inf


def spread(arrays: list[Array]) -> float:
    """Give the mean square about the mean of all samples, 0 of none; every place of a fixed shape has its own mean."""
    if not any(a.size for a in arrays):
        return 0.0
    if len({a.shape for a in arrays}) == 1 and len(arrays) > 1:
        stack = np.stack(arrays)
        rows = stack.reshape(-1, *stack.shape[2:]) if stack.ndim > 2 else stack
        return float(((rows - rows.mean(axis=0)) ** 2).mean())
    flat = np.concatenate([a.ravel() for a in arrays])
    return float(flat.var())


def heads(probe: Probe) -> list[Head]:
    """List the outputs of a model, each before the function that squashes it."""
    maker = {out: node for node in probe.flat.nodes for out in node.output}
    return [_head(o.name, maker, probe) for o in probe.model.skeleton.graph.output]


def _head(name: str, maker: Mapping[str, onnx.NodeProto], probe: Probe) -> Head:
    at = name
    while (node := maker.get(at)) is not None and node.input:
        if node.op_type in SQUASHES:
            inner = node.input[0]
            if probe.why_hidden(inner) or inner not in maker:
                break
            axis = next((a.i for a in node.attribute if a.name == "axis"), -1)
            return Head(inner, node.op_type, axis)
        if node.op_type not in PASSES:
            break
        at = node.input[0]
    return Head(name)
