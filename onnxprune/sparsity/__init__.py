"""Sparsity: weights set to zero by pattern, and files that hold them."""
