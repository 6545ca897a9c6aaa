"""Autograd: ONNX models run in torch, so that what comes out can be differentiated by the weights.

torch is an extra and is imported here alone: nothing of this folder is imported before somebody asks for gradients.
"""

from __future__ import annotations

from ..errors import OptionError


def need_torch(what: str) -> None:
    """Raise `OptionError` where torch is not installed; `what` needs it."""
    try:
        import torch
    except ImportError as error:
        raise OptionError(f"{what} needs torch: pip install 'onnxprune[torch]'") from error
    del torch
