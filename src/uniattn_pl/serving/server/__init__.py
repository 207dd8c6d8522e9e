"""An OpenAI-compatible server over our own generation, and the start of other engines' servers."""
