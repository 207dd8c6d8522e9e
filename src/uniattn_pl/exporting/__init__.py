"""Export of a run's model as an ordinary Hugging Face folder, with or without the need for this package."""

from uniattn_pl.exporting.export import export

__all__ = ["export"]
