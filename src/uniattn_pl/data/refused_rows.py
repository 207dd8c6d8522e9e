"""What to tell of rows that a chat template does not take."""

from __future__ import annotations

from uniattn_pl.config.sections.data_section import DataConfig
from uniattn_pl.data.chat_template import ChatTemplate, RefusedChat
from uniattn_pl.data.encoding import RefusedRow
from uniattn_pl.data.sources import SKIPPING
from uniattn_pl.data.split_rows import Split
from uniattn_pl.errors import UserError

WRITTEN_BEFORE = 10_000  # rows that are put into a chat template before a fit starts: some seconds


def refused_row(split: Split, refused: RefusedRow, config: DataConfig, *, validation: bool) -> UserError:
    """What to tell where the chat template does not take a row."""
    place = split.place(refused.number, config.split, validation=validation)
    return UserError(f"{place}: {refused}; {SKIPPING}")


def check_chats(split: Split, template: ChatTemplate, config: DataConfig) -> None:
    """Check that a chat template takes the first rows of a split; of the others a fit says so, before it loads a model.

    Raises:
        UserError: naming the file and the line of a row that it does not take; none where such rows are skipped.
    """
    if config.on_bad_row == "skip":
        return
    for validation, rows in ((False, split.train), (True, split.validation)):
        for number, row in enumerate(rows[:WRITTEN_BEFORE]):
            try:
                if not row.plain:
                    template.learned(row.conversation, continues=row.continues)
            except RefusedChat as refused:
                raise refused_row(split, RefusedRow(number, str(refused)), config, validation=validation) from None
