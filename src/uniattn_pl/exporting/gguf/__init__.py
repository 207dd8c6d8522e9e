"""A model as one GGUF file of llama.cpp's `deci` architecture, whose layers may differ."""
