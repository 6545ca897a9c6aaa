"""Axes: what rules say about them, and what follows for the whole graph."""
