"""Prune around every node test case that ships with the `onnx` package, and compare with the masked twin.

    python benchmarks/node_tests.py [--op NAME ...] [--case NAME] [--variants N] [--show OUTCOME] [--keep FILE] [--json]
    python benchmarks/node_tests.py --figures docs/node_tests.json   # what docs/op_coverage.md shows

A case becomes the middle of a model. In front of a data input, weights are multiplied along one axis (a variant for
each axis of each input, up to `--variants`) or along every axis of every data input (the first variant); behind outputs
weights are multiplied along every axis. What the case feeds to other inputs becomes an initializer. Half of the units
of every group go: the exact groups, compared with the masked twin, then the inexact ones too, which must run and have
the right shapes.

Outcomes of a case: `pruned`, at least one variant was pruned and all that were are verified; `frozen`, nothing
may go, with the reason; `not run`, onnxruntime cannot run the case, or it holds no tensor to prune; `WRONG`, a check
fails or an error escapes. `--case` reruns one; `--keep FILE` writes the first wrong model; `--figures FILE` writes the
counts per operator, from which `python -m onnxprune.rules.coverage docs/op_coverage.md` makes its table.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import platform
import sys
import time
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass, field
from multiprocessing import get_context
from pathlib import Path
from typing import Any

for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(variable, "1")  # before numpy is imported

import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper

import onnxprune
import onnxprune.rules
from onnxprune.axes.collect import op_rules, rule_name

Array = np.ndarray[Any, np.dtype[Any]]
OUTCOMES = ("pruned", "frozen", "not run", "WRONG")
WIDTH = 3  # columns of the weights behind the node
N_FEEDS = 3
FLOATS = {TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE, TensorProto.BFLOAT16}
DISCRETE = {
    TensorProto.BOOL, TensorProto.INT8, TensorProto.UINT8, TensorProto.INT16, TensorProto.UINT16, TensorProto.INT32,
    TensorProto.UINT32, TensorProto.INT64, TensorProto.UINT64,
}  # fmt: skip
# Inputs that are data even though they are float: everything but these slots, which models store.
PARAMETERS: dict[str, set[int]] = {
    "BatchNormalization": {1, 2, 3, 4},
    "CausalConvWithState": {1, 2, 3},
    "Clip": {1, 2},
    "Conv": {1, 2},
    "ConvTranspose": {1, 2},
    "DFT": {1, 2},
    "DeformConv": {1, 2, 3, 4},
    "DequantizeLinear": {1, 2},
    "Dropout": {1, 2},
    "GRU": set(range(1, 8)),
    "GroupNormalization": {1, 2},
    "InstanceNormalization": {1, 2},
    "LSTM": set(range(1, 8)),
    "LayerNormalization": {1, 2},
    "OneHot": {0, 1, 2},
    "Pad": {1, 2, 3},
    "QLinearConv": set(range(1, 9)),
    "QLinearMatMul": {1, 2, 4, 5, 6, 7},
    "QuantizeLinear": {1, 2},
    "RMSNormalization": {1},
    "RNN": set(range(1, 8)),
    "Range": {0, 1, 2},
    "Resize": {1, 2, 3},
    "RoiAlign": {1, 2},
    "RotaryEmbedding": {1, 2, 3},
    "Upsample": {1},
}
# Operators whose integer and boolean inputs are data, not positions or sizes.
ON_INTEGERS = {
    "Abs", "Add", "And", "BitShift", "BitwiseAnd", "BitwiseNot", "BitwiseOr", "BitwiseXor", "Cast", "CastLike",
    "Concat", "Equal", "Greater", "GreaterOrEqual", "Identity", "Less", "LessOrEqual", "Max", "Min", "Mul",
    "Neg", "Not", "Or", "Reshape", "Sign", "Sub", "Sum", "Transpose", "Trilu", "Where", "Xor",
}  # fmt: skip
# Operators whose first input is data whatever its type, and the other integers are not.
FIRST_ON_INTEGERS = {
    "Clip", "ConvInteger", "CumProd", "CumSum", "DequantizeLinear", "Div", "Expand", "Gather", "GatherElements",
    "GatherND", "MatMulInteger", "MaxPool", "Mod", "Pad", "Pow", "QLinearConv", "QLinearMatMul", "ReduceMax",
    "ReduceMin", "ReduceSum", "Resize", "Slice", "Split", "Squeeze", "Tile", "TopK", "Unsqueeze",
}  # fmt: skip
SKIPPED_DOMAINS = {"ai.onnx.preview.training"}
# Operators whose cases have one channel: copies stand beside it, so that some may go.
ONE_CHANNEL = {"AveragePool", "Conv", "GridSample", "LpPool", "MaxPool", "Resize", "RoiAlign", "Upsample"}
CHANNELS = 4
# That onnxruntime knows: later cases are stamped with these where they are valid, and with an older operator set where
# it has no kernel for the newest version of the operator.
NEWEST_OPSET, NEWEST_IR = 26, 11
OLDER_OPSETS, OLDEST_OPSET = (21, 15), 7
# Operators whose output shape depends on data: no inference gives it, the case does.
DECLARED = {"Compress"}


@dataclass
class Case:
    """One node test: a model of a single node, and what it is fed. `data` is empty where it is no plain tensor."""

    name: str
    op: str
    model: bytes
    data: list[Array | None]


@dataclass
class Result:
    """What came of a case: `detail` says why it is frozen, was not run, or is wrong, and in which variant."""

    case: str
    op: str
    outcome: str
    detail: str = ""
    exact: int = 0
    inexact: int = 0
    model: bytes = field(default=b"", repr=False)


def node_cases(modules: Sequence[str] | None = None) -> Iterator[Case]:
    """Give the cases of one node whose operator has a rule; `modules` limits what is imported (all: 12 s)."""
    folder = "onnx.backend.test.case.node"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if modules is None:
            from onnx.backend.test.loader import load_model_tests

            found = list(load_model_tests(kind="node"))
            wanted = None
        else:
            wanted = {f"{folder}.{name}" for name in modules}
            for name in sorted(wanted):
                importlib.import_module(name)
            found = list(importlib.import_module(folder)._NodeTestCases)  # noqa: SLF001  how onnx keeps them
    seen = set()
    for case in found:
        if case.model is None or len(case.model.graph.node) != 1 or case.name in seen:
            continue
        seen.add(case.name)
        node = case.model.graph.node[0]
        op = rule_name(node.domain, node.op_type)
        if op in op_rules or node.domain in SKIPPED_DOMAINS:
            inputs = case.data_sets[0][0] if case.data_sets else []
            data = [_array(x) for x in inputs]
            yield Case(case.name, op, _stamped(case.model).SerializeToString(), data)


def _stamped(model: onnx.ModelProto, newest: int = NEWEST_OPSET) -> onnx.ModelProto:
    older = onnx.ModelProto()
    older.CopyFrom(model)
    older.ir_version = min(older.ir_version, NEWEST_IR)
    standard = [o for o in older.opset_import if o.domain == ""]
    for opset in standard:
        opset.version = max(OLDEST_OPSET, min(opset.version, newest))
    if not standard:
        older.opset_import.append(helper.make_opsetid("", newest))
    try:
        onnx.checker.check_model(older, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError):
        return model
    return older


def _widened(case: Case) -> Case:
    """Give a case of one channel several."""
    model = onnx.load_model_from_string(case.model)
    node, data = model.graph.node[0], list(case.data)
    if data[0] is None or data[0].ndim < 3 or data[0].shape[1] != 1 or len(node.output) > 1:
        return case
    data[0] = np.repeat(data[0], CHANNELS, axis=1)
    if case.op == "Conv":
        if len(data) > 2 or data[1] is None:
            return case
        data[1] = np.repeat(np.repeat(data[1], CHANNELS, axis=0), CHANNELS, axis=1)
    for k, array in enumerate(data):
        if k and case.op == "Resize" and array is not None and array.dtype == np.int64:
            if array.size < 3:  # sizes of the spatial axes alone
                continue
            data[k] = array.copy()
            data[k][1] *= CHANNELS
    for value, array in zip(model.graph.input, data, strict=True):
        kind = value.type.tensor_type.elem_type
        value.CopyFrom(helper.make_tensor_value_info(value.name, kind, array.shape if array is not None else None))
    value = model.graph.output[0]
    fed = {v.name: x for v, x in zip(model.graph.input, data, strict=True)}
    kind = value.type.tensor_type.elem_type
    value.CopyFrom(helper.make_tensor_value_info(value.name, kind, None))
    made = open_model(model).run(None, fed)[0]
    value.CopyFrom(helper.make_tensor_value_info(value.name, kind, made.shape))
    return Case(case.name, case.op, model.SerializeToString(), data)


def _array(x: Any) -> Array | None:
    if isinstance(x, onnx.TensorProto):
        x = numpy_helper.to_array(x)
    if isinstance(x, (np.ndarray, np.generic)) and np.asarray(x).dtype.kind not in "OUS":
        return np.asarray(x)
    return None


class Surroundings:
    """The model around one node: what stands in front of its inputs and behind its outputs."""

    def __init__(self, case: Case, seed: int = 0) -> None:
        self.case = case
        self.source = onnx.load_model_from_string(case.model)
        self.random = np.random.default_rng(seed)
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []
        self.inputs: list[onnx.ValueInfoProto] = []
        self.outputs: list[onnx.ValueInfoProto] = []
        self.feeds: list[dict[str, Array]] = [{} for _ in range(N_FEEDS)]
        self.count = 0

    def build(self, live: dict[str, Sequence[int]], every_output: bool) -> onnx.ModelProto:
        """Give the model with producers in front of the inputs `live`, along these axes of theirs."""
        graph = self.source.graph
        for value, data in zip(graph.input, self.case.data, strict=True):
            assert data is not None
            kind = value.type.tensor_type.elem_type
            if value.name in live:
                self._produce(value.name, data.astype(np.float32), kind, live[value.name])
            else:
                tensor = numpy_helper.from_array(data, value.name)
                if tensor.data_type != kind:
                    tensor = helper.make_tensor(value.name, kind, data.shape, data.ravel())
                self.weights.append(tensor)
        self.nodes.extend(graph.node)
        for k, value in enumerate(graph.output):
            if value.type.HasField("tensor_type") and (k == 0 or every_output):
                self._consume(value)
        declared = list(graph.output) if self.case.op in DECLARED else []
        made = helper.make_graph(
            self.nodes, self.case.name, self.inputs, self.outputs, self.weights, value_info=declared
        )  # fmt: skip
        return helper.make_model(made, opset_imports=self.source.opset_import, ir_version=self.source.ir_version)

    def _produce(self, name: str, data: Array, kind: int, axes: Sequence[int]) -> None:
        shape = data.shape
        start = f"{name}_in"
        self.inputs.append(helper.make_tensor_value_info(start, TensorProto.FLOAT, shape))
        for feed in self.feeds:
            feed[start] = self.random.uniform(0.5, 1.0, shape).astype(np.float32)
        for axis in axes:
            # Positive, and columns that add up to one: what is made keeps the signs and the domain of the case's data.
            weight = self.random.uniform(0.5, 1.5, (shape[axis], shape[axis]))
            start = self._multiply(start, len(shape), axis, weight / weight.sum(0), name)
        self.weights.append(numpy_helper.from_array(data, f"{name}_factor"))
        cast = kind != TensorProto.FLOAT
        scaled = f"{name}_scaled" if cast else name
        self.nodes.append(helper.make_node("Mul", [start, f"{name}_factor"], [scaled]))
        if cast:
            self.nodes.append(helper.make_node("Cast", [scaled], [name], to=kind))

    def _consume(self, value: onnx.ValueInfoProto) -> None:
        shape = [d.dim_value for d in value.type.tensor_type.shape.dim]
        known = all(d.HasField("dim_value") for d in value.type.tensor_type.shape.dim)
        name = value.name
        if value.type.tensor_type.elem_type != TensorProto.FLOAT:
            self.nodes.append(helper.make_node("Cast", [name], [f"{name}_float"], to=TensorProto.FLOAT))
            name = f"{name}_float"
        for axis, size in enumerate(shape if known else ()):
            if size > 1:
                weight = self.random.standard_normal((size, WIDTH))
                name = self._multiply(name, len(shape), axis, weight, value.name)
                shape[axis] = WIDTH
        self.outputs.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, shape if known else None))

    def _multiply(self, x: str, rank: int, axis: int, weight: Array, name: str) -> str:
        """Multiply x with a weight along one axis; give the product's name."""
        self.count += 1
        tag = f"{name}_{self.count}"
        self.weights.append(numpy_helper.from_array(weight.astype(np.float32), f"{tag}_weight"))
        swap = list(range(rank))
        swap[axis], swap[-1] = swap[-1], swap[axis]
        moved = axis != rank - 1
        if moved:
            self.nodes.append(helper.make_node("Transpose", [x], [f"{tag}_moved"], perm=swap))
            x = f"{tag}_moved"
        product = f"{tag}_product" if moved else tag
        self.nodes.append(helper.make_node("MatMul", [x, f"{tag}_weight"], [product]))
        if moved:
            self.nodes.append(helper.make_node("Transpose", [product], [tag], perm=swap))
        return tag


def variants(case: Case, limit: int) -> Iterator[tuple[dict[str, Sequence[int]], bool]]:
    """Choose what stands in front of which input: everything, then one axis after the other."""
    model = onnx.load_model_from_string(case.model)
    data: dict[str, list[int]] = {}
    node = model.graph.node[0]
    for value, array in zip(model.graph.input, case.data, strict=True):
        kind = value.type.tensor_type.elem_type
        slots = [k for k, name in enumerate(node.input) if name == value.name]
        stored = set(slots) & PARAMETERS.get(node.op_type, set()) or not slots
        discrete = node.op_type in ON_INTEGERS or (node.op_type in FIRST_ON_INTEGERS and 0 in slots)
        fits = kind in FLOATS or (kind in DISCRETE and discrete)
        if fits and not stored and array is not None:
            axes = [k for k, d in enumerate(array.shape) if d > 1]
            if axes and array.size:
                data[value.name] = axes
    if not data:
        return
    yield dict(data), True
    singles = [{name: (axis,)} for name, axes in data.items() for axis in axes]
    if len(singles) > 1 or len(model.graph.output) > 1:
        for single in singles[: limit - 1]:
            yield dict(single), False


def open_model(model: onnx.ModelProto) -> ort.InferenceSession:
    """Open a model in onnxruntime, on one thread and silently."""
    ort.set_default_logger_severity(4)
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    return ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def examine(case: Case, limit: int = 8) -> Result:
    """Run every variant of a case and sum up."""
    result = Result(case.name, case.op, "not run")
    source = onnx.load_model_from_string(case.model)
    kinds = [v.type.WhichOneof("value") for v in [*source.graph.input, *source.graph.output]]
    if any(kind != "tensor_type" for kind in kinds) or any(x is None for x in case.data):
        result.detail = "it holds something else than tensors of numbers"
        return result
    try:
        case = _runnable(case, source)
    except Exception as error:  # noqa: BLE001  whatever onnxruntime raises means that it cannot run the case
        result.detail = f"onnxruntime: {_line(error)}"
        return result
    reasons: Counter[str] = Counter()
    result.detail = "no data input with an axis longer than one"
    for live, every_output in variants(case, limit):
        around = Surroundings(case)
        model = around.build(live, every_output)
        try:
            open_model(model).run(None, around.feeds[0])
        except Exception as error:  # noqa: BLE001  the case in these surroundings, before pruning
            reasons[f"not run: {_line(error)}"] += 1
            continue
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            _prune(result, model, around.feeds, reasons)
        if result.outcome == "WRONG":
            result.detail += f" (in front of {', '.join(f'{n}{list(a)}' for n, a in live.items())})"
            return result
    if result.exact or result.inexact:
        result.outcome, result.detail = "pruned", ""
    elif reasons:
        result.detail = reasons.most_common(1)[0][0]
        result.outcome = "not run" if result.detail.startswith("not run") else "frozen"
    return result


def _runnable(case: Case, source: onnx.ModelProto) -> Case:
    """Give the case as onnxruntime runs it, under an older operator set if need be; raises what onnxruntime does."""
    fed = {v.name: x for v, x in zip(source.graph.input, case.data, strict=True)}
    try:
        open_model(source).run(None, fed)
    except Exception:
        for newest in OLDER_OPSETS:
            older = _stamped(source, newest)
            try:
                open_model(older).run(None, fed)
            except Exception:  # noqa: BLE001, S112  the first failure is the one to tell
                continue
            case = Case(case.name, case.op, older.SerializeToString(), case.data)
            break
        else:
            raise
    return _widened(case) if case.op in ONE_CHANNEL else case


def _prune(result: Result, model: onnx.ModelProto, feeds: list[dict[str, Array]], reasons: Counter[str]) -> None:
    try:
        analysis = onnxprune.analyze(model)
        for inexact in (False, True):
            groups = [g for g in analysis.groups if g.exact or inexact]
            if not groups or (inexact and all(g.exact for g in groups)):
                continue
            try:
                plan = onnxprune.plan(analysis, ratio=0.5, allow_inexact=inexact)
            except onnxprune.NotMetError:
                continue
            pruned = onnxprune.apply(analysis, plan)
            verdict = onnxprune.verify(model, pruned, plan=plan, data=feeds, threads=1)
            if not verdict.ok and not _twin_is_infinite(model, pruned, plan, feeds, verdict):
                first = verdict.failures[0]
                gone = ", ".join(f"{g.id}-{len(g.removed)}" for g in plan.groups if g.removed)
                result.outcome, result.detail = "WRONG", f"{first.name}: {first.detail.splitlines()[0]} [{gone}]"
                result.model = model.SerializeToString()
                return
            if inexact:
                result.inexact += 1
            else:
                result.exact += 1
        if not analysis.groups:
            locked = [row.reason for row in analysis.locked if "graph input" not in row.reason]
            locked = [reason for reason in locked if "graph output" not in reason] or locked
            reasons[locked[0] if locked else "axes of one"] += 1
    except onnxprune.OnnxPruneError as error:
        reasons[f"refused: {_line(error)}"] += 1
    except Exception as error:  # noqa: BLE001  anything that escapes is a defect: that is what is looked for
        result.outcome, result.detail = "WRONG", f"{type(error).__name__}: {_line(error)}"
        result.model = model.SerializeToString()


def _twin_is_infinite(model: onnx.ModelProto, pruned: Any, plan: Any, feeds: Sequence[Any], verdict: Any) -> bool:
    """Say whether only the twin fails, by itself: a masked zero gave an infinity, and a consumer's zero made it NaN."""
    if [check.name for check in verdict.failures] != ["masked twin"]:
        return False
    twin, smaller = open_model(onnxprune.mask(model, plan).proto), open_model(pruned.proto)
    infinite = False
    for feed in feeds:
        for x, y in zip(twin.run(None, feed), smaller.run(None, feed), strict=True):
            finite = np.isfinite(x)
            infinite |= not finite.all()
            scale = float(np.abs(x[finite]).max(initial=0.0))
            if not np.isfinite(y[finite]).all() or (np.abs(x - y)[finite] > 1e-3 * scale + 1e-6).any():
                return False
    return infinite


def _line(error: BaseException) -> str:
    text = str(error).strip().splitlines()
    return " ".join(text)[:300] if text else type(error).__name__


def examine_all(cases: Iterable[Case], limit: int, jobs: int) -> Iterator[Result]:
    """Examine in other processes: an integer division by zero inside onnxruntime takes its process along."""
    context = get_context("fork")
    pool = ProcessPoolExecutor(jobs, mp_context=context)
    pending = [(case, pool.submit(examine, case, limit)) for case in cases]
    while pending:
        case, future = pending.pop(0)
        try:
            yield future.result()
        except BrokenProcessPool:
            pool.shutdown()
            pool = ProcessPoolExecutor(1, mp_context=context)
            try:
                yield pool.submit(examine, case, limit).result()
            except BrokenProcessPool:
                yield Result(case.name, case.op, "WRONG", "the process died")
            pool.shutdown()
            pool = ProcessPoolExecutor(jobs, mp_context=context)
            pending = [(c, pool.submit(examine, c, limit)) for c, _ in pending]
    pool.shutdown()


def table(results: Sequence[Result]) -> Iterator[str]:
    """Write the table, the summary line and the wrong ones."""
    yield f"{'operator':32} {'cases':>6} " + " ".join(f"{h.lower():>8}" for h in OUTCOMES)
    for op in sorted({r.op for r in results}):
        of_op = Counter(r.outcome for r in results if r.op == op)
        yield f"{op:32} {sum(of_op.values()):6} " + " ".join(f"{of_op[h]:8}" for h in OUTCOMES)
    total = Counter(r.outcome for r in results)
    summary = ", ".join(f"{total[h]} {h.lower()}" for h in OUTCOMES)
    exact = sum(r.exact for r in results)
    yield f"{len(results)} cases of {len({r.op for r in results})} operators: {summary}; {exact} twins compared"
    for r in results:
        if r.outcome == "WRONG":
            yield f"WRONG {r.op} {r.case}: {r.detail}\n    python benchmarks/node_tests.py --case {r.case}"


def figures(results: Sequence[Result], versions: str) -> str:
    """Write the counts per operator as JSON, one operator a line: pruned, frozen, not run, wrong."""
    rows = []
    for op in sorted({r.op for r in results}):
        found = Counter(r.outcome for r in results if r.op == op)
        rows.append(f"  {json.dumps(op)}: {[found[outcome] for outcome in OUTCOMES]}")
    head = {"versions": versions, "outcomes": OUTCOMES, "twins": sum(r.exact for r in results)}
    lines = [f" {json.dumps(key)}: {json.dumps(value)}," for key, value in head.items()]
    return "\n".join(["{", *lines, ' "operators": {', ",\n".join(rows), " }", "}", ""])


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark; 1 when a case is wrong."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--op", action="append", help="only this operator; may be repeated")
    parser.add_argument("--case", help="only this case")
    parser.add_argument("--variants", type=int, default=8, help="surroundings per case, at most")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--show", action="append", default=[], help="list the cases of an outcome, with reasons")
    parser.add_argument("--keep", help="write the model of the first wrong case to this file")
    parser.add_argument("--figures", help="write the counts per operator to this file, one JSON document")
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    options = parser.parse_args(arguments)
    start = time.monotonic()
    cases = list(node_cases())
    if options.op:
        cases = [c for c in cases if c.op in options.op]
    if options.case:
        cases = [c for c in cases if c.name == options.case]
    results = []
    for result in examine_all(cases, options.variants, options.jobs):
        results.append(result)
        if sys.stderr.isatty():
            print(f"\r{len(results)}/{len(cases)} {result.case[:60]:60}", end="", file=sys.stderr)
    wrong = [r for r in results if r.outcome == "WRONG"]
    if options.keep and wrong:
        with open(options.keep, "wb") as file:
            file.write(wrong[0].model)
    versions = f"onnx {onnx.__version__}, onnxruntime {ort.__version__}, Python {platform.python_version()}"
    if options.figures:
        Path(options.figures).write_text(figures(results, versions), encoding="utf-8")
    if options.json:
        rows = [{k: v for k, v in asdict(r).items() if k != "model"} for r in results]
        print(json.dumps({"versions": versions, "seconds": time.monotonic() - start, "results": rows}, indent=1))
    else:
        print(f"{versions}; {time.monotonic() - start:.0f} s")
        print("\n".join(table(results)))
        for r in results:
            if r.outcome in options.show:
                print(f"{r.outcome} {r.op} {r.case}: {r.detail}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
