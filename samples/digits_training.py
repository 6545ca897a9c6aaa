"""Train a digits classifier and write it as one ONNX file: what the two training scripts have in common."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import torch
from torch import nn
from torch.nn import functional

from digits_eval import INPUT, accuracy


def train(
    model: nn.Module,
    images: np.ndarray,
    labels: np.ndarray,
    *,
    n_epochs: int,
    learning_rate: float,
    batch_size: int = 64,
) -> None:
    """Fit `model` in place, shifting the digits by up to two pixels, eight at a time.

    images: (N, 1, 16, 16) float32. labels: (N,) int64.
    """
    generator = torch.Generator().manual_seed(0)
    x, y = torch.from_numpy(images), torch.from_numpy(labels)
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, weight_decay=0.02)
    n_steps = n_epochs * (len(x) // batch_size)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, learning_rate, total_steps=n_steps)
    model.train()
    for _ in range(n_epochs):
        order = torch.randperm(len(x), generator=generator)
        for step in range(len(x) // batch_size):
            chosen = order[step * batch_size : (step + 1) * batch_size]
            shifts = torch.randint(-2, 3, (batch_size // 8, 2), generator=generator).tolist()
            parts = zip(x[chosen].split(8), shifts, strict=True)
            batch = torch.cat([torch.roll(part, shift, (2, 3)) for part, shift in parts])
            loss = functional.cross_entropy(model(batch), y[chosen], label_smoothing=0.05)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    model.eval()


def export(model: nn.Module, target: Path) -> None:
    """Write `model` to `target` with a dynamic batch axis, and print the accuracy that onnxruntime measures.

    Raises ValueError if the exporter left an Identity node in the graph.
    """
    program = torch.onnx.export(
        model,
        (torch.zeros(2, 1, 16, 16),),
        dynamo=True,
        opset_version=18,
        input_names=[INPUT],
        output_names=["logits"],
        dynamic_shapes={INPUT: {0: torch.export.Dim("batch")}},
        verbose=False,
    )
    proto = without_traces(program.model_proto)
    if any(node.op_type == "Identity" for node in proto.graph.node):
        raise ValueError("the exported graph holds an Identity node, which the sample promises not to have")
    onnx.checker.check_model(proto, full_check=True)
    target.write_bytes(proto.SerializeToString(deterministic=True))
    session = ort.InferenceSession(target, providers=["CPUExecutionProvider"])
    n_parameters = sum(int(np.prod(tensor.dims)) for tensor in proto.graph.initializer)
    print(f"{target.name}: {target.stat().st_size} bytes, {n_parameters} parameters, accuracy {accuracy(session):.4f}")


def without_traces(proto: onnx.ModelProto) -> onnx.ModelProto:
    """Return `proto` without the exporter's stack traces, which are most of a small file and name local paths."""
    for node in proto.graph.node:
        del node.metadata_props[:]
    for value in [*proto.graph.value_info, *proto.graph.input, *proto.graph.output, *proto.graph.initializer]:
        del value.metadata_props[:]
    del proto.graph.metadata_props[:]
    del proto.metadata_props[:]
    return proto


if __name__ == "__main__":
    raise SystemExit("run train_digits_cnn.py or train_digits_transformer.py")
