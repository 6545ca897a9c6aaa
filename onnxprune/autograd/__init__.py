"""Autograd: ONNX models run in torch, so that what comes out can be differentiated by the weights.

torch is an extra and is imported here alone: nothing of this folder is imported before somebody asks for gradients.
"""
