"""Sources as the `data` section has them read."""

from __future__ import annotations

from typing import Any

from uniattn_pl.config.sections.data_section import DataConfig
from uniattn_pl.data.sources import SourceRows, read_source


def read_configured(config: DataConfig, source: str, **options: Any) -> SourceRows:
    """The rows of a source, whose format is seen from its keys unless `options`, those of `read_source`, say it.

    Raises:
        UserError: as `read_source`.
    """
    common = {
        "split": config.split,
        "on_bad_row": config.on_bad_row,
        "whole_chats": config.whole_chats,
        "roles": config.role_of,
    }
    return read_source(source, **{**common, **options})


def read_own(config: DataConfig, source: str) -> SourceRows:
    """The rows of `data.source`, with its further files, or of `data.validation_source`. Raises as `read_source`."""
    more = (config.more_files or []) if source == config.source else []
    return read_configured(config, source, more_files=more, format=config.format, text_column=config.text_column)
