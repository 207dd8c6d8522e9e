"""What a model is worth: held-out response loss and answer accuracy."""
