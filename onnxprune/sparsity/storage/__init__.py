"""Storage: how a sparse weight lies in the file: dense, packed, as a sparse tensor, or dense beside its mask.

    store    model, new contents -> model with these contents, and what became of each tensor
    unpack   packed, sparse or masked tensors -> dense again, exactly

All stores hold the same weights: onnxruntime gives the same outputs, bit for bit.
"""

from .stores import STORES, Stored, StoredTensor, store
from .unpacked import stored_weights, unpack

__all__ = ["STORES", "Stored", "StoredTensor", "store", "stored_weights", "unpack"]
