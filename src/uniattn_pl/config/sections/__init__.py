"""The sections of an experiment file, each a dataclass of its keys."""
