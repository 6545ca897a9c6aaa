"""Teach onnxprune an operator that it does not know: a distance to prototypes, `com.microsoft::CDist`.

The model is a nearest-prototype classifier: random ReLU features, and the squared distance to the mean of every class.
Without a rule everything that touches CDist is frozen. The rule states how its axes relate, and the features can go.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

import onnxprune
from digits_eval import INPUT, calibration_feeds, digits, file_accuracy

SOURCE = Path("prototypes.onnx")
TARGET = Path("prototypes.pruned.onnx")
N_HIDDEN, N_FEATURES = 160, 96


def cdist(op: onnxprune.Op) -> None:
    """a: (m, k)  b: (n, k)  y: (m, n).

    Contract k: a feature that is zero in both adds nothing to the squared distance. Tie m and n.
    """
    a, b, y = op.inputs[0], op.inputs[1], op.outputs[0]
    op.contract(a[1], b[1])
    op.tie(a[0], y[0])
    op.tie(b[0], y[1])
    op.role(b[1], "input")
    op.role(b[0], "output")


def prototype_model() -> onnx.ModelProto:
    """Build the classifier: (batch, 1, 16, 16) images to (batch, 10) negative squared distances."""
    rng = np.random.default_rng(0)
    images, labels = digits("train")
    hidden = rng.standard_normal((256, N_HIDDEN)) / 16
    feature = rng.standard_normal((N_HIDDEN, N_FEATURES)) / np.sqrt(N_HIDDEN)
    features = np.maximum(np.maximum(images.reshape(-1, 256) @ hidden, 0) @ feature, 0)
    prototypes = np.stack([features[labels == label].mean(axis=0) for label in range(10)])
    weights = {"hidden.weight": hidden, "feature.weight": feature, "prototypes": prototypes}
    nodes = [
        helper.make_node("Flatten", [INPUT], ["pixels"], "flatten"),
        helper.make_node("MatMul", ["pixels", "hidden.weight"], ["hidden"], "hidden"),
        helper.make_node("Relu", ["hidden"], ["hidden_relu"], "hidden_relu"),
        helper.make_node("MatMul", ["hidden_relu", "feature.weight"], ["feature"], "feature"),
        helper.make_node("Relu", ["feature"], ["feature_relu"], "feature_relu"),
        helper.make_node(
            "CDist", ["feature_relu", "prototypes"], ["distance"], "cdist", domain="com.microsoft", metric="sqeuclidean"
        ),
        helper.make_node("Neg", ["distance"], ["logits"], "negate"),
    ]
    graph = helper.make_graph(
        nodes,
        "prototypes",
        [helper.make_tensor_value_info(INPUT, TensorProto.FLOAT, ["batch", 1, 16, 16])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 10])],
        [numpy_helper.from_array(array.astype(np.float32), name) for name, array in weights.items()],
        value_info=[helper.make_tensor_value_info("distance", TensorProto.FLOAT, ["batch", 10])],
    )
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10)


def show(when: str) -> set[str]:
    """Print the groups of the model and the reasons given for its frozen axes; return the names of prunable weights."""
    analysis = onnxprune.analyze(onnxprune.load(SOURCE))
    print(when)
    for group in analysis.groups:
        print(f"  {group.id}: {group.size} {group.kind}")
    for locked in analysis.locked:
        print(f"  locked: {locked.initializer} axis {locked.axis}, {locked.reason}")
    return {member.initializer for group in analysis.groups for member in group.members}


def main() -> int:
    """Show what the rule changes, prune with it, and verify."""
    onnx.save(prototype_model(), SOURCE)
    before = show("without a rule")
    # `replace=True` matters only if a later version of onnxprune knows CDist itself.
    onnxprune.op_rule("CDist", domain="com.microsoft", replace=True)(cdist)
    after = show("with the rule")
    if "prototypes" not in after:
        print(f"the rule freed nothing: {sorted(after - before)}", file=sys.stderr)
        return 1

    result = onnxprune.prune(SOURCE, ratio=0.5, include=["feature"])
    onnxprune.save(result.model, TARGET)
    onnxprune.verify(SOURCE, TARGET, plan=result.plan, data=calibration_feeds()).raise_if_failed()
    print(f"verified; accuracy {file_accuracy(SOURCE):.4f} to {file_accuracy(TARGET):.4f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
