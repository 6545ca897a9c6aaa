"""Distill: tune the weights that stay, by gradients, until the outputs are those of the original again.

torch runs the smaller model and onnxruntime the original. Samples need no labels.
"""

from .run import DISTILL, distill

__all__ = ["DISTILL", "distill"]
