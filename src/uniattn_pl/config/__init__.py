"""Experiment configs: the schema, loading with includes and overrides, and the checks; none of it imports torch."""

from uniattn_pl.config.load import load_config
from uniattn_pl.config.loaded_config import LoadedConfig
from uniattn_pl.config.schema import ExperimentConfig

__all__ = ["ExperimentConfig", "LoadedConfig", "load_config"]
