"""Caches that hold what a plan says, and no more."""
