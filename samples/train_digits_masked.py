"""Train `digits_masked_ao.onnx` and `digits_masked_prune.onnx`: networks whose rows masked training has zeroed.

Half of the rows of every inner layer are masked, by torch.ao's structured sparsifier in one file and by
torch.nn.utils.prune in the other, and the network is trained on with the masks. Both files keep their full size: that
is what `compact_masked.py` is for. Seeded; half a minute on one core. Needs torch 2.13, onnxscript and scikit-learn.
437 and 439 of the 450 test digits are classified correctly (accuracy 0.9711 and 0.9756), with 16,290 parameters in
67,049 bytes each.

    python samples/train_digits_masked.py
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn
from torch.ao.pruning._experimental.pruner.saliency_pruner import SaliencyPruner
from torch.nn import functional
from torch.nn.utils import parametrize, prune

from digits_eval import digits
from digits_training import export, train

FOLDER = Path(__file__).parent
INNER = ("conv1", "conv2", "hidden")


class Network(nn.Module):
    """(n, 1, 16, 16) images to (n, 10) logits."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 16, 3, padding=1)
        self.conv2 = nn.Conv2d(16, 24, 3, stride=2, padding=1)
        self.hidden = nn.Linear(24 * 4 * 4, 32)
        self.head = nn.Linear(32, 10)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        x = functional.relu(self.conv1(image))
        x = functional.max_pool2d(functional.relu(self.conv2(x)), 2)
        return self.head(functional.relu(self.hidden(x.flatten(1))))


def train_with_ao(model: Network) -> None:
    """Mask rows with torch.ao's structured sparsifier, train on, and write the masks into weights and biases."""
    sparsifier = SaliencyPruner({"sparsity_level": 0.5})
    sparsifier.prepare(model, config=[{"tensor_fqn": f"{name}.weight"} for name in INNER])
    sparsifier.step()
    train(model, *digits("train"), n_epochs=15, learning_rate=2e-3)
    # The sparsifier adds biases in hooks, with the entries of masked rows zero.
    for hook in sparsifier.bias_handles:
        hook.remove()
    for name in INNER:
        layer = model.get_submodule(name)
        keep = layer.parametrizations.weight[0].mask.bool()
        parametrize.remove_parametrizations(layer, "weight", leave_parametrized=True)
        layer.bias = nn.Parameter(torch.where(keep, layer.get_parameter("_bias").detach(), 0.0))


def train_with_prune(model: Network) -> None:
    """Mask rows with torch.nn.utils.prune and train on; it leaves the biases of masked rows alone."""
    for name in INNER:
        prune.ln_structured(model.get_submodule(name), "weight", amount=0.5, n=2, dim=0)
    train(model, *digits("train"), n_epochs=15, learning_rate=2e-3)
    for name in INNER:
        prune.remove(model.get_submodule(name), "weight")


def main() -> None:
    """Train, mask, train on, export, and print the exported models' accuracy."""
    for name, train_masked in (("ao", train_with_ao), ("prune", train_with_prune)):
        torch.manual_seed(0)
        model = Network()
        train(model, *digits("train"), n_epochs=15, learning_rate=4e-3)
        train_masked(model)
        export(model, FOLDER / f"digits_masked_{name}.onnx")


if __name__ == "__main__":
    main()
