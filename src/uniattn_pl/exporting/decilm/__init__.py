"""A model as a DeciLM folder (`nemotron-nas`), which several serving engines read."""
