"""Fold: put what removed units added into what stays, by small edits of a model that is cut already.

A constant goes into the bias behind it, created where there is none; columns go to the unit that takes them over.
Sums are made in float64.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import numpy_helper

from ..axes.analysis import Analysis, Keep
from ..errors import RuleDefect
from ..graph.model import Model
from ..rewrite.edited import FIRST_IR_WITH_PRIVATE_INITIALIZERS
from .decide import Decision
from .facts import Facts, Step
from .known import Array
from .readers import BIAS_SLOT, CLOSED, Floats, Reader, Status, columns
from .transfer_state import GATES

# The indices that take over a column, with their parts, and what a bias adds.
Targets = tuple[tuple[tuple[int, float], ...], float]


@dataclass(frozen=True)
class Correction:
    """What one reader needs: `shift` is added to its sums, (kept O,) or None; `added` to columns of what stays.

    `added` maps a kept index of the data to (kept O, taps). `places` (1, kept O, ...) is added place
    by place.
    """

    reader: Reader
    shift: Floats | None
    added: dict[int, Floats]
    places: Array | None = None


def fold(smaller: Model, corrections: Sequence[Correction]) -> Model:
    """Give the cut model with corrections; the model given is not touched."""
    if not corrections:
        return smaller
    edits = _Edits(smaller)
    for correction in corrections:
        node = edits.node(correction.reader)
        if correction.added:
            edits.add_columns(node, correction)
        if correction.shift is not None:
            edits.add_bias(node, correction.reader, correction.shift)
        if correction.places is not None:
            edits.add_places(node, correction.places)
    return Model(edits.proto, smaller.path, prefers_external_data=smaller.prefers_external_data)


def corrections(facts: Facts, decision: Decision) -> list[Correction]:
    """Work out what a decision needs at every reader."""
    analysis, found = facts.analysis, []
    for k, reader in enumerate(decision.readers):
        gone = ~analysis.keep(reader.axis.id, decision.alive)
        if not gone.any():
            continue
        level = np.where(reader.status == int(Status.CONSTANT), reader.level, 0.0)
        given: dict[int, Targets] = {}
        for t in decision.transfers:
            if t.reader == k:
                for i, targets in t.moves.items():
                    given.setdefault(i, (targets, t.rest.get(i, 0.0)))
        ends = _ends(analysis.keep(reader.axis.id, decision.alive), reader, given)
        for i, (_, rest) in ends.items():
            level[i] = rest
        shift = shift_of(analysis, decision.alive, reader, np.flatnonzero(gone), level)
        added = _added(analysis, decision.alive, reader, ends)
        mapped = sorted({i for t in decision.transfers if t.reader == k for i in t.mapped if gone[i]})
        places = _places(facts, decision.alive, reader, mapped) if mapped else None
        if shift is not None or added or places is not None:
            found.append(Correction(reader, shift, added, places))
    return found


def shift_of(analysis: Analysis, alive: Keep, reader: Reader, index: Array, level: Floats) -> Floats | None:
    """Sum the columns of indices times their level, for the sums that stay; None where that is zero."""
    index = index[level[index] != 0]
    if not len(index):
        return None
    total = (level[index] @ reader.sums(index))[reader.kept_sums(analysis, alive)]
    return total if total.any() else None


def _places(facts: Facts, alive: Keep, reader: Reader, index: Sequence[int]) -> Array:
    """Give what indices of a convolution's input add up to, place by place: (1, kept O, ...)."""
    step, known = Step(facts, reader.op, facts.proto(reader.op)), facts.known(reader.data.name)
    assert known is not None
    x = np.zeros((1, *reader.data.shape[1:]), dtype=reader.weight.dtype)
    value = known.stretched((known.shape[0], *reader.data.shape[1:])).value
    x[:, list(index)] = value[:1, list(index)]
    total = step.run([x, step.constant(1)])
    if total is None:
        raise RuleDefect(f"onnxruntime does not run {facts.analysis.collection.node_label(reader.op.index)} by itself")
    return np.asarray(total[:, reader.kept_sums(facts.analysis, alive)])


def _ends(stays: Keep, reader: Reader, given: Mapping[int, Targets]) -> dict[int, Targets]:
    """Find where columns end that move: a target may move on itself, and one that is gone is read by nothing."""
    ends: dict[int, Targets] = {}

    def end(i: int) -> Targets:
        if stays[i]:
            return ((i, 1.0),), 0.0
        if i not in ends:
            targets, rest = given.get(i, ((), 0.0))
            total: dict[int, float] = {}
            for j, part in targets:
                further, more = end(j)
                rest += part * more
                for k, ratio in further:
                    total[k] = total.get(k, 0.0) + part * ratio
            ends[i] = tuple(total.items()), rest
        return ends[i]

    return {i: end(i) for i in given if not stays[i] and reader.status[i] >= int(Status.SHAPED)}


def _added(analysis: Analysis, alive: Keep, reader: Reader, ends: Mapping[int, Targets]) -> dict[int, Floats]:
    """Add up the columns that move to every index that stays."""
    kept = reader.kept_sums(analysis, alive)
    rank = np.cumsum(analysis.keep(reader.axis.id, alive)) - 1
    added: dict[int, Floats] = {}
    for i, (targets, _) in ends.items():
        column = reader.weight[i][kept].astype(np.float64)
        for j, ratio in targets:
            at = int(rank[j])
            added[at] = added.get(at, 0.0) + ratio * column
    return added


class _Edits:
    """A copy of a proto, with who reads what in its graphs: the main one, and the bodies of If, Loop and Scan."""

    def __init__(self, model: Model) -> None:
        self.model = model
        self.proto = onnx.ModelProto()
        self.proto.CopyFrom(model.proto)
        self._taken = {v.name for v in self.proto.graph.input}
        self._index()

    def _index(self) -> None:
        self._maker: dict[str, tuple[onnx.GraphProto, onnx.NodeProto]] = {}
        self._tensors: dict[str, onnx.TensorProto] = {}
        self._readers: dict[str, list[onnx.NodeProto]] = {}
        self._outputs: set[str] = set()
        for graph in _graphs(self.proto.graph):
            self._tensors.update((t.name, t) for t in graph.initializer)
            self._outputs.update(v.name for v in graph.output)
            for node in graph.node:
                self._maker.update((name, (graph, node)) for name in node.output if name)
                for name in node.input:
                    self._readers.setdefault(name, []).append(node)
        self._taken |= set(self._tensors) | set(self._maker)

    def _is_read_once(self, name: str) -> bool:
        return len(self._readers.get(name, ())) == 1 and name not in self._outputs

    def node(self, reader: Reader) -> onnx.NodeProto:
        """Find the node of a reader by what it makes."""
        made = next(t.name for t in reader.op.node.outputs if t.name)
        if made not in self._maker:
            raise RuleDefect(f"the node that makes {made!r} is not in the cut model")
        return self._maker[made][1]

    def add_columns(self, node: onnx.NodeProto, correction: Correction) -> None:
        """Add to columns of a reader's weight."""
        slot = correction.reader.weight_slot
        assert slot is not None
        array = self._array(node.input[slot]).copy()
        view = columns(correction.reader.op, slot, array)
        for index, added in correction.added.items():
            view[index] = (view[index].astype(np.float64) + added).astype(array.dtype)
        self._set(node, slot, array)

    def add_bias(self, node: onnx.NodeProto, reader: Reader, shift: Floats) -> None:
        """Add to a reader's sums."""
        op = reader.op.node.op
        slot = BIAS_SLOT.get(op)
        given = slot is not None and slot < len(node.input) and node.input[slot] != ""
        if slot is not None and given and self._holds(node.input[slot]):
            self._set(node, slot, self._raised(op, node, self._array(node.input[slot]), shift))
        elif self._add_behind(node, reader, shift):
            return
        elif slot is None or given:
            self._insert_add(node, reader, shift)
        else:
            self._set(node, slot, self._raised(op, node, _no_bias(reader, len(shift)), shift))

    def _raised(self, op: str, node: onnx.NodeProto, bias: Array, shift: Floats) -> Array:
        """Give a bias with a shift added to it."""
        total = bias.astype(np.float64)
        if op in GATES:
            part = bias.shape[1] // 2
            total[:, :part] += shift.reshape(bias.shape[0], part)
        else:
            beta = next((a.f for a in node.attribute if a.name == "beta"), 1.0) if op in ("Gemm", "FusedGemm") else 1.0
            total = total + shift / beta
        return total.astype(bias.dtype)

    def _add_behind(self, node: onnx.NodeProto, reader: Reader, shift: Floats) -> bool:
        """Put a shift into the constant that the next node adds or subtracts anyway; say whether there is one."""
        made = node.output[0]
        if reader.op.node.op in CLOSED or not reader.outputs or not self._is_read_once(made):
            return False
        following, y = self._readers[made][0], reader.op.y()
        at = next(k for k, a in enumerate(y.axes) if a.id == reader.outputs[0].id)
        if following.op_type == "BatchNormalization" and following.input[0] == made and at == 1:
            if not self._holds(following.input[3]):
                return False
            mean = self._array(following.input[3])
            self._set(following, 3, (mean.astype(np.float64) - shift).astype(mean.dtype))
            return True
        if following.op_type != "Add":
            return False
        owner, slot = self._past_reshapes(following, 1 - list(following.input).index(made))
        if not self._holds(owner.input[slot]):
            return False
        behind = y.ndim - 1 - at
        bias = self._array(owner.input[slot])
        if owner is following and bias.ndim > behind and bias.shape[bias.ndim - 1 - behind] == len(shift):
            total = bias.astype(np.float64) + shift.reshape((-1,) + (1,) * behind)
        elif owner is not following and bias.size == len(shift):
            total = bias.astype(np.float64) + shift.reshape(bias.shape)
        else:
            return False
        self._set(owner, slot, total.astype(bias.dtype))
        return True

    def _past_reshapes(self, node: onnx.NodeProto, slot: int) -> tuple[onnx.NodeProto, int]:
        """Follow an input back through reshapes that nobody else reads; give who reads the source, and where."""
        while node.input[slot] in self._maker and self._is_read_once(node.input[slot]):
            maker = self._maker[node.input[slot]][1]
            if maker.op_type not in ("Reshape", "Unsqueeze", "Identity"):
                break
            node, slot = maker, 0
        return node, slot

    def add_places(self, node: onnx.NodeProto, places: Array) -> None:
        """Add a map to a convolution's sums."""
        self._insert(node, places)

    def _insert_add(self, node: onnx.NodeProto, reader: Reader, shift: Floats) -> None:
        y = reader.op.y()
        array = shift.astype(reader.weight.dtype)
        if reader.outputs:
            at = next(k for k, a in enumerate(y.axes) if a.id == reader.outputs[0].id)
            array = array.reshape((-1,) + (1,) * (y.ndim - 1 - at))
        else:
            array = array.reshape(())
        self._insert(node, array)

    def _insert(self, node: onnx.NodeProto, array: Array) -> None:
        made = node.output[0]
        inner, bias = self._fresh(f"{made}.onnxprune.sum"), self._fresh(f"{made}.onnxprune.bias")
        graph = self._maker[made][0]
        index = next(k for k, n in enumerate(graph.node) if made in n.output)
        self._append(bias, array)
        node.output[0] = inner
        add = onnx.helper.make_node("Add", [inner, bias], [made], name=self._fresh(f"{made}.onnxprune.Add"))
        graph.node.insert(index + 1, add)
        self._index()
        # Corrections go on finding the reader by the name it had.
        self._maker[made] = graph, graph.node[index]

    # --- tensors ---

    def _tensor(self, name: str) -> onnx.TensorProto | None:
        """Give an initializer, or what a Constant node holds."""
        _, node = self._maker.get(name, (None, None))
        if name in self._tensors or node is None or node.op_type != "Constant":
            return self._tensors.get(name)
        return next((a.t for a in node.attribute if a.name == "value"), None)

    def _holds(self, name: str) -> bool:
        return self._tensor(name) is not None

    def _array(self, name: str) -> Array:
        tensor = self._tensor(name)
        if tensor is None:
            raise RuleDefect(f"{name!r} is no constant of the cut model")
        base = str(self.model.path.parent) if self.model.path is not None else ""
        return np.asarray(numpy_helper.to_array(tensor, base_dir=base))

    def _set(self, node: onnx.NodeProto, slot: int, array: Array) -> None:
        """Write a tensor for one reader: in place where nobody else reads it, under a name of its own otherwise."""
        name = node.input[slot] if slot < len(node.input) else ""
        tensor = self._tensor(name)
        if tensor is not None and self._is_read_once(name):
            new = numpy_helper.from_array(np.ascontiguousarray(array), tensor.name)
            new.doc_string = tensor.doc_string
            new.metadata_props.extend(tensor.metadata_props)
            tensor.CopyFrom(new)
            return
        while len(node.input) <= slot:
            node.input.append("")
        source = name.split(".onnxprune.")[0]
        fresh = self._fresh(f"{source}.onnxprune.1" if name else f"{node.output[0]}.onnxprune.bias")
        self._append(fresh, array)
        node.input[slot] = fresh
        self._index()

    def _append(self, name: str, array: Array) -> None:
        graph = self.proto.graph
        graph.initializer.append(numpy_helper.from_array(np.ascontiguousarray(array), name))
        if self.proto.ir_version < FIRST_IR_WITH_PRIVATE_INITIALIZERS:
            graph.input.append(
                onnx.helper.make_tensor_value_info(name, graph.initializer[-1].data_type, list(array.shape))
            )

    def _fresh(self, name: str) -> str:
        k, unique = 2, name
        while unique in self._taken:
            unique, k = f"{name}.{k}", k + 1
        self._taken.add(unique)
        return unique


def _no_bias(reader: Reader, n: int) -> Array:
    if reader.op.node.op in GATES:
        directions = reader.op.x(1).shape[0]
        return np.zeros((directions, 2 * n // directions), dtype=reader.weight.dtype)
    return np.zeros(n, dtype=reader.weight.dtype)


def _graphs(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.GRAPH:
                yield from _graphs(attribute.g)
