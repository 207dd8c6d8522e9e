"""A model as graphs that run without its Python code: ONNX, and torch.export's programs."""
