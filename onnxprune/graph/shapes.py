"""Concrete sizes of every value of a graph, and the integer tensors that carry sizes.

Dynamic axes take a stated number during analysis (from `input_shapes`, or a default), so that every axis has a size.
Which axes are dynamic is remembered: nothing that depends on them is written as a constant.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import onnx
from onnx import shape_inference

from ..errors import ModelError, OptionError, unknown_name
from ..watch import watched
from .flatten import Flat
from .integers import IntTensor
from .propagate import has_data, known_integers, propagate, shape_of, types_of

ALL_AXES = frozenset(range(16))


@dataclass
class Shapes:
    """`sizes[name]` is the shape of a value at the sizes of the analysis, None when its rank is unknown.

    `dynamic` holds the names of values some axis of which may differ from run to run, with those axes; `integers` the
    small tensors known element by element; `types` ONNX element types where known; `input_shapes` the shapes taken for
    the graph inputs.
    """

    sizes: dict[str, tuple[int, ...] | None]
    dynamic: dict[str, frozenset[int]]
    integers: dict[str, IntTensor]
    types: dict[str, int]
    input_shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)

    def is_dynamic(self, name: str, axis: int) -> bool:
        """Say whether an axis of a value may differ from run to run."""
        return axis in self.dynamic.get(name, ())


# Other sizes to try for dynamic axes when the usual ones leave shapes unknown or tensors empty.
LENGTHS = (48, 576, 4096)


def concrete_shapes(
    flat: Flat,
    bare: onnx.ModelProto,
    input_shapes: Mapping[str, Sequence[int]] | None = None,
    lengths: Sequence[int | None] = (None, *LENGTHS),
) -> Shapes:
    """Determine the shape of every value of a flat graph.

    `bare` is the skeleton of `flat`. `input_shapes` gives sizes for dynamic axes by input name; a fixed axis must be
    given its own size. Where usual sizes do not suit the model, others are tried, in the order of `lengths`.
    Raises `OptionError` for an unknown input or a contradiction, `ModelError` when shape inference fails.
    """
    best: tuple[int, Shapes] | None = None
    for length in lengths:
        copy = onnx.ModelProto()
        copy.CopyFrom(bare)
        shapes = _shapes_at(flat, copy, input_shapes, length)
        gaps = _gaps(flat, shapes)
        if best is None or gaps < best[0]:
            best = gaps, shapes
        if not gaps or not shapes.input_shapes:
            break
    assert best is not None
    _bounded(best[1])
    return best[1]


MAX_AXIS = 1 << 24
MAX_ELEMENTS = 1 << 26


def _bounded(shapes: Shapes) -> None:
    """Refuse an axis with more indices than can be followed one by one."""
    for name, size in shapes.sizes.items():
        if size and max(size) > MAX_AXIS:
            raise ModelError(f"value {name!r} has the shape {list(size)}; axes of up to {MAX_AXIS} are followed")


def _gaps(flat: Flat, shapes: Shapes) -> int:
    """Count the values of unknown shape, or without elements."""
    sizes = (shapes.sizes.get(name) for node in flat.nodes for name in node.output if name)
    return sum(size is None or 0 in size for size in sizes)


def _shapes_at(
    flat: Flat, bare: onnx.ModelProto, input_shapes: Mapping[str, Sequence[int]] | None, length: int | None
) -> Shapes:
    graph = bare.graph
    initializers = {t.name for t in graph.initializer}
    inputs = [v for v in graph.input if v.name not in initializers]
    symbols, chosen = _choose_sizes(inputs, dict(input_shapes or {}), length)
    has_dynamic = bool(symbols) or any(not _static(v) for v in inputs)
    dynamic: dict[str, frozenset[int]] = {}
    if has_dynamic:
        dynamic = _dynamic_axes(bare)
        for value in inputs:
            _set_shape(value, chosen[value.name])
        for value in [*graph.value_info, *graph.output]:
            _specialise(value, symbols)
    _weights_as_inputs(graph)
    # What the operators give counts; what is declared of an output stands only where they do not say.
    declared = {value.name: shape_of(value) for value in graph.output}
    for value in graph.output:
        if value.type.HasField("tensor_type"):
            value.type.tensor_type.ClearField("shape")
    try:
        inferred = _inferred(bare, data_prop=has_dynamic)
    except Exception as error:  # onnx raises several unrelated types here
        raise ModelError(f"shape inference fails on the model: {_first_line(error)}") from error
    sizes: dict[str, tuple[int, ...] | None] = {}
    for value in [*inferred.value_info, *inferred.output, *inferred.input]:
        sizes[value.name] = shape_of(value)
    for name, tensor in flat.tensors.items():
        sizes[name] = tuple(tensor.dims)
    known = known_integers(flat)
    for node in flat.nodes:
        if node.op_type == "Constant" and node.output[0] in known:
            sizes[node.output[0]] = known[node.output[0]].shape
    dynamic.update((name, ALL_AXES) for name in flat.varying)
    types = types_of(inferred)
    propagate(bare, sizes, known, types)
    untold = {name: shape for name, shape in declared.items() if sizes.get(name) is None and shape is not None}
    if untold:
        sizes.update(untold)
        propagate(bare, sizes, known, types)
    elements = {n: t.tensor_type.elem_type for n, t in types.items() if t.HasField("tensor_type")}
    return Shapes(sizes, dynamic, known, elements, {n: tuple(s) for n, s in chosen.items()} if has_dynamic else {})


def disbelieve(
    flat: Flat,
    bare: onnx.ModelProto,
    input_shapes: Mapping[str, Sequence[int]] | None,
    known: Sequence[onnx.ValueInfoProto] = (),
) -> None:
    """Forget the shapes declared for values between nodes that are not those the operators give.

    onnxruntime passes over them with a warning. The flat view and its skeleton `bare` forget, the model keeps what it
    says. `known` are values whose shapes were seen; `bare` gains them.
    """
    declared = flat.value_info
    del bare.graph.value_info[:]
    bare.graph.value_info.extend(known)
    if declared:
        found = concrete_shapes(flat, bare, input_shapes)
        symbols = {
            d.dim_param: n
            for value in bare.graph.input
            for d, n in zip(value.type.tensor_type.shape.dim, found.sizes.get(value.name) or (), strict=False)
            if d.dim_param
        }
        flat.value_info = [v for v in declared if not _contradicts(v, found.sizes.get(v.name), symbols)]
        bare.graph.value_info.extend(flat.value_info)


def _contradicts(value: onnx.ValueInfoProto, size: tuple[int, ...] | None, symbols: Mapping[str, int]) -> bool:
    if size is None or not value.type.HasField("tensor_type") or not value.type.tensor_type.HasField("shape"):
        return False
    dims = value.type.tensor_type.shape.dim
    declared = [d.dim_value if _is_fixed(d) else symbols.get(d.dim_param) for d in dims]
    return len(declared) != len(size) or any(d not in (None, n) for d, n in zip(declared, size, strict=True))


def _choose_sizes(
    inputs: Sequence[onnx.ValueInfoProto], given: dict[str, Sequence[int]], length: int | None
) -> tuple[dict[str, int], dict[str, list[int]]]:
    """Give every symbol a size, and every input a full shape."""
    by_name = {v.name: v for v in inputs}
    for name in given:
        if name not in by_name:
            raise unknown_name("graph input", name, by_name)
    symbols: dict[str, int] = {}
    chosen: dict[str, list[int]] = {}
    for value in inputs:
        if not value.type.HasField("tensor_type"):
            chosen[value.name] = []
            continue
        tensor = value.type.tensor_type
        dims = tensor.shape.dim
        wish = given.get(value.name)
        if wish is not None and len(wish) != len(dims):
            raise OptionError(f"input {value.name!r} has {len(dims)} axes; the shape given has {len(wish)}")
        shape = []
        for k, d in enumerate(dims):
            if _is_fixed(d):
                size = d.dim_value
                if wish is not None and wish[k] != size:
                    raise OptionError(f"axis {k} of input {value.name!r} is fixed at {size}; {wish[k]} was given")
            elif wish is not None:
                size = int(wish[k])
                if size < 1 or symbols.get(d.dim_param, size) != size:
                    where = f"axis {k} of input {value.name!r}"
                    raise OptionError(f"{where}: {size} contradicts another axis of that name, or is below 1")
            else:
                size = symbols.get(d.dim_param) or _default_size(k, dims, tensor.elem_type, length)
            if d.dim_param:
                symbols[d.dim_param] = size
            shape.append(size)
        chosen[value.name] = shape
    return symbols, chosen


def _default_size(
    axis: int, dims: Sequence[onnx.TensorShapeProto.Dimension], elem_type: int, length: int | None
) -> int:
    """Pick a size for a dynamic axis: one sample; images keep a multiple of 32 on their spatial axes."""
    rank = len(dims)
    is_state = rank == 3 and axis == 1 and dims[0].dim_value > 1 and _is_fixed(dims[2])
    if axis == 0 or is_state:
        return 1
    if rank >= 4 and axis >= 2 and elem_type in (1, 10, 11, 16):
        return length or 224
    return length or 16


def _dynamic_axes(bare: onnx.ModelProto) -> dict[str, frozenset[int]]:
    """Find which axes shape inference cannot fix before sizes are chosen."""
    try:
        graph = _inferred(bare, data_prop=True)
    except Exception as error:
        raise ModelError(f"shape inference fails on the model: {_first_line(error)}") from error
    found: dict[str, frozenset[int]] = {}
    for value in [*graph.input, *graph.value_info, *graph.output]:
        if value.type.HasField("tensor_type") and value.type.tensor_type.HasField("shape"):
            dims = value.type.tensor_type.shape.dim
            found[value.name] = frozenset(k for k, d in enumerate(dims) if not _is_fixed(d))
    for node in bare.graph.node:
        for name in node.output:
            found.setdefault(name, ALL_AXES)
    return found


def _inferred(bare: onnx.ModelProto, *, data_prop: bool) -> onnx.GraphProto:
    with watched("onnx has been inferring shapes"):
        return shape_inference.infer_shapes(bare, data_prop=data_prop).graph


def _static(value: onnx.ValueInfoProto) -> bool:
    dims = value.type.tensor_type.shape.dim
    return all(_is_fixed(d) for d in dims)


def _is_fixed(d: onnx.TensorShapeProto.Dimension) -> bool:
    """Say whether a dimension is a number; some exporters write -1 for a dynamic one."""
    return bool(d.HasField("dim_value") and d.dim_value > 0)


def _set_shape(value: onnx.ValueInfoProto, shape: Sequence[int]) -> None:
    for d, size in zip(value.type.tensor_type.shape.dim, shape, strict=False):
        d.dim_value = size


def _specialise(value: onnx.ValueInfoProto, symbols: Mapping[str, int]) -> None:
    if not value.type.HasField("tensor_type") or not value.type.tensor_type.HasField("shape"):
        return
    for d in value.type.tensor_type.shape.dim:
        if d.HasField("dim_param"):
            if d.dim_param in symbols:
                d.dim_value = symbols[d.dim_param]
            else:
                d.Clear()
        elif d.dim_value < 0:
            d.Clear()


def _weights_as_inputs(graph: onnx.GraphProto) -> None:
    """Declare initializers without data as graph inputs, so that inference sees their shapes."""
    kept = [t for t in graph.initializer if has_data(t)]
    declared = {v.name for v in graph.input}
    for t in graph.initializer:
        if not has_data(t) and t.name not in declared:
            graph.input.add().CopyFrom(onnx.helper.make_tensor_value_info(t.name, t.data_type, list(t.dims)))
    del graph.initializer[:]
    graph.initializer.extend(kept)


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
