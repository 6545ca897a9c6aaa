"""Torch tensors in, torch masks out; both kernels give the same bits. Skipped without torch."""

from __future__ import annotations

import numpy as np
import pytest

import onnxprune
from onnxprune.masks import Rule, keep_masks, masks_from_state_dict, masks_to_state_dict, pack_2_4, parse_pattern

torch = pytest.importorskip("torch")

PATTERNS = [
    "unstructured", "2:4", "1:4", "3:8", "5:6", "7:20", "1x4", "4x1", "3x5", "9x16", "channelx1", "1xchannel", "*x1",
    "1x*", "per_row", "nearly_diagonal(5)", "transposable(2:4)", "4:2:8",
]  # fmt: skip


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("ties", [False, True])
def test_both_kernels_give_the_same_bits(pattern: str, ties: bool) -> None:
    rng = np.random.default_rng(11)
    for shape in ((37, 50), (64, 96), (10, 12, 3, 3)):
        w = rng.integers(-3, 4, shape).astype(np.float32) if ties else rng.standard_normal(shape, dtype=np.float32)
        locked = rng.random(shape) < 0.1
        for norm in ("l1", "l2"):
            for held in (None, locked):
                both = [
                    onnxprune.keep_mask(w, pattern, norm=norm, locked=held, keep_zeros=ties, kernel=kernel)
                    for kernel in ("numpy", "torch")
                ]
                np.testing.assert_array_equal(*both, err_msg=f"{shape} {norm} {held is not None}")


@pytest.mark.parametrize("pattern", ["1x4", "3x5", "8x9", "2:4"])
@pytest.mark.parametrize("reduce", ["mean", "sum", "max"])
@pytest.mark.parametrize("scale", [1.0, 1e-22, 1e22])
def test_both_kernels_agree_on_reductions_and_extreme_scales(pattern: str, reduce: str, scale: float) -> None:
    w = (np.random.default_rng(12).standard_normal((33, 47)) * scale).astype(np.float32)
    sparsity = 0.3
    both = [
        onnxprune.keep_mask(w, pattern, sparsity, norm="l2", reduce=reduce, kernel=kernel)  # type: ignore[arg-type]
        for kernel in ("numpy", "torch")
    ]
    np.testing.assert_array_equal(*both)
    np.testing.assert_array_equal(
        both[0], onnxprune.keep_mask(w.astype(np.float64), pattern, sparsity, norm="l2", reduce=reduce)
    )


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64", "float8_e4m3fn", "float8_e5m2"])
@pytest.mark.parametrize("kernel", ["auto", "numpy", "torch"])
def test_tensors_in_tensors_out(dtype: str, kernel: str) -> None:
    w = torch.randn(6, 8, generator=torch.Generator().manual_seed(1)).to(getattr(torch, dtype)).requires_grad_()
    for pattern in ("unstructured", "2:4", "1x4"):
        keep = onnxprune.keep_mask(w, pattern, kernel=kernel)
        assert keep.dtype == torch.bool
        want = onnxprune.keep_mask(w.detach().float().numpy(), pattern)
        np.testing.assert_array_equal(keep.numpy(), want)
    keep = onnxprune.keep_mask(w, "2:4", locked=torch.ones(6, 8, dtype=torch.bool), kernel=kernel)
    assert not keep.any()


def test_callable_norms_and_refusals() -> None:
    w = torch.tensor([[1.0, -5.0, 3.0, 2.0]])
    for kernel in ("auto", "numpy", "torch"):
        # A norm and a pattern of the caller's own see the caller's library.
        keep = onnxprune.keep_mask(w, norm=lambda t: t.clone().double(), kernel=kernel)
        assert keep.tolist() == [[False, False, True, True]]
    keep = onnxprune.keep_mask(w, lambda scores, _: scores.ge(3))
    assert keep.tolist() == [[False, True, True, False]]
    with pytest.raises(onnxprune.OptionError, match="int8"):
        onnxprune.keep_mask(w.to(torch.int8))
    w[0, 0] = float("nan")
    for kernel in ("numpy", "torch"):
        with pytest.raises(onnxprune.OptionError, match="not finite"):
            onnxprune.keep_mask(w, kernel=kernel)
        assert onnxprune.keep_mask(w, "1:4", allow_nonfinite=True, kernel=kernel).tolist() == [[True] + [False] * 3]


def test_tensors_share_a_global_ranking() -> None:
    rng = np.random.default_rng(13)
    scores = {name: np.abs(rng.standard_normal(shape)) for name, shape in (("a", (6, 8)), ("b", (5, 12)))}
    tensors = {name: torch.from_numpy(value) for name, value in scores.items()}
    for pattern in ("unstructured", "2:4", "1x4"):
        want = keep_masks(scores, pattern, 0.4, scope="global")
        for name, mask in keep_masks(tensors, pattern, 0.4, scope="global").items():
            np.testing.assert_array_equal(mask.numpy(), want[name])
            assert onnxprune.measure(mask, pattern) == onnxprune.measure(want[name], pattern)


@pytest.mark.parametrize(
    ("block", "zeros", "level", "pattern"),
    [((1, 4), 2, 1.0, "2:4"), ((1, 4), 4, 0.5, "1x4"), ((1, 1), 1, 0.5, "unstructured"), ((4, 1), 4, 0.9, "4x1")],
)
def test_masks_are_those_of_weight_norm_sparsifier(
    block: tuple[int, int], zeros: int, level: float, pattern: str
) -> None:
    pruning = pytest.importorskip("torch.ao.pruning")
    torch.manual_seed(3)
    layer = torch.nn.Linear(96, 64)
    model = torch.nn.Sequential(layer)
    dense = layer.weight.detach().clone()
    sparsifier = pruning.WeightNormSparsifier(sparsity_level=level, sparse_block_shape=block, zeros_per_block=zeros)
    sparsifier.prepare(model, [{"tensor_fqn": "0.weight"}])
    sparsifier.step()
    sparsity = None if pattern == "2:4" else level
    keep = onnxprune.keep_mask(dense, pattern, sparsity, norm="l2")
    # FakeSparsity leaves its mask out of the state dict; it is put there as one would.
    place = "0.parametrizations.weight.0.mask"
    found = masks_from_state_dict({**model.state_dict(), place: layer.parametrizations.weight[0].mask})
    np.testing.assert_array_equal(found["0.weight"], keep.numpy())


def test_state_dicts_of_torch_prune_go_there_and_back() -> None:
    from torch.nn.utils import prune

    model = torch.nn.Sequential(torch.nn.Linear(6, 5), torch.nn.ReLU(), torch.nn.Linear(5, 4))
    plain = {name: value.clone() for name, value in model.state_dict().items()}
    masks = {name: onnxprune.keep_mask(plain[name], "1x2").numpy() for name in ("0.weight", "2.weight")}
    for index in (0, 2):
        prune.custom_from_mask(model[index], "weight", torch.from_numpy(masks[f"{index}.weight"]))
    state = model.state_dict()
    keys = list(state)
    found = masks_from_state_dict(state, {"0.weight": (5, 6), "2.weight": (4, 5)})
    assert list(state) == keys
    assert found.keys() == masks.keys()
    made = masks_to_state_dict(plain, masks)
    assert set(made) == set(state)
    model.load_state_dict(made)
    for name, mask in masks.items():
        np.testing.assert_array_equal(found[name], mask)
        np.testing.assert_array_equal(masks_from_state_dict(masks_to_state_dict(plain, masks, "ao"))[name], mask)
    with pytest.raises(onnxprune.DataError, match="has shape"):
        masks_from_state_dict({**state, "0.weight_mask": torch.ones(3, 3)})
    with pytest.raises(onnxprune.DataError, match="zeros and ones"):
        masks_from_state_dict({**state, "0.weight_mask": torch.full((5, 6), 0.5)})


@pytest.mark.parametrize(("dtype", "shape"), [("float16", (64, 192)), ("float16", (96, 64)), ("int8", (48, 256))])
def test_cutlass_form_is_torch_s(dtype: str, shape: tuple[int, int]) -> None:
    conversions = pytest.importorskip("torch.sparse._semi_structured_conversions")
    w = np.rint(np.random.default_rng(14).standard_normal(shape) * 30)
    w = np.where(onnxprune.keep_mask(w, "2:4"), w, 0).astype(dtype)
    values, metadata = conversions.sparse_semi_structured_from_dense_cutlass(torch.from_numpy(w))
    packed = pack_2_4(w)
    np.testing.assert_array_equal(packed.values, values.numpy())
    np.testing.assert_array_equal(packed.metadata, metadata.numpy())


def test_patterns_take_tensors_as_they_are() -> None:
    scores = torch.rand(8, 12, generator=torch.Generator().manual_seed(2))
    for pattern in PATTERNS:
        keep = parse_pattern(pattern).keep(scores, rule=Rule())
        np.testing.assert_array_equal(keep.numpy(), parse_pattern(pattern).keep(scores.numpy()), err_msg=pattern)
