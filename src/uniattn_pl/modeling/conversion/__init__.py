"""From a stock model and a plan to the model that the plan describes, and its Auto classes."""
