"""A plugin by which vLLM serves model folders with a layer plan, with the cache that the plan promises."""
