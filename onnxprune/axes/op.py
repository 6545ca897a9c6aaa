"""What an operator rule sees and says: one node, its values and their axes."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from ..errors import RuleDefect
from .relations import (
    Axis,
    Codes,
    Contract,
    DefaultBinding,
    Freeze,
    Index,
    IndexBinding,
    Mix,
    Regroup,
    Select,
    SizeBinding,
    Tie,
)

if TYPE_CHECKING:
    import onnx_graphsurgeon as gs

    from .collect import Collection

Role = Literal["output", "input", "parameter"]
MOVES_CODES = frozenset(("Gather", "Identity", "Transpose", "Reshape", "Squeeze", "Unsqueeze", "Flatten"))


class Value:
    """A tensor of the graph, indexable into its axes: `x[1]`, `x[-1]`, `x.axes`.

    `shape` has the sizes of this analysis. `constant` says that it does not depend on the graph inputs. A small
    initializer read by several nodes is a value of its own for every use, so that its uses may come to differ. An
    `index_list` holds positions along another axis: it is renumbered, not cut.
    """

    __slots__ = ("axes", "constant", "index_list", "initializer", "name", "shape", "use")

    def __init__(self, name: str, shape: tuple[int, ...], first: int, initializer: bool, constant: bool) -> None:
        self.name = name
        self.shape = shape
        self.axes = tuple(Axis(first + k, d) for k, d in enumerate(shape))
        self.initializer = initializer
        self.constant = constant
        self.use: tuple[int, int] | None = None
        self.index_list = False

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return len(self.shape)

    def __getitem__(self, k: int) -> Axis:
        return self.axes[k]

    def __repr__(self) -> str:
        return f"{self.name}{list(self.shape)}"


class Op:
    """One node as its rule sees it.

    `inputs` and `outputs` are values, None where a slot is empty. Every axis longer than one that a rule leaves
    unmentioned is frozen, with `otherwise` as the reason.
    """

    def __init__(
        self,
        collection: Collection,
        index: int,
        node: gs.Node,
        inputs: Sequence[Value | None],
        outputs: Sequence[Value | None],
    ) -> None:
        self._collection = collection
        self.index = index
        self.node = node
        self.inputs = inputs
        self.outputs = outputs
        self.otherwise = f"{node.op} works across it"
        self.mentioned: set[int] = set()

    # --- reading ---

    def attr(self, name: str, default: Any = None) -> Any:
        """Give an attribute of the node, or `default`."""
        value = self.node.attrs.get(name, default)
        return default if value is None else value

    @property
    def opset(self) -> int:
        """Version of the standard operator set that the model imports."""
        return self._collection.opset

    def given(self, slot: int) -> bool:
        """Say whether the optional input `slot` is there."""
        return slot < len(self.inputs) and self.inputs[slot] is not None

    def x(self, slot: int = 0) -> Value:
        """Give input `slot`, which must be there."""
        value = self.inputs[slot] if slot < len(self.inputs) else None
        if value is None:
            raise RuleDefect(f"{self.node.op} {self.node.name!r}: input {slot} is missing")
        return value

    def y(self, slot: int = 0) -> Value:
        """Give output `slot`, which must be there."""
        value = self.outputs[slot] if slot < len(self.outputs) else None
        if value is None:
            raise RuleDefect(f"{self.node.op} {self.node.name!r}: output {slot} is missing")
        return value

    def ints(self, slot: int) -> tuple[int, ...] | None:
        """Give the integers of a small input at the sizes of this analysis, or None when they are not known."""
        if not self.given(slot):
            return None
        known = self._collection.shapes.integers.get(self.x(slot).name)
        return known.values if known is not None else None

    def fixed_ints(self, slot: int) -> tuple[int, ...] | None:
        """Give the integers of a small input that is a constant of the graph, or None."""
        if not self.given(slot):
            return None
        known = self._collection.shapes.integers.get(self.x(slot).name)
        return known.values if known is not None and not known.depends else None

    def numbers(self, slot: int) -> tuple[float, ...]:
        """Give the numbers of a small constant input with their fractions; none where they are not known."""
        known = self._collection.shapes.integers.get(self.x(slot).name)
        if known is None or any(item.dims() for item in known.items):
            return ()
        return tuple(float(item.value) for item in known.items)

    def varies(self, slot: int, item: int) -> bool:
        """Say whether an integer of a size-carrying input depends on the size of any value."""
        known = self._collection.shapes.integers.get(self.x(slot).name)
        return known is None or known.items[item].op != "lit"

    def hold_sizes(self, slot: int, item: int) -> None:
        """Freeze every axis whose size an integer input's element is computed from."""
        if self.given(slot):
            self._collection.freeze_dims(self.x(slot).name, f"{self.node.op} reads its size", self.index, item)

    def constant_integers(self, slot: int) -> Index | None:
        """Give an integer input of any size as an array when it is a constant of the graph, or None."""
        value = self.x(slot)
        known = self._collection.shapes.integers.get(value.name)
        if known is not None:
            return None if known.depends else np.array(known.values, dtype=np.int64).reshape(known.shape)
        if not value.initializer:
            return None
        return self._collection.model.array(value.name).astype(np.int64)

    def is_dynamic(self, value: Value, axis: int) -> bool:
        """Say whether an axis of a value may differ from run to run."""
        return self._collection.shapes.is_dynamic(value.name, axis % max(value.ndim, 1))

    def axes_argument(self, slot: int, name: str = "axes") -> tuple[int, ...] | None:
        """Give axes that are an attribute in older opsets and an input in newer ones; None when absent.

        Axes that are computed make the rule give up: the node is frozen.
        """
        if name in self.node.attrs:
            return tuple(int(a) for a in self.node.attrs[name])
        if not self.given(slot):
            return None
        found = self.fixed_ints(slot)
        if found is None:
            raise Unruly(f"the {name} of {self.node.op} are computed")
        return found

    # --- relations ---

    def tie(self, a: Axis, b: Axis) -> None:
        """State that `a` and `b` have the same size and lose the same indices."""
        self._mention(a, b)
        if a.size != b.size:
            raise RuleDefect(f"{self.node.op} {self.node.name!r}: tied axes of sizes {a.size} and {b.size}")
        if a.size > 1 and a.id != b.id:
            self._collection.add(Tie(a.id, b.id, self.index))

    def ties(self, left: Iterable[Axis], right: Iterable[Axis]) -> None:
        """Tie two lists of axes, one to one."""
        for a, b in zip(left, right, strict=True):
            self.tie(a, b)

    def contract(self, a: Axis, b: Axis | None = None) -> None:
        """State that `a` and `b` run together and are summed away (`b` None: a plain sum along `a`)."""
        self._mention(a, *([b] if b is not None else []))
        if b is not None and a.size != b.size:
            raise RuleDefect(f"{self.node.op} {self.node.name!r}: contracted axes of sizes {a.size} and {b.size}")
        if a.size > 1:
            self._collection.add(Contract(a.id, b.id if b is not None else None, self.index))

    def regroup(self, left: Sequence[Axis], right: Sequence[Axis]) -> None:
        """State that both lists of axes enumerate the same elements in row-major order."""
        self._mention(*left, *right)
        left, right = [a for a in left if a.size > 1], [a for a in right if a.size > 1]
        if int(np.prod([a.size for a in left], dtype=object)) != int(np.prod([a.size for a in right], dtype=object)):
            sizes = f"{[a.size for a in left]} and {[a.size for a in right]}"
            raise RuleDefect(f"{self.node.op} {self.node.name!r}: regrouped axes of sizes {sizes}")
        if len(left) == len(right) == 1:
            self.tie(left[0], right[0])
        elif left:
            self._collection.add(Regroup(tuple(a.id for a in left), tuple(a.id for a in right), self.index))

    def select(self, source: Axis, index: Index | Sequence[int] | range, target: Axis) -> None:
        """State that `target[k]` is `source[index[k]]`."""
        self._mention(source, target)
        where = np.asarray(index, dtype=np.int64)
        if where.shape != (target.size,) or (where.size and (where.min() < 0 or where.max() >= source.size)):
            raise RuleDefect(f"{self.node.op} {self.node.name!r}: a selection of {where.shape} from {source.size}")
        if source.size == target.size and bool((where == np.arange(source.size)).all()):
            self.tie(source, target)
        elif target.size == 1:
            self._collection.add(Freeze(source.id, f"{self.node.op} takes a single index of it", self.index, where))
        else:
            self._collection.add(Select(source.id, where, target.id, self.index))

    def mix(self, axis: Axis, why: str) -> None:
        """State that a statistic is taken over `axis`: removal is approximate."""
        self._mention(axis)
        if axis.size > 1:
            self._collection.add(Mix(axis.id, why, self.index))

    def freeze(self, axis: Axis, why: str) -> None:
        """State that nothing on `axis` may go."""
        self._mention(axis)
        if axis.size > 1:
            self._collection.add(Freeze(axis.id, why, self.index))

    def at_least(self, axis: Axis, count: int) -> None:
        """State that `count` indices of `axis` must stay, whichever they are."""
        self._mention(axis)
        if axis.size > 1:
            self._collection.least.append((axis.id, count))

    def positions(self, value: Value, axis: Axis) -> None:
        """State that `value` holds positions along `axis`: whoever reads it must follow that axis, or freezes it."""
        self._mention(axis)
        self._collection.positions[value.name] = axis

    def follow_positions(self, slot: int, axis: Axis) -> bool:
        """Tie `axis`, along which input `slot` says positions, to the axis these are of; False where that is not known.

        The positions then follow what is removed, since they are computed from what stays.
        """
        source = self._collection.positions.get(self.x(slot).name)
        if source is None or source.size != axis.size:
            return False
        self._collection.followed.add((self.index, slot))
        self.tie(source, axis)
        return True

    def free(self, *axes: Axis) -> None:
        """State that the node lets each of `axes` shrink on its own."""
        self._mention(*axes)

    def local(self, *sizes: int) -> list[Axis]:
        """Make axes that belong to no value: names for the factors of an axis."""
        axes = self._collection.new_axes(sizes)
        self._mention(*axes)
        return axes

    # --- sizes, roles, zeros, cost ---

    def size(
        self, where: str | int, axis: Axis, item: int | None = None, upto: int | None = None, since: int = 0
    ) -> None:
        """Bind an integer of the node to the number of kept indices of `axis`, from `since` up to `upto`."""
        self._collection.bind(SizeBinding(self.index, where, item, axis.id, upto, since))

    def indices(self, slot: int, source: Axis, target: Axis) -> None:
        """Bind the constant index list in input `slot`: one index into `source` for every index of `target`."""
        self.x(slot).index_list = True
        self._collection.bind(IndexBinding(self.index, slot, source.id, target.id))

    def default(self, name: str, value: float, axis: Axis) -> None:
        """State that the attribute `name`, left out, means `value`, and would mean another with `axis` shorter."""
        self._collection.bind(DefaultBinding(self.index, name, axis.id, value))

    def plain_integers(self, slot: int) -> None:
        """State that input `slot` is a list of sizes, axes or positions: it keeps its length."""
        for axis in self.x(slot).axes:
            self.freeze(axis, f"a list of integers that {self.node.op} reads")

    def reads_sizes(self, slot: int) -> None:
        """State that input `slot` carries sizes that the node's bindings keep right."""
        self._collection.size_slots.add((self.index, slot))

    def role(self, axis: Axis, role: Role) -> None:
        """State what an axis of a weight is for: rows that produce, columns that consume, or a parameter."""
        self._collection.roles.setdefault(axis.id, role)

    def hint(self, axis: Axis, kind: str) -> None:
        """State what people call the indices of `axis`; see `naming.KINDS`."""
        self._collection.hints.setdefault(axis.id, []).append((kind, self.index))

    def zeros(self, mode: Literal["all", "any", "always"], *slots: int) -> None:
        """State when an output index is zero: when `all` of the inputs `slots` are, when `any` of them is, or always.

        Codes of a quantized tensor are zero where they are at its zero point.
        """
        self._collection.zero_modes[self.index] = (mode, slots)

    def codes(
        self,
        slot: int,
        scale: int | None,
        zero_point: int | None,
        spread: Sequence[int] | None = None,
        bits: int = 8,
        default: int = 0,
    ) -> None:
        """State that input `slot` holds codes of a quantized weight: (code - zero point) * scale; see `Codes`."""
        tensor, moved = self.node.inputs[slot], False
        while tensor.inputs and tensor.inputs[0].op in MOVES_CODES:
            tensor, moved = tensor.inputs[0].inputs[0], True
        names = [self.x(s).name if s is not None and self.given(s) else "" for s in (scale, zero_point)]
        if moved and any(
            math.prod(self.x(s).shape) > 1 for s in (scale, zero_point) if s is not None and self.given(s)
        ):
            return
        block = int(self.attr("block_size", 0))
        codes = Codes(names[0], names[1], None if spread is None else tuple(spread), bits, default, block)
        self._collection.codes.setdefault(tensor.name, codes)

    def macs(self, *axes: Axis) -> None:
        """State the multiply-accumulates of the node: the product of the sizes of `axes`."""
        self._collection.macs.append((self.index, tuple(a.id for a in axes)))

    # --- shapes of statements ---

    def broadcast(self, slots: Sequence[int] | None = None, output: int = 0) -> None:
        """Tie inputs to an output by the broadcasting rule: aligned right, an axis of one stretches."""
        y = self.y(output)
        for slot in range(len(self.inputs)) if slots is None else slots:
            value = self.inputs[slot] if slot < len(self.inputs) else None
            if value is None:
                continue
            for a, b in zip(reversed(value.axes), reversed(y.axes), strict=False):
                if a.size == b.size:
                    self.tie(a, b)
                elif a.size != 1:
                    raise RuleDefect(f"{self.node.op} {self.node.name!r}: {value} does not broadcast to {y}")

    def parameter(self, slot: int, axis: Axis) -> None:
        """Tie a vector input (or a lone number) to an axis, as a parameter along it."""
        if not self.given(slot):
            return
        value = self.x(slot)
        for a in value.axes:
            if a.size == axis.size and a.size > 1:
                self.tie(a, axis)
                self.role(a, "parameter")

    def _mention(self, *axes: Axis) -> None:
        self.mentioned.update(a.id for a in axes)


class Unruly(Exception):  # noqa: N818  a rule's answer, not an error of the caller
    """Raised by a rule that cannot describe its node; everything the node touches is frozen with this reason."""
