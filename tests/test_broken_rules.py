"""Deliberately broken rules, one per relation and one that forgets a size: the property checks catch every one.

A check that no wrong rule can fail proves nothing. Each case replaces one rule by a wrong copy of itself and must make
some check fail on some of the first random graphs; with the right rule the same checks pass on the same graphs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import pytest

import onnxprune.rules  # noqa: F401  registers the rules that are replaced
from onnxprune.axes.collect import Rule, op_rule, op_rules
from onnxprune.axes.op import Op
from onnxprune.axes.relations import Axis
from tests import test_properties as properties
from tests.random_graphs import build

N_SEEDS = 8


@contextmanager
def replaced(rule: Rule, *op_types: str) -> Iterator[None]:
    before = {t: op_rules[t] for t in op_types}
    op_rule(*op_types, replace=True)(rule)
    try:
        yield
    finally:
        for name, right in before.items():
            op_rule(name, replace=True)(right)


def silenced(op_type: str, *methods: str) -> Rule:
    """Run the right rule, with some of its statements lost: the axes count as mentioned, and nothing is said."""
    right = op_rules[op_type]

    def rule(op: Op) -> None:
        for method in methods:
            setattr(op, method, lambda *a, **_: op.free(*axes_in(a)))
        right(op)

    return rule


def axes_in(arguments: Iterable[object]) -> Iterator[Axis]:
    for a in arguments:
        if isinstance(a, Axis):
            yield a
        elif isinstance(a, (list, tuple)):
            yield from axes_in(a)


def window_unfrozen(op: Op) -> None:
    """Freeze: the axes a convolution's window moves over may shrink, each on its own."""
    RIGHT["Conv"](op)
    op.free(*op.x(0).axes, *op.x(1).axes, *op.y().axes)


def additive_untied(op: Op) -> None:
    """Tie: the second operand is free of the output."""
    op.broadcast(slots=[0])
    op.free(*op.x(1).axes)
    op.zeros("all", 0)


def conv_transpose_regrouped(op: Op) -> None:
    """Regroup: the output channels of a grouped ConvTranspose are taken for (o g) instead of (g o)."""
    x, w, y = op.x(0), op.x(1), op.y()
    g = int(op.attr("group", 1))
    op.otherwise = "a window moves over it"
    op.tie(x[0], y[0])
    op.contract(x[1], w[0])
    op.role(w[0], "input")
    op.role(w[1], "output")
    group, i, o = op.local(g, w.shape[0] // g, w.shape[1])
    op.regroup([w[0]], [group, i])
    op.regroup([y[1]], [o, group])
    op.tie(o, w[1])
    op.size("group", group)
    op.parameter(2, y[1])
    op.zeros("all", 1, *([2] if op.given(2) else []))


def depth_to_space_swapped(op: Op) -> None:
    """Regroup: DCR and CRD are mistaken for each other."""
    op.node.attrs["mode"] = "CRD" if op.attr("mode", "DCR") == "DCR" else "DCR"
    RIGHT["DepthToSpace"](op)


def gather_reversed(op: Op) -> None:
    """Select: constant indices are taken in reverse."""
    right_select = op.select
    op.select = lambda source, index, target: right_select(source, index[::-1], target)  # type: ignore[method-assign]
    RIGHT["Gather"](op)


def concat_misplaced(op: Op) -> None:
    """Select: the inputs of a Concat are counted from its end."""
    y, at = op.y(), int(op.attr("axis")) % op.y().ndim
    end = y.shape[at]
    for k in range(len(op.inputs)):
        value = op.x(k)
        for j, axis in enumerate(value.axes):
            if j != at:
                op.tie(axis, y[j])
        op.select(y[at], range(end - value.shape[at], end), value[at])
        end -= value.shape[at]
    op.zeros("all", *range(len(op.inputs)))


def table_unfrozen(op: Op) -> None:
    """Freeze: the rows of an embedding table may go."""
    if op.x(0).constant and not op.x(1).constant:
        op.free(*op.x(0).axes, *op.x(1).axes)
        op.tie(op.x(0)[1], op.y()[-1])
        op.ties(op.x(1).axes, op.y().axes[:-1])
    else:
        RIGHT["Gather"](op)


RIGHT = {name: op_rules[name] for name in op_rules}


@dataclass(frozen=True)
class Case:
    relation: str
    op_types: tuple[str, ...]
    rule: Callable[[], Rule]
    blocks: tuple[str, ...]


CASES = {
    "tie of an addition": Case("Tie", ("Add", "Sub"), lambda: additive_untied, ("image_input", "residual")),
    "tie of a bias": Case("Tie", ("Conv",), lambda: silenced("Conv", "parameter"), ("image_input", "conv")),
    "contract of a convolution": Case(
        "Contract", ("Conv",), lambda: silenced("Conv", "contract"), ("image_input", "conv")
    ),
    "contract of a product": Case(
        "Contract", ("MatMul",), lambda: silenced("MatMul", "contract"), ("sequence_input", "ffn")
    ),
    "regroup of a reshape": Case(
        "Regroup", ("Reshape",), lambda: silenced("Reshape", "regroup"), ("image_input", "channel_shuffle")
    ),
    "regroup of groups": Case(
        "Regroup", ("ConvTranspose",), lambda: conv_transpose_regrouped, ("image_input", "conv_transpose")
    ),
    "regroup of blocks": Case(
        "Regroup", ("DepthToSpace",), lambda: depth_to_space_swapped, ("image_input", "depth_to_space")
    ),
    "select of a gather": Case("Select", ("Gather",), lambda: gather_reversed, ("image_input", "gather_channels")),
    "select of a concat": Case("Select", ("Concat",), lambda: concat_misplaced, ("image_input", "concat_branches")),
    "mix of a mean": Case(
        "Mix", ("ReduceMean",), lambda: silenced("ReduceMean", "mix"), ("sequence_input", "rms_norm")
    ),
    "mix of a softmax": Case(
        "Mix", ("Softmax",), lambda: silenced("Softmax", "mix"), ("sequence_input", "experts")
    ),
    "freeze of a window": Case(
        "Freeze", ("Conv",), lambda: window_unfrozen, ("vector_input", "to_image", "conv", "flatten")
    ),
    "freeze of a table": Case("Freeze", ("Gather",), lambda: table_unfrozen, ("embedding", "project")),
    "size of groups": Case("size", ("Conv",), lambda: silenced("Conv", "size"), ("image_input", "depthwise")),
    "size of a reshape": Case(
        "size", ("Reshape",), lambda: silenced("Reshape", "size"), ("vector_input", "reshaped_heads")
    ),
    "size of a split": Case("size", ("Split",), lambda: silenced("Split", "size"), ("image_input", "split_transform")),
    "size of a slice": Case("size", ("Slice",), lambda: silenced("Slice", "size"), ("image_input", "slice_channels")),
}  # fmt: skip


def failures(blocks: Sequence[str]) -> list[str]:
    """Name the checks that fail on the first graphs of these blocks."""
    graphs = [build(seed, blocks) for seed in range(N_SEEDS)]
    return [c.__name__ for g in graphs for c in properties.CHECKS if properties.failure(c, g) is not None]


@pytest.mark.parametrize("name", CASES)
def test_a_broken_rule_is_caught(name: str) -> None:
    case = CASES[name]
    with replaced(case.rule(), *case.op_types):
        caught = failures(case.blocks)
    assert caught, f"a wrong {case.relation} ({name}) passes every check"
    assert not failures(case.blocks), "the right rule fails as well: the check proves nothing"


def test_every_relation_has_a_broken_rule() -> None:
    assert {c.relation for c in CASES.values()} == {"Tie", "Contract", "Regroup", "Select", "Mix", "Freeze", "size"}
