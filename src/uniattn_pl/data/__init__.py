"""Instruction data: sources, the paper's prompt, tokenisation, and the LightningDataModule.

Each name is imported when it is first used: rows are read and tokenised without Lightning.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from uniattn_pl.lazy_exports import lazy_exports

if TYPE_CHECKING:
    from uniattn_pl.data.collation import Collator
    from uniattn_pl.data.data_module import InstructionDataModule
    from uniattn_pl.data.data_report import DataReport
    from uniattn_pl.data.embedded import embedded_rows
    from uniattn_pl.data.encoded_rows import EncodedRows, Example
    from uniattn_pl.data.encoding import encode_rows
    from uniattn_pl.data.loader import ResumableLoader, epoch_order
    from uniattn_pl.data.packing import PackCollator, PackedRows, pack_rows
    from uniattn_pl.data.prompts import format_prompt
    from uniattn_pl.data.resumed_progress import ResumedProgress
    from uniattn_pl.data.rows import Row
    from uniattn_pl.data.scored_spans import ScoredSpans
    from uniattn_pl.data.sources import SourceRows, read_source
    from uniattn_pl.data.split import load_split
    from uniattn_pl.data.split_rows import Split

__all__ = [
    "Collator",
    "DataReport",
    "EncodedRows",
    "Example",
    "InstructionDataModule",
    "PackCollator",
    "PackedRows",
    "ResumableLoader",
    "ResumedProgress",
    "Row",
    "ScoredSpans",
    "SourceRows",
    "Split",
    "embedded_rows",
    "encode_rows",
    "epoch_order",
    "format_prompt",
    "load_split",
    "pack_rows",
    "read_source",
]

_PLACES = {
    "collation": ("Collator",),
    "data_module": ("InstructionDataModule",),
    "data_report": ("DataReport",),
    "embedded": ("embedded_rows",),
    "encoded_rows": ("EncodedRows", "Example"),
    "encoding": ("encode_rows",),
    "loader": ("ResumableLoader", "epoch_order"),
    "packing": ("PackCollator", "PackedRows", "pack_rows"),
    "prompts": ("format_prompt",),
    "resumed_progress": ("ResumedProgress",),
    "rows": ("Row",),
    "scored_spans": ("ScoredSpans",),
    "sources": ("SourceRows", "read_source"),
    "split": ("load_split",),
    "split_rows": ("Split",),
}
__getattr__, __dir__ = lazy_exports(
    __name__, {name: f"{__name__}.{place}" for place, names in _PLACES.items() for name in names}
)
