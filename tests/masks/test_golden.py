"""Every reference case of the mask families: one test per case, one function per family.

Where the references disagree with each other, the case says so by the arguments it passes: neural-compressor and the
saliency pruner round down, torch.ao's data sparsifier spares no last block.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

import onnxprune
from onnxprune.masks import Blocks, NofM, Rule, Schedule, Transposable, keep_masks, parse_pattern
from onnxprune.masks.two_four import eligible_2_4, pack_2_4

from .golden import Case, Golden, folder

ROOT = folder()
if ROOT is None:
    pytest.skip("no golden data: set ONNXPRUNE_GOLDEN", allow_module_level=True)
GOLDEN = Golden(ROOT)
CHECKS = ("exact", "count", "adopt", "value")
# Masks that need calibration data, and physical removal, are tested where they are made.
OTHERS = ("wanda", "sparsegpt", "structured.")
CASES = [c for c in GOLDEN.cases if c["check"] in CHECKS and not c["family"].startswith(OTHERS)]

FAMILIES: dict[str, Callable[[Case], None]] = {}


def family(*names: str) -> Callable[[Callable[[Case], None]], Callable[[Case], None]]:
    def file(check: Callable[[Case], None]) -> Callable[[Case], None]:
        FAMILIES.update(dict.fromkeys(names, check))
        return check

    return file


@pytest.mark.parametrize("case", CASES, ids=[c["id"] for c in CASES])
def test_case(case: Case) -> None:
    FAMILIES[case["family"]](case)


def test_there_are_cases_of_every_family() -> None:
    assert {c["family"] for c in CASES} == set(FAMILIES)


def weight(case: Case) -> np.ndarray:
    return GOLDEN.inputs(case)["W"]


def expected(case: Case, name: str = "mask") -> np.ndarray:
    return GOLDEN.masks(case)[name]


def block_mask(case: Case, min_keep: int = 1) -> np.ndarray:
    p = case["params"]
    rows, columns = p.get("sparse_block_shape", (1, 4))
    return onnxprune.keep_mask(
        weight(case),
        f"{rows}x{columns}",
        p.get("sparsity_level", 0.5),
        p.get("zeros_per_block"),
        norm=p.get("norm", "l2"),
        min_keep=min_keep,
    )


@family("torchao.weight_norm", "torchao.weight_norm.count")
def weight_norm(case: Case) -> None:
    np.testing.assert_array_equal(block_mask(case), expected(case))


@family("torchao.weight_norm.ties")
def weight_norm_ties(case: Case) -> None:
    assert int((~block_mask(case)).sum()) == case["count"]


@family("torchao.weight_norm.error")
def weight_norm_error(case: Case) -> None:
    with pytest.raises(onnxprune.OptionError, match=r"zeros_per_block|unknown norm"):
        block_mask(case)


@family("torchao.data_norm")
def data_norm(case: Case) -> None:
    np.testing.assert_array_equal(block_mask(case, min_keep=0), expected(case))


@family("torchao.nearly_diagonal")
def nearly_diagonal(case: Case) -> None:
    pattern = f"nearly_diagonal({case['params']['nearliness']})"
    if case["check"] == "adopt":
        with pytest.raises(onnxprune.OptionError, match="band"):
            onnxprune.keep_mask(weight(case), pattern)
        return
    np.testing.assert_array_equal(onnxprune.keep_mask(weight(case), pattern), expected(case))


def rows_kept(scores: np.ndarray, case: Case, rule: Rule) -> None:
    kept = Blocks().keep(scores, case["params"]["sparsity_level"], rule=rule)
    np.testing.assert_array_equal(kept, expected(case, "rows"))


@family("torchao.saliency", "torchao.saliency.count")
def saliency(case: Case) -> None:
    rows_kept(onnxprune.unit_scores(weight(case), "l1"), case, Rule(rounding="down", min_keep=0))


@family("torchao.fpgm")
def fpgm(case: Case) -> None:
    criterion = {1: "fpgm_l1", 2: "fpgm"}[case["params"]["dist"]]
    rows_kept(onnxprune.unit_scores(weight(case), criterion), case, Rule(min_keep=0))


@family("inc.nxm")
def inc_blocks(case: Case) -> None:
    p, w = case["params"], weight(case)
    pattern = p["pattern"]
    mask = onnxprune.keep_mask(w, pattern, p["target_sparsity"], rounding=int, min_keep=0)
    np.testing.assert_array_equal(mask, expected(case))
    if w.ndim == 2:
        np.testing.assert_array_equal(
            onnxprune.keep_mask(w, p["pattern"], p["target_sparsity"], rounding=int, min_keep=0), mask
        )


@family("inc.nofm")
def inc_groups(case: Case) -> None:
    p = case["params"]
    pruned, group = (int(part) for part in p["pattern"].split(":"))
    mask = onnxprune.keep_mask(weight(case), f"{group - pruned}:{group}", p["target_sparsity"])
    np.testing.assert_array_equal(mask, expected(case))


@family("inc.ties")
def inc_ties(case: Case) -> None:
    mask = onnxprune.keep_mask(weight(case), case["params"]["pattern"], case["params"]["target_sparsity"])
    assert int((~mask).sum()) == case["count"]


@family("inc.pattern_lock")
def inc_pattern_lock(case: Case) -> None:
    mask = onnxprune.keep_mask(weight(case), case["params"]["pattern"], 0, keep_zeros=True)
    np.testing.assert_array_equal(mask, expected(case))


@family("inc.reduce")
def inc_reduce(case: Case) -> None:
    p = case["params"]
    mask = onnxprune.keep_mask(weight(case), p["pattern"], p["target_sparsity"], reduce=p["reduce"])
    np.testing.assert_array_equal(mask, expected(case))


@family("inc.global.uncapped")
def inc_global(case: Case) -> None:
    p = case["params"]
    scores = {name: np.abs(w) for name, w in GOLDEN.inputs(case).items()}
    masks = keep_masks(scores, p["pattern"], p["target_sparsity"], scope="global")
    assert masks.keys() == case["masks"].keys()
    for name, mask in masks.items():
        np.testing.assert_array_equal(mask, expected(case, name))


@family("inc.scheduler")
def inc_schedule(case: Case) -> None:
    p = case["params"]
    curve = {"linear": "linear", "cube": "late_cubic", "exp": "exponential", "cos": "cosine"}[p["decay"]]
    schedule = Schedule(curve, end=p["target"], steps=p["total"], start=p["init"])
    want = GOLDEN.values(case)["s"]
    np.testing.assert_allclose([schedule(t) for t in range(len(want))], want, rtol=case["rtol"], atol=case["atol"])


@family("torchao.cubic")
def cubic(case: Case) -> None:
    p = case["params"]
    schedule = Schedule("cubic", p["sf"], p["dt"] * p["n"], p["s0"], p["t0"], p.get("initially_zero", False))
    if case["check"] == "adopt":
        levels = [schedule(t) for t in range(0, p["dt"] * p["n"] + 1, p["dt"])]
        assert levels[0] == p["s0"]
        assert levels[-1] == p["sf"]
        assert (np.diff(levels) < 0).all()
        return
    want = GOLDEN.values(case)["s"]
    np.testing.assert_allclose([schedule(t) for t in range(len(want))], want, rtol=case["rtol"], atol=case["atol"])


@family("apex.m4n2_1d")
def apex(case: Case) -> None:
    np.testing.assert_array_equal(onnxprune.keep_mask(weight(case), case["params"]["pattern"]), expected(case))


@family("apex.eligible")
def apex_eligible(case: Case) -> None:
    found = eligible_2_4(case["params"]["shape"], "float32", "asp")
    assert found.eligible is case["eligible"], found.reason


@family("two_four.transposable")
def transposable(case: Case) -> None:
    w = weight(case)
    best = onnxprune.keep_mask(w, "transposable(2:4)")
    np.testing.assert_array_equal(best, expected(case, "optimal"))
    np.testing.assert_allclose(w[best].sum(), case["kept_optimal"], rtol=1e-6)
    greedy = Transposable(2, 4, "greedy").keep(w)
    np.testing.assert_array_equal(greedy, expected(case, "greedy"))
    np.testing.assert_allclose(w[greedy].sum(), case["kept_greedy"], rtol=1e-6)


@family("two_four.cutlass_pack")
def cutlass(case: Case) -> None:
    w = weight(case)
    mask = onnxprune.keep_mask(w, "2:4")
    np.testing.assert_array_equal(mask, expected(case))
    packed = pack_2_4(w, mask)
    np.testing.assert_array_equal(packed.values, GOLDEN.values(case)["values"])
    np.testing.assert_array_equal(packed.metadata, GOLDEN.values(case)["meta_int16"])


@pytest.mark.parametrize("case", [c for c in GOLDEN.cases if c["family"] == "inc.global"], ids=lambda c: c["id"])
def test_global_bounds_keep_the_total(case: Case) -> None:
    """The reference loses what a capped layer may not give; here the others give it, and the total is exact."""
    p = case["params"]
    scores = {name: np.abs(w) for name, w in GOLDEN.inputs(case).items()}
    pattern = parse_pattern(p["pattern"])
    low = min(p["min_per_layer"], p["target_sparsity"])
    masks = keep_masks(
        scores, pattern, p["target_sparsity"], scope="global", max_ratio=p["max_per_layer"], min_ratio=low
    )
    total = sum(m.size for m in masks.values())
    assert sum(int((~m).sum()) for m in masks.values()) == round(p["target_sparsity"] * total)
    for mask in masks.values():
        unit = pattern.zeros if isinstance(pattern, NofM) else 4 if p["pattern"] == "4x1" else 1
        assert low * mask.size <= int((~mask).sum()) <= p["max_per_layer"] * mask.size + unit * 1e-9
