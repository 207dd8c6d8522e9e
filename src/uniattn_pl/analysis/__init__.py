"""Seeing why an architecture works on a model: attention maps, depth, importance, what compensation repairs."""
