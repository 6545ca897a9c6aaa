"""Torch-Pruning at the same MACs, on two networks that are built anew in torch from the weights of ONNX files.

    python benchmarks/peer_torch.py EVAL_FOLDER MODEL_FOLDER [--targets 0.7,0.5]

`MODEL_FOLDER` holds `fmnist_resnet.onnx`, a ResNet of 3x3 convolutions with their BatchNorm folded in, and
`fmnist_vit.onnx`, a pre-norm ViT with one product for q, k and v; `EVAL_FOLDER` as for `accuracy.py`. First comes how
far the torch network is from the file. Then a row for every importance of Torch-Pruning that needs no labels, local and
global: the ratio is found by bisection, and the part of the score that stays is that of the exported result. Its Python
has onnxprune, torch and torch-pruning.
"""

from __future__ import annotations

import argparse
import importlib
import io
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
import torch_pruning
from onnx import numpy_helper
from torch import Tensor, nn
from torch.nn import functional

import onnxprune

ROUNDS = 7
MOST = 0.95
BLOCKS = {2: 2, 4: 2}
HEADS = 6
IMPORTANCES: dict[str, Callable[[], Any]] = {
    "magnitude": lambda: torch_pruning.importance.GroupMagnitudeImportance(p=2),
    "lamp": lambda: torch_pruning.importance.LAMPImportance(p=2),
    "fpgm": lambda: torch_pruning.importance.FPGMImportance(p=2),
}
Weights = dict[str, Tensor]


def _conv(weights: Weights, name: str, stride: int) -> nn.Conv2d:
    weight = weights[f"{name}.weight"]
    out, into, kernel = weight.shape[:3]
    made = nn.Conv2d(into, out, kernel, stride, kernel // 2)
    made.weight.data, made.bias.data = weight, weights[f"{name}.weight_bias"]  # type: ignore[union-attr]
    return made


def _linear(weight: Tensor, bias: Tensor) -> nn.Linear:
    made = nn.Linear(weight.shape[1], weight.shape[0])
    made.weight.data, made.bias.data = weight.contiguous(), bias
    return made


def _norm(weights: Weights, name: str) -> nn.LayerNorm:
    made = nn.LayerNorm(len(weights[f"{name}.weight"]))
    made.weight.data, made.bias.data = weights[f"{name}.weight"], weights[f"{name}.bias"]
    return made


class _Block(nn.Module):
    def __init__(self, weights: Weights, name: str, stride: int) -> None:
        super().__init__()
        self.first, self.second = _conv(weights, f"{name}.c1", stride), _conv(weights, f"{name}.c2", 1)
        has_conv = f"{name}.sc.0.weight" in weights
        self.shortcut = _conv(weights, f"{name}.sc.0", stride) if has_conv else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return functional.relu(self.second(functional.relu(self.first(x))) + self.shortcut(x))


class ResNet(nn.Module):
    """Stem, six blocks in three stages, mean, linear."""

    def __init__(self, weights: Weights) -> None:
        super().__init__()
        self.stem = _conv(weights, "stem.0", 2)
        self.body = nn.Sequential(*(_Block(weights, f"body.{k}", BLOCKS.get(k, 1)) for k in range(6)))
        self.fc = _linear(weights["fc.weight"], weights["fc.bias"])

    def forward(self, x: Tensor) -> Tensor:
        """Give the logits."""
        return self.fc(self.body(functional.relu(self.stem(x))).mean((2, 3)))


class _Layer(nn.Module):
    def __init__(self, weights: Weights, name: str, products: list[Tensor], scale: float) -> None:
        super().__init__()
        self.scale, self.heads = scale, HEADS
        self.norm1, self.norm2 = _norm(weights, f"{name}.n1"), _norm(weights, f"{name}.n2")
        biases = (weights[f"{name}.{part}.bias"] for part in ("a.qkv", "a.o", "f1", "f2"))
        pairs = zip(products, biases, strict=True)
        self.qkv, self.out, self.up, self.down = (_linear(w.T, b) for w, b in pairs)

    def forward(self, x: Tensor) -> Tensor:
        n, length, _ = x.shape
        qkv = self.qkv(self.norm1(x)).reshape(n, length, 3, self.heads, -1)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        seen = torch.softmax((q * self.scale) @ (k * self.scale).transpose(-1, -2), -1) @ v
        x = x + self.out(seen.transpose(1, 2).reshape(n, length, -1))
        return x + self.down(functional.gelu(self.up(self.norm2(x))))


class ViT(nn.Module):
    """Two strided convolutions, four layers of attention, the class token's linear."""

    def __init__(self, weights: Weights) -> None:
        super().__init__()
        self.patch1, self.patch2 = _conv(weights, "p.0", 2), _conv(weights, "p.3", 2)
        self.token, self.places = nn.Parameter(weights["cls"]), nn.Parameter(weights["pos"])
        # The exporter named the products' weights anew, in the order of the graph; the scale is between them.
        products = [w for n, w in weights.items() if n.startswith("val_") and w.ndim == 2]
        scale = next(float(w) for n, w in weights.items() if n.startswith("val_") and w.shape == (1,) and 0 < w < 1)
        layers = (_Layer(weights, f"b.{k}", products[4 * k : 4 * k + 4], scale) for k in range(len(products) // 4))
        self.layers = nn.Sequential(*layers)
        self.norm, self.fc = _norm(weights, "n"), _linear(weights["fc.weight"], weights["fc.bias"])

    def forward(self, x: Tensor) -> Tensor:
        """Give the logits."""
        x = functional.relu(self.patch2(functional.relu(self.patch1(x)))).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], 1) + self.places
        return self.fc(self.norm(self.layers(x))[:, 0])


def pruned(network: Any, importance: Any, ratio: float, *, globally: bool) -> Any:
    """Have Torch-Pruning take a ratio of every group, or of all, and leave the classes alone."""
    settings: dict[str, Any] = {}
    layers = list(network.layers) if isinstance(network, ViT) else []
    if layers:
        tied = [(network.token, 2), (network.places, 2)]
        heads = {layer.qkv: HEADS for layer in layers}
        settings = {"num_heads": heads, "prune_head_dims": True, "unwrapped_parameters": tied}
    pruner = torch_pruning.pruner.BasePruner(
        network,
        torch.zeros(1, 1, 28, 28),
        importance=importance,
        pruning_ratio=ratio,
        max_pruning_ratio=MOST,
        global_pruning=globally,
        ignored_layers=[network.fc],
        **settings,
    )
    pruner.step()
    for layer in layers:
        layer.heads = pruner.num_heads[layer.qkv]
    return network


def exported(network: nn.Module) -> bytes:
    """Give the network as an ONNX file."""
    sink = io.BytesIO()
    names = {"input_names": ["input"], "output_names": ["logits"]}
    dynamic = {"input": {0: "batch"}, "logits": {0: "batch"}}
    sample = torch.zeros(2, 1, 28, 28)
    torch.onnx.export(network.eval(), (sample,), sink, dynamic_axes=dynamic, opset_version=17, dynamo=False, **names)
    return sink.getvalue()


def _macs(content: bytes) -> float:
    return float(onnxprune.analyze(onnx.load_from_string(content)).cost.macs)


def _rows(name: str, kind: Callable[[Weights], nn.Module], script: Any, path: Path, targets: list[float]) -> None:
    def make() -> nn.Module:
        found = {t.name: torch.tensor(numpy_helper.to_array(t).copy()) for t in onnx.load(path).graph.initializer}
        return kind(found).eval()

    data, feed = script.load(), script.calib(2)[0]
    (wanted,) = onnxruntime.InferenceSession(path).run(None, feed)
    with torch.no_grad():
        given = make()(torch.tensor(next(iter(feed.values()))))
    print(f"{name}: the torch network differs by {float(np.abs(wanted - given.numpy()).max()):.1e}")
    dense, whole = script.score(str(path), data), _macs(exported(make()))
    for target in targets:
        for way, importance in IMPORTANCES.items():
            for scope in ("local", "global"):
                low, high, best = 0.0, MOST, None
                for _ in range(ROUNDS):
                    ratio = (low + high) / 2
                    content = exported(pruned(make(), importance(), ratio, globally=scope == "global"))
                    if _macs(content) > target * whole:
                        low = ratio
                    else:
                        high, best = ratio, content
                if best is None:
                    print(f"{name:16}{target:6} {way:10}{scope:7} does not get there", flush=True)
                    continue
                kept = script.score(best, data) / dense
                print(
                    f"{name:16}{target:6} {way:10}{scope:7} macs {_macs(best) / whole:.3f} kept {kept:.3f}", flush=True
                )


def main() -> None:
    """Run both networks."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("evals", type=Path, help="folder of evaluation scripts")
    parser.add_argument("folder", type=Path, help="folder of models")
    parser.add_argument("--targets", type=lambda t: [float(f) for f in t.split(",")], default=[0.7, 0.5])
    given = parser.parse_args()
    sys.path.insert(0, str(given.evals))
    torch.manual_seed(0)
    for name, kind in (("fmnist_resnet", ResNet), ("fmnist_vit", ViT)):
        script = importlib.import_module(name)
        _rows(name, kind, script, given.folder / f"{name}.onnx", given.targets)


if __name__ == "__main__":
    main()
