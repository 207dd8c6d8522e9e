"""How attention is computed and its map passed on: the ways there are, and the rule that chooses one."""
