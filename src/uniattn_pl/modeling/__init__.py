"""From a plan to a transformers model: operated attentions, caches, conversion, loading and saving."""
