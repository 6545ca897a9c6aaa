"""Whether the models of a verification can be run in the memory that there is, asked before it begins."""

from __future__ import annotations

from ..errors import TooLargeError
from ..graph.memory import available_memory
from ..graph.model import Model
from ..graph.sizes import tensor_nbytes, tensors_of
from ..graph.store import whole_bytes

# The largest of the three, the masked twin, is held once as it is and once as onnxruntime lays weights out to compute,
# beside the tensor that is at work. What lies between the layers is small beside the weights where those are many.
TIMES_WEIGHTS = 2.5


def refuse_too_large(original: Model) -> None:
    """Raise `TooLargeError` when running `original` and its masked twin would take more memory than there is."""
    weights = sum(tensor_nbytes(t) for t in tensors_of(original.skeleton.graph) if whole_bytes(t.data_type) is not None)
    needed, available = int(TIMES_WEIGHTS * weights), available_memory()
    if available is not None and needed > available:
        raise TooLargeError(
            f"{original.label}: verifying it takes about {needed / 1e9:.1f} GB of memory, and "
            f"{max(0, available) / 1e9:.1f} GB are available here"
        )
