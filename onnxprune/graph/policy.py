"""What is refused when a model is opened, before anything of it is used."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from onnx import external_data_helper

from ..errors import ModelError
from .sizes import tensor_nbytes, tensors_of

if TYPE_CHECKING:
    from .model import Model

_HARDWARE_DOMAINS = ("com.microsoft.nchwc", "com.ms.internal.nhwc")


def refuse_unusable(model: Model) -> None:
    """Refuse a model without a graph, bound to one machine's hardware, or with data where it must not lie."""
    proto = model.skeleton
    if not proto.HasField("graph") or (not proto.graph.node and not proto.graph.output):
        raise ModelError(f"{model.label}: holds no graph; is it an ONNX model?")
    for domain in {node.domain for node in proto.graph.node} & set(_HARDWARE_DOMAINS):
        raise ModelError(
            f"{model.label}: holds operators of {domain!r}, laid out for one machine's hardware. "
            "Export it with onnxruntime's ORT_ENABLE_EXTENDED or lower"
        )
    external_data_contained(model)


def external_data_contained(model: Model) -> None:
    """Refuse external data outside the model's folder (or its resolved target's) or larger than its file.

    Source: onnxruntime's containment check; the sizes are computed here because loaders do not.
    """
    for tensor in tensors_of(model.skeleton.graph):
        name = tensor.name
        if not external_data_helper.uses_external_data(tensor) or model.store.holds(tensor):
            continue
        entries = {e.key: e.value for e in tensor.external_data}
        location = entries.get("location", "")
        if model.path is None:
            raise ModelError(f"tensor {name!r} lies in {location!r}, but the model was not read from a file")
        where = f"{model.path}: external data {location!r} of tensor {name!r}"
        if not location or "\0" in location or Path(location).is_absolute() or ".." in Path(location).parts:
            raise ModelError(f"{where}: the location must be a relative path inside the model's folder")
        target = (model.path.parent / location).resolve()
        homes = {model.path.parent.resolve(), model.path.resolve().parent}
        if not any(target.is_relative_to(home) for home in homes):
            raise ModelError(f"{where}: leads outside the model's folder")
        if not target.is_file():
            raise ModelError(f"{where}: no such regular file")
        try:
            offset, length = int(entries.get("offset", 0)), int(entries.get("length", -1))
        except ValueError:
            raise ModelError(f"{where}: offset and length must be integers") from None
        expected = tensor_nbytes(tensor)
        if offset < 0 or length not in (-1, expected) or offset + expected > target.stat().st_size:
            raise ModelError(f"{where}: {expected} bytes at {offset} are not all there")
