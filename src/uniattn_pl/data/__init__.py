"""Instruction data: sources, the paper's prompt, tokenisation, and the LightningDataModule.

Importing any part of it imports torch and Lightning, so the command line does so inside functions only.
"""

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
