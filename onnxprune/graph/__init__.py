"""Models, their graph as a view, sizes of values, and integer tensors that carry sizes."""
