"""From a source to a model and its tokenizer, whatever the size and whoever wrote the folder."""
