"""Rewrite: the only stage that changes a model, in a copy of its own."""
