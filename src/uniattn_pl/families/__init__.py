"""What a transformers model is made of: which models there are, their parts, their sizes."""
