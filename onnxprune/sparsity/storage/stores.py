"""Write new contents of weights into a model, each in the form that was asked for or, with a reason, dense."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from onnx import helper

from ...errors import OptionError, unknown_name
from ...graph.model import SINGLE_FILE_LIMIT, Model
from ...graph.sizes import tensor_nbytes
from ...rewrite.edited import FIRST_IR_WITH_PRIVATE_INITIALIZERS, Edited
from . import masked, packed, sparse
from .bits import Array, as_bits, filler_of, is_integer
from .form import Form, dense_bytes

Mask = np.ndarray[Any, np.dtype[np.bool_]]

STORES = ("dense", "packed", "sparse", "mask")
_ALIASES = {"coo": "sparse"}


@dataclass(frozen=True)
class StoredTensor:
    """How one tensor lies in the file: `stored` is one of `STORES`, `why` says why it is not the one asked for.

    `bytes_before`: dense, name and dimensions included; `bytes_after`: with all nodes and tensors that stand for it,
    but without what packed tensors of a model share.
    """

    name: str
    stored: str
    bytes_before: int
    bytes_after: int
    why: str = ""


@dataclass(frozen=True)
class Stored:
    """A model with new contents, and one row per tensor in the order of the model.

    `shared_bytes` are the tables and nodes that packed tensors share, 0 without one.
    """

    model: Model
    rows: tuple[StoredTensor, ...]
    shared_bytes: int = 0


def store(model: Model, weights: Mapping[str, Array], how: str, *, keep: Mapping[str, Mask] | None = None) -> Stored:
    """Give a copy of `model` whose tensors named in `weights` have these contents, stored as `how` says.

    `weights`: initializers and values of Constant nodes by flat name, in their stored shape and dtype; integer codes
    hold their zero point where they were pruned. Every zero of floats is written as +0.0. `keep`: for any of them, True
    where an element survived; floats become +0.0 elsewhere. Without it "mask" masks what is zero, or the most frequent
    code.

    "dense" writes in place. "packed" keeps the elements that are not zero (not the zero point) and one bit per element;
    "sparse" (or "coo") keeps them with their positions; both only where that is smaller. "mask" leaves masked elements
    as they were and puts a boolean mask beside them. The source model is not touched; without weights it is the result.

    Raises `OptionError` for an unknown store or tensor, and for contents or masks that do not fit their tensor.
    """
    how = _ALIASES.get(how, how)
    if how not in STORES:
        raise unknown_name("store", how, (*STORES, *_ALIASES))
    keep = keep or {}
    for name in keep:
        if name not in weights:
            raise unknown_name("tensor with new content", name, weights)
    for name in weights:
        maker = next((n for n in model.flat.nodes if name in n.output), None)
        if name not in model.tensors and maker is not None:
            raise OptionError(
                f"{name!r} is given by the node {maker.name or maker.op_type!r} and cannot be written. If it is packed "
                "or sparse, unpack the model first; if it lies in a function, inline that"
            )
        if name not in model.tensors:
            raise unknown_name("initializer or constant", name, model.tensors)
    if not weights:
        return Stored(model, ())
    contents = {}
    for name in model.tensors:
        if name in weights:
            contents[name] = _content(name, model.tensors[name], weights[name], keep.get(name))
    return _Storing(model, how, keep).run(contents)


def opset_of(proto: onnx.ModelProto) -> int:
    """Give the version of the standard operators that a model uses, 0 where it uses none."""
    return max((o.version for o in proto.opset_import if o.domain in ("", "ai.onnx")), default=0)


def _content(name: str, tensor: onnx.TensorProto, array: Array, keep: Mask | None) -> Array:
    """Check new content against its tensor, and give it with true zeros."""
    dtype, shape = helper.tensor_dtype_to_np_dtype(tensor.data_type), tuple(tensor.dims)
    if array.dtype != dtype or array.shape != shape:
        raise OptionError(
            f"new content of {name!r} is {array.dtype} {array.shape}, but it is stored as {dtype} {shape}"
        )
    if keep is not None and (keep.dtype != np.bool_ or keep.shape != shape):
        raise OptionError(f"the mask of {name!r} is {keep.dtype} {keep.shape}; it must be bool {shape}")
    if is_integer(dtype):
        return array
    # onnxruntime's Where gives +0.0 for a kept -0.0, so that stores would differ if there were any.
    is_kept = array != 0 if keep is None else keep & (array != 0)
    return np.where(is_kept, array, np.zeros((), dtype))


class _Storing:
    """One model whose tensors are stored anew."""

    def __init__(self, model: Model, how: str, keep: Mapping[str, Mask]) -> None:
        self.model = model
        self.how = how
        self.keep = keep
        self.opset = opset_of(model.skeleton)
        self.edited = Edited(model)
        self.packer = packed.Packer(self.edited, self.opset)
        self.sparse_bytes = 0
        graph = model.skeleton.graph
        self.inputs = {v.name for v in graph.input}
        self.is_old = model.skeleton.ir_version < FIRST_IR_WITH_PRIVATE_INITIALIZERS

    def run(self, contents: Mapping[str, Array]) -> Stored:
        before = {name: self._dense_bytes(name) for name in contents}
        forms = {name: self._form(name, array, before[name]) for name, array in contents.items()}
        shared_bytes = 0
        if self.how == "packed":
            groups = self._group(contents, forms, before)
            packed_forms = {n: f for n, f in forms.items() if isinstance(f, Form)}
            openings = [self.packer.shared([*groups, *packed_forms.values()]), *groups]
            shared_bytes = sum(f.bytes for f in openings)
            if sum(before[n] - f.bytes for n, f in packed_forms.items()) <= shared_bytes:
                saved = "the packed tensors save less than the tables take that decode them"
                forms.update(dict.fromkeys(packed_forms, saved))
                openings, shared_bytes = [], 0
            for opening in openings:
                self.edited.open_with(opening.nodes)
                for t in opening.tensors:
                    self.edited.add(t)
        rows = tuple(self._write(name, array, forms[name], before[name]) for name, array in contents.items())
        return Stored(self.edited.finish(), rows, shared_bytes)

    def _group(
        self, contents: Mapping[str, Array], forms: dict[str, Form | str], before: Mapping[str, int]
    ) -> list[Form]:
        """Pack small tensors of the main graph together, where that is smaller; gives what decodes each group."""
        alike: dict[tuple[int, bytes], list[str]] = {}
        for name, array in contents.items():
            tensor = self.model.tensors[name]
            is_bare = not tensor.doc_string and not tensor.metadata_props
            is_main = not self.model.flat.tensor_places[name][0]
            if is_main and is_bare and array.size < packed.GROUPED_BELOW and not self._why_not(name):
                alike.setdefault((tensor.data_type, filler_of(array).tobytes()), []).append(name)
        made = []
        for names in alike.values():
            opening, own = self.packer.group({n: contents[n] for n in names})
            worth = [n for n in names if own[n].bytes < before[n]]
            if len(worth) < 2:
                continue
            if len(worth) < len(names):
                opening, own = self.packer.group({n: contents[n] for n in worth})
            alone = sum(f.bytes if isinstance(f := forms[n], Form) else before[n] for n in worth)
            if opening.bytes + sum(f.bytes for f in own.values()) < alone:
                made.append(opening)
                forms.update(own)
        return made

    def _dense_bytes(self, name: str) -> int:
        n_bytes = tensor_nbytes(self.model.tensors[name])
        return dense_bytes(self.edited.local(name), *self._head(name), n_bytes)

    def _head(self, name: str) -> tuple[int, tuple[int, ...]]:
        tensor = self.model.tensors[name]
        return tensor.data_type, tuple(tensor.dims)

    def _form(self, name: str, array: Array, before: int) -> Form | str:
        """Give the form asked for, or the reason for none; the reason is empty where none was asked for."""
        if self.how == "dense":
            return ""
        why = self._why_not(name)
        if why:
            return why
        if self.how == "mask":
            keep = self.keep.get(name)
            if keep is None:
                flat = np.ascontiguousarray(array).reshape(-1)
                keep = (as_bits(flat) != as_bits(filler_of(array))).reshape(array.shape)
            return masked.form(self.edited, name, self.model.array(name), array, keep)
        form = self.packer.form(name, array) if self.how == "packed" else sparse.form(self.edited.local(name), array)
        if form.bytes >= before:
            return f"{self.how} takes {form.bytes} bytes, dense {before}"
        if self.how == "sparse":
            self.sparse_bytes += form.bytes
            if self.sparse_bytes >= SINGLE_FILE_LIMIT:
                return "sparse tensors lie in the model file itself, which has no room left for this one"
        return form

    def _why_not(self, name: str) -> str:
        """Say why a tensor must stay dense, "" if it need not."""
        kind, shape = self._head(name)
        container, place, _ = self.model.flat.tensor_places[name]
        if self.how == "mask":
            if self._is_output(name):
                return "it is an output of its graph, which a mask would leave unmasked"
            why = masked.why_not(kind, self.opset)
        elif place == "initializer" and not container and name in self.inputs and not self.is_old:
            why = "it is an input that may be fed, and would be none if it were computed"
        elif self.how == "packed":
            why = packed.why_not(kind, shape, self.opset)
        elif self._is_output(name):
            why = "it is an output of its graph, which onnxruntime would give as a sparse tensor"
        else:
            why = sparse.why_not(kind, shape, self.opset)
        if not why and self.is_old and container and self.how != "sparse":
            return "bodies cannot hold initializers before IR version 4"
        return why

    def _is_output(self, name: str) -> bool:
        body = self.edited.body(self.model.flat.tensor_places[name][0])
        assert isinstance(body, onnx.GraphProto)
        return any(o.name == self.edited.local(name) for o in body.output)

    def _write(self, name: str, array: Array, form: Form | str, before: int) -> StoredTensor:
        if isinstance(form, str):
            self.edited.write(name, name, array)
            return StoredTensor(name, "dense", before, before, form)
        if form.stored is None:
            carrier, old = form.carrier, self.model.tensors[name]
            if old.doc_string:
                carrier.doc_string = old.doc_string
            carrier.metadata_props.extend(old.metadata_props)
        for tensor in form.tensors:
            self.edited.add(tensor, name)
        if form.stored is None:
            self.edited.compute(name, list(form.nodes))
            return StoredTensor(name, self.how, before, form.bytes)
        if not np.array_equal(as_bits(form.stored), as_bits(np.ascontiguousarray(self.model.array(name)))):
            self.edited.write(name, name, form.stored)
        self.edited.derive(name, list(form.nodes))
        return StoredTensor(name, self.how, before, before + form.bytes)
