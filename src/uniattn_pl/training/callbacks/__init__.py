"""Callbacks usable in any Lightning Trainer: one file each, imported from here only when asked for."""
