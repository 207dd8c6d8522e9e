"""Analyses of a model under an architecture: attention maps, depth, importance, what compensation repairs."""
