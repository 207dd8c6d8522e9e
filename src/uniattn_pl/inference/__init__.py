"""Using a trained model: generation and its costs."""
