"""The structured cases of the golden files: what torch.ao prunes, with the outputs it has to give."""

from __future__ import annotations

import importlib.util
import os
import re
import warnings
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from onnxprune.axes.analysis import analyze_model
from onnxprune.compaction import compact
from tests.compact.networks import Array, Network, weights_of
from tests.test_properties import run


def folder() -> Path | None:
    """Find the golden files: where ONNXPRUNE_GOLDEN says, else beside the zoo."""
    named, zoo = os.environ.get("ONNXPRUNE_GOLDEN"), os.environ.get("ONNXPRUNE_ZOO")
    found = Path(named) if named else Path(zoo).parent / "golden" if zoo else None
    return found if found is not None and (found / "golden_loader.py").is_file() else None


def loader() -> ModuleType | None:
    """Import the reader that comes with the files."""
    where = folder()
    if where is None:
        return None
    spec = importlib.util.spec_from_file_location("golden_loader", where / "golden_loader.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)  # the reader leaves its index to be closed
        spec.loader.exec_module(module)
    return module


GOLDEN = loader()
CASES = [c for c in GOLDEN.cases() if c["family"].startswith("structured.")] if GOLDEN is not None else []
without_golden = pytest.mark.skipif(not CASES, reason="ONNXPRUNE_GOLDEN names no folder with golden files")
ACTIVATIONS = {"Hardsigmoid": "HardSigmoid", "ReLU": "Relu"}


def network(case: dict[str, Any], given: dict[str, Array]) -> Network:
    """Build the network that a case describes, with its rows masked; layers are numbered as torch numbers them."""
    names = sorted({int(k.split(".")[0]) for k in given if k != "x"})
    text = case["params"]["layers"]
    net = Network(given["x"].shape)
    first, second = names
    for layer in text.split("-"):
        k = first if not net.nodes else second
        match = re.fullmatch(r"(\w+)(?:\((.*)\))?", layer)
        assert match, layer
        kind, arguments = match[1], match[2] or ""
        weight = given.get(f"{k}.weight")
        assert weight is not None
        if kind == "Linear":
            net.linear(str(k), weight.shape[1], weight.shape[0])
        elif kind == "Conv":
            pad = re.search(r"pad=(\d)", arguments)
            net.conv(str(k), weight.shape[1], weight.shape[0], weight.shape[2], pad=int(pad[1]) if pad else 0)
        elif kind == "AdaptiveAvgPool":
            # Two bins of ceil(n / 2) that overlap where n is odd.
            sizes = [d - 2 for d in given["x"].shape[2:]]
            net.op("AveragePool", kernel_shape=[-(-d // 2) for d in sizes], strides=[d // 2 for d in sizes])
        elif kind == "AvgPool":
            net.op("AveragePool", kernel_shape=[3, 3], strides=[1, 1], pads=[1] * 4, count_include_pad=1)
        elif kind != "none":
            # torch's Hardsigmoid has the slope 1/6.
            net.op(ACTIVATIONS.get(kind, kind), **({"alpha": 1 / 6} if kind == "Hardsigmoid" else {}))
    for name in net.weights:
        net.weights[name] = given[name].copy()
    net.mask_rows(str(first), case["params"]["rows"], prune_bias=case["params"]["prune_bias"])
    return net


@without_golden
@pytest.mark.parametrize("case", CASES, ids=lambda c: c["id"])
def test_structured(case: dict[str, Any]) -> None:
    assert GOLDEN is not None
    given, wanted = GOLDEN.inputs(case), GOLDEN.values(case)
    net = network(case, given)
    model = net.model()
    (before,) = run(model.proto, {"x": given["x"]})
    rtol, atol = case["rtol"], case["atol"]
    np.testing.assert_allclose(before, wanted["y"], rtol=rtol, atol=atol, err_msg="the case is built wrongly")
    result = compact(analyze_model(model))
    (after,) = run(result.model.proto, {"x": given["x"]})
    np.testing.assert_allclose(after, wanted["y"], rtol=rtol, atol=atol)
    rows, params = case["params"]["rows"], case["params"]
    group = result.groups[0]
    first, _, second, _ = (name.split(".")[0] for name in net.weights)
    padded = "pad=1" in params["layers"] or "pad1" in params["layers"]
    constant = "Sigmoid" in params["layers"] or (net.weights[f"{first}.bias"][rows] > 0).any()
    assert group.n_removed == len(rows) - (1 if padded and constant else 0)
    if not padded:
        # torch shrinks these as well, to the same weights.
        found = weights_of(result.model)
        for name in (f"{first}.weight", f"{first}.bias", f"{second}.weight", f"{second}.bias"):
            np.testing.assert_allclose(found[name], wanted[f"new_{name}"], rtol=rtol, atol=atol, err_msg=name)


@without_golden
def test_there_are_structured_cases() -> None:
    assert len(CASES) == 12
