"""The invariants of pruning, on random graphs and random plans.

Every check is a function of one graph that raises when its invariant does not hold; `test_broken_rules.py` proves that
each of them can. A failure prints the smallest set of blocks that still fails, as a command that writes the model.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, numpy_helper

from onnxprune.axes.analysis import Analysis, analyze_model
from onnxprune.axes.cuts import make_plan
from onnxprune.axes.groups import Group
from onnxprune.graph.model import Model, serialize
from onnxprune.planfile import Plan, PlanGroup
from onnxprune.rewrite.apply import apply_plan
from onnxprune.verification.twin import masked_twin
from tests.random_graphs import BLOCKS, Graph, build

RTOL = 1e-4  # of an output's range: float32, some ten layers, sums in another order
Removed = Mapping[str, Iterable[int]]
Entry = tuple[str, int, str, int]


# --- running ---


def session(proto: onnx.ModelProto, *, optimize: bool = False) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 4
    if not optimize:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    return ort.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])


def run(proto: onnx.ModelProto, feeds: Mapping[str, np.ndarray], *, optimize: bool = False) -> list[np.ndarray]:
    return [np.asarray(y) for y in session(proto, optimize=optimize).run(None, dict(feeds))]


def distance(a: Iterable[np.ndarray], b: Iterable[np.ndarray]) -> float:
    """Largest difference of two runs, relative to the range of the second; raises where shapes differ."""
    worst = 0.0
    for one, two in zip(a, b, strict=True):
        assert one.shape == two.shape, f"outputs of shapes {one.shape} and {two.shape}"
        assert np.isfinite(one).all()
        spread = float(np.ptp(two)) + 1e-6
        worst = max(worst, float(np.abs(one - two).max(initial=0.0)) / spread)
    return worst


# --- plans ---


def plan_for(analysis: Analysis, removed: Removed) -> Plan:
    gone = {name: tuple(sorted(int(u) for u in units)) for name, units in removed.items()}
    rows = [
        PlanGroup(g.id, g.kind, g.size, gone.get(g.id, ()), g.exact, {}, None, g.why_inexact) for g in analysis.groups
    ]
    return make_plan(analysis, rows, dict(analysis.collection.shapes.input_shapes))


def everywhere(group: Group, positions: Sequence[int]) -> list[int]:
    """Give the units at these positions of every block."""
    return sorted(int(np.flatnonzero(group.block == b)[k]) for b in range(group.blocks) for k in positions)


def random_removal(
    analysis: Analysis, rng: np.random.Generator, *, exact: bool = True, stay: int = 1
) -> dict[str, list[int]]:
    """Draw units to remove: from most groups, equally many from every block, at least `stay` left in each."""
    chosen: dict[str, list[int]] = {}
    for g in analysis.groups:
        if (exact and not g.exact) or g.width <= stay or rng.random() < 0.25:
            continue
        n = int(rng.integers(1, g.width - stay + 1)) if rng.random() < 0.3 else max(1, g.width // 3)
        drawn = [rng.permutation(np.flatnonzero(g.block == b))[: min(n, g.width - stay)] for b in range(g.blocks)]
        chosen[g.id] = sorted(np.concatenate(drawn).tolist())
    return chosen


_last: list[tuple[Graph, Analysis]] = []


def analyzed(graph: Graph) -> Analysis:
    """Analyze a graph, once for all checks in a row: an analysis is read-only."""
    if not _last or _last[0][0] is not graph:
        _last[:] = [(graph, analyze_model(Model(graph.model)))]
    return _last[0][1]


# --- the invariants ---


def check_empty_plan(graph: Graph) -> None:
    """1. An empty plan writes the input back byte for byte."""
    before = serialize(graph.model)
    analysis = analyzed(graph)
    written = apply_plan(analysis, plan_for(analysis, {}))
    assert serialize(written.proto) == before
    assert serialize(graph.model) == before


def check_twin(graph: Graph) -> bool:
    """2. The rewritten model computes what the masked twin does; gives whether that differs from the original."""
    analysis = analyzed(graph)
    before = serialize(graph.model)
    plan = plan_for(analysis, random_removal(analysis, np.random.default_rng([graph.seed, 2])))
    assert plan.exact
    pruned = apply_plan(analysis, plan)
    assert serialize(graph.model) == before, "rewriting changed its source"
    if plan.empty:
        return False
    twin = masked_twin(analysis.model, plan, pruned)
    feeds = graph.feeds()
    expected = run(twin, feeds)
    error = distance(run(pruned.proto, feeds), expected)
    assert error <= RTOL, f"differs from the masked twin by {error:.3g} of the range"
    original = run(graph.model, feeds)
    assert all(float(np.std(y)) > 1e-5 for y in original), "an output does not vary"
    return distance(original, expected) > RTOL


def check_composition(graph: Graph) -> None:
    """3. Removing a and b at once, and a first and then b, give the same model."""
    analysis = analyzed(graph)
    rng = np.random.default_rng([graph.seed, 3])
    first, second = {}, {}
    for name, units in random_removal(analysis, rng, exact=False, stay=2).items():
        group = analysis.group(name)
        cut = int(rng.integers(len(units) // group.blocks + 1))
        by_block = np.array(sorted(units, key=lambda u: int(group.block[u]))).reshape(group.blocks, -1)
        first[name], second[name] = by_block[:, :cut].ravel().tolist(), by_block[:, cut:].ravel().tolist()
    both = {name: [*first[name], *second[name]] for name in first}
    at_once = apply_plan(analysis, plan_for(analysis, both))
    step_plan = plan_for(analysis, first)
    later = analyze_model(Model(apply_plan(analysis, step_plan).proto))
    mapped = carried_over(analysis, step_plan, later, second)
    in_turn = apply_plan(later, plan_for(later, mapped))
    assert_same_weights(at_once.proto, in_turn.proto)
    feeds = graph.feeds()
    assert distance(run(in_turn.proto, feeds), run(at_once.proto, feeds)) <= RTOL


def carried_over(analysis: Analysis, plan: Plan, later: Analysis, removed: Removed) -> dict[str, list[int]]:
    """Find, in the analysis of the model that `plan` gave, the units that `removed` names in the first one."""
    alive = analysis.alive({g.id: g.removed for g in plan.groups})
    place: dict[tuple[Any, int, int], set[tuple[str, int]]] = {}
    for g in later.groups:
        for m in g.members:
            for i in np.flatnonzero(m.unit >= 0).tolist():
                for key in (reader(later, m.initializer, m.use), *readers(later, m.initializer)):
                    place.setdefault((key, m.axis, i), set()).add((g.id, int(m.unit[i])))
    found: dict[str, list[int]] = {}
    for name, units in removed.items():
        group = analysis.group(name)
        for u in units:
            options: set[tuple[str, int]] | None = None
            if not any(((m.unit == u) & analysis.keep(m.axis_id, alive)).any() for m in group.members):
                continue  # its whole block is gone
            for m in group.members:
                keep = analysis.keep(m.axis_id, alive)
                rank = np.cumsum(keep) - 1
                key = reader(analysis, m.initializer, m.use)
                for i in np.flatnonzero((m.unit == u) & keep).tolist():
                    here = place.get((key, m.axis, int(rank[i])))
                    if here is not None:
                        options = here if options is None else options & here
            assert options, f"unit {u} of {name} is not to be found after the first rewrite"
            same = [o for o in options if o[0] == name]
            g_id, unit = (same or sorted(options))[0]
            found.setdefault(g_id, []).append(unit)
    return {k: sorted(set(v)) for k, v in found.items()}


def reader(analysis: Analysis, initializer: str, use: tuple[int, int] | None) -> tuple[str, ...]:
    """Name what an analysis calls a member: the tensor, or the node and slot of a use of its own."""
    if use is None:
        return ("tensor", initializer)
    return ("use", analysis.collection.ops[use[0]].node.outputs[0].name, str(use[1]))


def readers(analysis: Analysis, initializer: str) -> list[tuple[str, ...]]:
    """List the uses of a tensor, as `reader` names them."""
    nodes = [op.node for op in analysis.collection.ops]
    return [
        ("use", n.outputs[0].name, str(slot)) for n in nodes for slot, t in enumerate(n.inputs) if t.name == initializer
    ]


def constants(proto: onnx.ModelProto) -> dict[str, np.ndarray]:
    found = {t.name: numpy_helper.to_array(t) for t in proto.graph.initializer}
    for node in proto.graph.node:
        if node.op_type == "Constant":
            found[node.output[0]] = numpy_helper.to_array(node.attribute[0].t)
    return found


def assert_same_weights(one: onnx.ModelProto, two: onnx.ModelProto) -> None:
    """Compare what every node reads and is told, by its outputs; names of copies and corrections may differ."""
    left, right = constants(one), constants(two)
    nodes = {n.output[0]: n for n in two.graph.node}
    for n in one.graph.node:
        if n.op_type in ("Constant", "Split") or ".onnxprune." in n.output[0]:
            continue  # an uneven Split is told its sizes, and keeps them when it becomes even again
        m = nodes[n.output[0]]
        theirs = {a.name: a for a in m.attribute}
        for a in n.attribute:
            assert a == theirs[a.name], f"{n.name}: {a.name} differs"
        for i, j in zip(n.input, m.input, strict=True):
            if ".onnxprune.size" in i or ".onnxprune.size" in j:
                continue
            assert (i in left) == (j in right), f"{n.name} reads {i} and {j}"
            if i in left:
                np.testing.assert_array_equal(left[i], right[j], err_msg=f"{n.name} reads {i} and {j}")


def check_node_order(graph: Graph) -> None:
    """3b. Analysis does not depend on the order of the nodes."""
    shuffled = onnx.ModelProto()
    shuffled.CopyFrom(graph.model)
    order = topological_shuffle(graph.model, np.random.default_rng([graph.seed, 4]))
    del shuffled.graph.node[:]
    shuffled.graph.node.extend(graph.model.graph.node[k] for k in order)
    one, two = analyzed(graph), analyze_model(Model(shuffled))
    assert units_of_groups(one) == units_of_groups(two)


def topological_shuffle(proto: onnx.ModelProto, rng: np.random.Generator) -> list[int]:
    nodes = proto.graph.node
    made = {o: k for k, n in enumerate(nodes) for o in n.output}
    waiting = {k: {made[i] for i in n.input if i in made} for k, n in enumerate(nodes)}
    order: list[int] = []
    while waiting:
        ready = [k for k, needs in waiting.items() if not needs]
        k = ready[int(rng.integers(len(ready)))]
        order.append(k)
        del waiting[k]
        for needs in waiting.values():
            needs.discard(k)
    return order


def unit_members(analysis: Analysis, group: Group) -> frozenset[frozenset[Any]]:
    """Give a group as its set of units, each a set of (tensor or use, axis, index)."""
    units: list[set[Any]] = [set() for _ in range(group.size)]
    for m in group.members:
        for i in np.flatnonzero(m.unit >= 0).tolist():
            units[m.unit[i]].add((reader(analysis, m.initializer, m.use), m.axis, i))
    return frozenset(frozenset(u) for u in units)


def units_of_groups(analysis: Analysis) -> set[tuple[bool, frozenset[frozenset[Any]]]]:
    return {(g.exact, unit_members(analysis, g)) for g in analysis.groups}


def check_written_model(graph: Graph) -> None:
    """4. A written model loads with all optimizations, runs, passes the checker and strict inference.

    It keeps its interface.
    """
    analysis = analyzed(graph)
    rng = np.random.default_rng([graph.seed, 5])
    pruned = apply_plan(analysis, plan_for(analysis, random_removal(analysis, rng, exact=False)))
    proto = pruned.proto
    onnx.checker.check_model(proto, full_check=True)
    onnx.shape_inference.infer_shapes(proto, check_type=True, strict_mode=True, data_prop=True)
    assert list(proto.graph.input) == list(graph.model.graph.input)
    assert list(proto.graph.output) == list(graph.model.graph.output)
    before = {n.name: n.op_type for n in graph.model.graph.node}
    after = {n.name: n.op_type for n in proto.graph.node}
    assert {k: v for k, v in after.items() if k in before} == before
    feeds = graph.feeds()
    error = distance(run(proto, feeds, optimize=True), run(proto, feeds))
    if error > 10 * RTOL:  # onnxruntime fuses a Pad of zeros into MaxPool, whose padding is no zero
        assert distance(run(graph.model, feeds, optimize=True), run(graph.model, feeds)) > 10 * RTOL


def removable(analysis: Analysis) -> set[Any]:
    return {row for g in analysis.groups for unit in unit_members(analysis, g) for row in unit}


def check_freezing(graph: Graph) -> None:
    """5. One more graph output never makes anything removable."""
    before = removable(analyzed(graph))
    inferred = onnx.shape_inference.infer_shapes(graph.model)
    values = [
        v for v in inferred.graph.value_info
        if v.type.tensor_type.elem_type == TensorProto.FLOAT and v.name not in constants(graph.model)
    ]  # fmt: skip
    if not values:
        return
    rng = np.random.default_rng([graph.seed, 6])
    more = onnx.ModelProto()
    more.CopyFrom(graph.model)
    more.graph.output.append(values[int(rng.integers(len(values)))])
    after = removable(analyze_model(Model(more)))
    assert after <= before, sorted(after - before)[:3]


def check_saved_plan(graph: Graph) -> None:
    """5b. Saving and loading a plan changes nothing."""
    analysis = analyzed(graph)
    rng = np.random.default_rng([graph.seed, 7])
    plan = plan_for(analysis, random_removal(analysis, rng, exact=False))
    loaded = Plan.from_json(json.loads(plan.dumps()))
    assert loaded == plan
    assert loaded.dumps() == plan.dumps()
    assert serialize(apply_plan(analyzed(graph), loaded).proto) == serialize(apply_plan(analysis, plan).proto)


def check_bits(graph: Graph) -> None:
    """6. Every written initializer is the original indexed by what the plan keeps, bit for bit; no other changed."""
    analysis = analyzed(graph)
    rng = np.random.default_rng([graph.seed, 8])
    plan = plan_for(analysis, random_removal(analysis, rng, exact=False))
    pruned = apply_plan(analysis, plan)
    before, after = constants(graph.model), constants(pruned.proto)
    cut: dict[str, tuple[str, dict[int, tuple[int, ...]]]] = {}
    for s in plan.slices:
        assert s.removed
        assert cut.setdefault(s.result, (s.initializer, {}))[1].setdefault(s.axis, s.removed) is s.removed
    for result, (name, axes) in cut.items():
        expected = before[name]
        for axis, removed in axes.items():
            expected = np.delete(expected, removed, axis=axis)
        assert expected.dtype == after[result].dtype
        assert expected.shape == after[result].shape
        assert expected.tobytes() == after[result].tobytes(), result
    for name, array in before.items():
        if name not in cut and array.dtype == np.float32 and not any(s.initializer == name for s in plan.slices):
            assert array.tobytes() == after[name].tobytes(), name


CHECKS: tuple[Callable[[Graph], Any], ...] = (
    check_empty_plan, check_twin, check_composition, check_node_order, check_written_model, check_freezing,
    check_saved_plan, check_bits,
)  # fmt: skip


def failure(check: Callable[[Graph], Any], graph: Graph) -> Exception | None:
    """Give what a check raises: a failed assertion, or whatever onnx and onnxruntime refuse a broken model with."""
    try:
        check(graph)
    except Exception as error:  # noqa: BLE001  any failure is a finding
        return error
    return None


def smallest_failing(graph: Graph, check: Callable[[Graph], Any]) -> Graph:
    """Leave out blocks for as long as the check still fails."""
    current = graph
    shrunk = True
    while shrunk and len(current.blocks) > 1:
        shrunk = False
        for k in range(len(current.blocks) - 1, -1, -1):
            fewer = build(graph.seed, [*current.blocks[:k], *current.blocks[k + 1 :]])
            if len(fewer.blocks) < len(current.blocks) and failure(check, fewer) is not None:
                current, shrunk = fewer, True
                break
    return current


def assert_holds(checks: Iterable[Callable[[Graph], Any]], seeds: Iterable[int]) -> None:
    for seed in seeds:
        graph = build(seed)
        for check in checks:
            error = failure(check, graph)
            if error is not None:
                smallest = smallest_failing(graph, check)
                raise AssertionError(f"{check.__name__} fails on: {smallest.reproducer}") from error


N_GRAPHS = 300
CHUNK = 30


@pytest.mark.parametrize("first", range(0, N_GRAPHS, CHUNK))
def test_invariants(first: int) -> None:
    assert_holds(CHECKS, range(first, first + CHUNK))


def test_most_removals_show_in_the_outputs() -> None:
    """Otherwise agreement with the masked twin would mean nothing."""
    moved = [check_twin(build(seed)) for seed in range(0, N_GRAPHS, 5)]
    assert sum(moved) >= 0.8 * len(moved)


def test_every_block_is_pruned() -> None:
    """Soundness is not precision: around every block there are units, except where the graph ends right behind it."""
    for name, entry in BLOCKS.items():
        graphs = [build(seed, [f"{entry.source}_input", name]) for seed in range(16)]
        sizes = [sum(g.size for g in analyzed(graph).groups) for graph in graphs if name in graph.blocks]
        assert len(sizes) >= 4, name
        assert sum(n > 0 for n in sizes) >= 0.7 * len(sizes), (name, sizes)


@pytest.mark.slow
@pytest.mark.parametrize("first", range(N_GRAPHS, N_GRAPHS + 1500, 150))
def test_invariants_on_many_graphs(first: int) -> None:
    assert_holds(CHECKS, range(first, first + 150))


def test_generation_is_deterministic_and_covers_every_block() -> None:
    seen: set[str] = set()
    for seed in range(N_GRAPHS):
        graph = build(seed)
        seen.update(graph.blocks)
        if seed % 10 == 0:
            again = build(seed, graph.blocks)
            assert serialize(again.model) == serialize(graph.model)
    assert set(BLOCKS) <= seen


def test_an_empty_plan_writes_the_file_back(tmp_path: Path) -> None:
    """1, through files: metadata, unknown fields and all."""
    import onnxprune

    source, target = tmp_path / "a.onnx", tmp_path / "b.onnx"
    model = build(11).model
    model.metadata_props.add(key="author", value="someone")
    source.write_bytes(model.SerializeToString() + b"\xfa\x3e\x03abc")  # field 1007 is none of ModelProto's
    onnxprune.save(onnxprune.apply(source, onnxprune.plan(source, ratio=0.0)), target)
    assert target.read_bytes() == source.read_bytes()
