"""A converted model where inference really happens: in engines of others, and in a server of our own."""
