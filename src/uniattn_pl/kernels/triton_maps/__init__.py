"""Attention whose map is kept for its readers, in Triton: tiles of a prompt's map, and rows of a decoding step's."""
