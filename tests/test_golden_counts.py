"""Soundness is not precision: how many units every core model has, counted from its architecture.

A rule that quietly freezes too much keeps every other test green. The numbers here follow from what the networks are;
the comment at each says how. They need shapes only, so the skeletons without weights are enough.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from click.testing import CliRunner

from onnxprune.axes.analysis import analyze_model
from onnxprune.cli import main
from onnxprune.graph.model import load

ZOO = os.environ.get("ONNXPRUNE_ZOO")
without_zoo = pytest.mark.skipif(ZOO is None, reason="ONNXPRUNE_ZOO names no folder with the zoo's models")

Counts = dict[tuple[str, bool], tuple[int, int]]


def channels(n: int, units: int) -> Counts:
    return {("channels", True): (n, units)}


# {(kind, exact): (groups, units)}
GOLDEN: dict[str, Counts] = {
    # 4 stages tie 64, 128, 256, 512 by their shortcuts; 8 blocks have an inner width, two per stage.
    "timm_resnet18": channels(4 + 8, 960 + 2 * 960),
    # Stem 64; 4 stages 256 to 2048; 16 blocks with two inner widths: 3 of 64, 4 of 128, 6 of 256, 3 of 512.
    "timm_resnet50": channels(1 + 4 + 32, 64 + 3840 + 2 * (3 * 64 + 4 * 128 + 6 * 256 + 3 * 512)),
    # Stem 32, 16 expansions, 7 stages 16 24 32 64 96 160 320, head 1280.
    "timm_mobilenetv2_100": channels(
        1 + 16 + 7 + 1,
        32 + (96 + 2 * 144 + 3 * 192 + 4 * 384 + 3 * 576 + 3 * 960) + 712 + 1280,
    ),
    # Stem and first block are one width of 16; 14 expansions, 8 squeeze widths, 5 more stages, two heads.
    "timm_mobilenetv3_large_100": channels(14 + 8 + 6 + 2, 5000 + 1024 + 432 + 960 + 1280),
    # Stem 32, 16 squeeze widths of a quarter of the block's input, 15 expansions by 6, 7 stages, head 1280.
    "timm_efficientnet_b0": channels(1 + 16 + 15 + 7 + 1, 32 + 380 + 6 * 1488 + 784 + 1280),
    # 58 layers of a bottleneck of 128 and a growth of 32; stem 64; transitions to 128, 256, 512.
    "timm_densenet121": channels(2 * 58 + 1 + 3, 58 * (128 + 32) + 64 + 896),
    # 14 blocks: convolution groups of 16 channels (4, 8, 20, 48 of them), 16 inputs and 16 outputs of each group, one
    # squeeze width; stem 32; 4 stages 64 128 320 768.
    "timm_regnety_008": channels(14 * 3 + 1 + 4, 14 * (16 + 16) + 952 + 32 + 1280)
    | {("groups", True): (14, 1 * 4 + 3 * 8 + 8 * 20 + 2 * 48)},
    # Identity branches tie every stage: 48, 48, 96, 192, 1280.
    "timm_repvgg_a0": channels(5, 1664),
    # 4 stages behind LayerNorm; 18 MLPs of 4 times their stage's width.
    "timm_convnext_tiny": {
        ("channels", False): (4, 96 + 192 + 384 + 768),
        ("features", True): (18, 4 * (3 * 96 + 3 * 192 + 9 * 384 + 3 * 768)),
    },
    # 12 layers, 3 heads of 64; one Reshape to (3 heads head_dim) ties the width of q, k and v.
    "timm_vit_tiny_patch16_224": {
        ("embedding", False): (1, 192),
        ("heads", True): (12, 36),
        ("head_dim", True): (12, 12 * 64),
        ("features", True): (12, 12 * 768),
    },
    # 8 layers of an MLP over tokens (256) and one over channels (2048).
    "timm_mixer_s32_224": {("embedding", False): (1, 512), ("features", True): (16, 8 * (256 + 2048))},
    # Stem 64; 8 fire modules of a squeeze and two expansions of four times its width.
    "tv_squeezenet1_1": channels(1 + 8 * 3, 64 + 320 + 2 * 1280),
    # The backbone as above without its second head; 5 branches of 256, their projection, one more convolution.
    "tv_deeplabv3_mobilenet_v3_large": channels(14 + 8 + 6 + 1 + 5 + 1 + 1, 5000 + 1024 + 432 + 960 + 7 * 256),
    # 7 convolutions between stages (688), C2f stages in the backbone (18 groups) and the neck (20), SPPF, two towers
    # of two convolutions on 3 levels; a softmax runs over the 16 bins of the box regression.
    "ul_yolov8n": channels(7 + 18 + 20 + 2 + 12, 688 + 1296 + 1728 + 384 + 3 * (128 + 160))
    | {("channels", False): (1, 16)},
    # 8 convolutions down, 3 transposed ones, 6 up.
    "hand_unet_concat": channels(8 + 3 + 6, 960 + 224 + 448),
    "hand_unet_concat_dyn": channels(8 + 3 + 6, 960 + 224 + 448),
    # 64, 32, 32, and 16 blocks of 9 channels in front of the pixel shuffle.
    "hand_espcn_pixelshuffle": channels(4, 64 + 32 + 32 + 16),
    # 32, 64 (tied by a shortcut), 128; the linear layer's 256.
    "hand_cnn3d_flatten": channels(3, 32 + 64 + 128) | {("features", True): (1, 256)},
    # One trunk and three inner widths, behind weights that are computed from direction and norm.
    "hand_resnet_weightnorm": channels(4, 4 * 64),
    # 2 layers, 6 heads of 64; q with k, and v, have a width each; MLPs of 1536, a pooler of 384.
    "hf_bert": {
        ("embedding", False): (1, 384),
        ("features", True): (3, 2 * 1536 + 384),
        ("heads", True): (2, 12),
        ("head_dim", True): (4, 4 * 64),
    },
    "hf_distilbert": {
        ("embedding", False): (1, 384),
        ("features", True): (2, 2 * 1536),
        ("heads", True): (2, 12),
        ("head_dim", True): (4, 4 * 64),
    },
    "hf_vit": {
        ("embedding", False): (1, 384),
        ("features", True): (2, 2 * 1536),
        ("heads", True): (2, 12),
        ("head_dim", True): (4, 4 * 64),
    },
    # As BERT; q, k and v come out of one product through a Split.
    "hf_gpt2": {
        ("embedding", False): (1, 384),
        ("features", True): (2, 2 * 1536),
        ("heads", True): (2, 12),
        ("head_dim", True): (4, 4 * 64),
    },
    # 2 layers of 2 key heads, each read by 3 query heads; v is 64 wide; q and k lose both halves of a rotated pair, and
    # the one table of angles ties these 32 pairs across the layers; gated MLPs of 1024.
    "hf_llama_gqa": {
        ("embedding", False): (1, 384),
        ("heads", True): (4, 2 * (2 + 3)),
        ("head_dim", True): (3, 2 * 64 + 32),
        ("features", True): (2, 2 * 1024),
    },
}


@without_zoo
@pytest.mark.parametrize("name", sorted(GOLDEN))
def test_units_of_a_core_model(name: str) -> None:
    analysis = analyze_model(load(Path(ZOO or "") / "exported" / f"{name}.onnx"))
    found: Counts = {}
    for g in analysis.groups:
        n, units = found.get((g.kind, g.exact), (0, 0))
        found[g.kind, g.exact] = n + 1, units + g.width
    assert found == GOLDEN[name]
    assert not analysis.collection.without_rule


@without_zoo
def test_every_core_model_has_a_golden_count() -> None:
    assert set((Path(ZOO or "") / "core.txt").read_text().split()) == set(GOLDEN)


@without_zoo
@pytest.mark.slow
def test_the_command_line_opens_every_model() -> None:
    for path in sorted(Path(ZOO or "").glob("*/**/*.onnx")):
        result = CliRunner().invoke(main, ["inspect", str(path), "--json"])
        assert result.exit_code == 0, f"{path.name}: {result.stderr}"
        assert json.loads(result.stdout)["groups"], path.name
