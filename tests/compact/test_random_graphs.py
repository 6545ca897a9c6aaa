"""Compaction on random graphs: outputs stay as they are, what is taken for known is what the model computes."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from onnxprune.axes.analysis import Analysis, analyze_model
from onnxprune.compaction import CompactResult, compact
from onnxprune.compaction.facts import Facts
from onnxprune.graph.flatten import flatten
from onnxprune.graph.model import Model, serialize
from tests.compact.planting import choose_units, has_rows, zero_rows
from tests.random_graphs import Graph, build
from tests.test_properties import RTOL, distance, failure, run, smallest_failing


def planted(graph: Graph) -> Analysis:
    """Plant dead units of every kind: rows without and with their parameters, columns, and equal units."""
    analysis = analyze_model(Model(graph.model))
    rng = np.random.default_rng([graph.seed, 11])
    silent, zero, ignored = {}, {}, {}
    for group in analysis.groups:
        if has_rows(group):
            where = (silent, zero, ignored)[int(rng.integers(3))]
            where[group.id] = choose_units(group, 0.5, rng)
    model = zero_rows(analysis, silent)
    model = zero_rows(Analysis(model), zero, parameters=True)
    model = zero_columns(Analysis(model), ignored)
    return analyze_model(equal_rows(Analysis(model), rng))


def zero_columns(analysis: Analysis, dead: dict[str, list[int]]) -> Model:
    """Write the columns that read units as zero."""
    proto = onnx.ModelProto()
    proto.CopyFrom(analysis.model.proto)
    held = flatten(proto).tensors
    for group in analysis.groups:
        for member in group.members:
            if member.role == "input" and group.id in dead:
                array = numpy_helper.to_array(held[member.initializer]).copy()
                np.moveaxis(array, member.axis, 0)[np.isin(member.unit, dead[group.id])] = 0
                tensor = held[member.initializer]
                tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
    return Model(proto)


def equal_rows(analysis: Analysis, rng: np.random.Generator) -> Model:
    """Make the last unit of some groups what the one before it is."""
    proto = onnx.ModelProto()
    proto.CopyFrom(analysis.model.proto)
    held = flatten(proto).tensors
    for group in analysis.groups:
        if group.size < 4 or rng.random() < 0.5:
            continue
        for member in group.members:
            if member.role == "input":
                continue
            array = numpy_helper.to_array(held[member.initializer]).copy()
            rows = np.moveaxis(array, member.axis, 0)
            source, target = (np.flatnonzero(member.unit == u) for u in (group.size - 2, group.size - 1))
            if len(source) == len(target):
                rows[target] = rows[source]
            tensor = held[member.initializer]
            tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
    return Model(proto)


def computes(graph: Graph, proto: onnx.ModelProto) -> bool:
    """Say whether a planted model still gives numbers: a zeroed row of a weight norm is divided by its norm."""
    return all(np.isfinite(y).all() for y in run(proto, graph.feeds()))


def check_compact(graph: Graph) -> CompactResult:
    """Compaction changes no output, and leaves its source alone."""
    analysis = planted(graph)
    if not computes(graph, analysis.model.proto):
        analysis = analyze_model(Model(graph.model))
    before = serialize(analysis.model.proto)
    result = compact(analysis, verified=False)
    assert serialize(analysis.model.proto) == before
    for k in range(2):
        feeds = graph.feeds(k)
        expected = run(analysis.model.proto, feeds)
        error = distance(run(result.model.proto, feeds), expected)
        assert error <= RTOL, f"outputs differ by {error:.3g} of their range"
    onnx.checker.check_model(result.model.proto, full_check=True)
    return result


def check_facts(graph: Graph) -> int:
    """Every element that is taken for known has that value on random inputs; gives how many there are."""
    analysis = planted(graph)
    if not computes(graph, analysis.model.proto):
        analysis = analyze_model(Model(graph.model))
    facts = Facts(analysis)
    proto = onnx.ModelProto()
    proto.CopyFrom(analysis.model.proto)
    values = analysis.collection.values
    names = [
        y.name
        for op in analysis.collection.ops
        for y in op.outputs
        if y is not None and not y.constant and facts.known(y.name) is not None
    ]
    given = {v.name for v in proto.graph.output}
    proto.graph.output.extend(onnx.ValueInfoProto(name=n) for n in names if n not in given)
    outputs = [v.name for v in proto.graph.output]
    n = 0
    for name, array in zip(outputs, run(proto, graph.feeds()), strict=True):
        known = facts.known(name)
        if known is None or name not in names:
            continue
        value = values[name]
        assert value is not None
        steady = all(d in (1, s) for d, s in zip(known.shape, array.shape, strict=True))
        assert steady, f"{name}: {known.shape} for {array.shape}"
        where = np.broadcast_to(known.mask, array.shape)
        expected = np.broadcast_to(known.value, array.shape)
        scale = float(np.abs(array[where].astype(np.float64)).max(initial=0.0)) + 1e-6
        np.testing.assert_allclose(array[where], expected[where], rtol=0, atol=1e-5 * scale, err_msg=name)
        n += int(where.sum())
    return n


def assert_holds(check, seeds) -> list[int]:  # type: ignore[no-untyped-def]
    found = []
    for seed in seeds:
        graph = build(seed)
        error = failure(check, graph)
        if error is not None:
            smallest = smallest_failing(graph, check)
            raise AssertionError(f"{check.__name__} fails on: {smallest.reproducer}") from error
        found.append(check(graph))
    return found


@pytest.mark.parametrize("first", range(0, 60, 20))
def test_outputs_stay(first: int) -> None:
    results = assert_holds(check_compact, range(first, first + 20))
    assert sum(r.n_removed > 0 for r in results) >= 15


@pytest.mark.slow
@pytest.mark.parametrize("first", range(60, 660, 100))
def test_outputs_stay_on_many_graphs(first: int) -> None:
    assert_holds(check_compact, range(first, first + 100))


@pytest.mark.parametrize("first", range(0, 60, 20))
def test_what_is_known_is_what_the_model_computes(first: int) -> None:
    assert sum(assert_holds(check_facts, range(first, first + 20))) > 1000
