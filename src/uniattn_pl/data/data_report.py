"""The counts of rows and tokens that were read, used and left out, printed before training and logged with the run."""

from __future__ import annotations

from dataclasses import asdict, dataclass

from uniattn_pl.config.sections.data_section import CHAT, PAPER


@dataclass(frozen=True)
class DataReport:
    """Counts of one data set after reading, splitting and tokenising.

    Args:
        source: the data source.
        format: its row format.
        rows_read: records found, in all sources.
        skipped: bad rows left out (`on_bad_row: skip`).
        filtered: conversations left out because the prompt has no place for them or nothing is answered; empty texts.
        train_rows, validation_rows: rows of the split.
        train, validation: sequences left of them after `dropped`.
        max_length: limit in tokens.
        truncated: sequences cut to `max_length`.
        dropped: rows, training and validation, left out because their prompt alone fills `max_length`.
        ambiguous: validation rows whose answer is not checked because two choices begin with the same token.
        overlap: validation rows whose prompt is also a training row's.
        tokens: training tokens, prompt and response.
        response_tokens: training tokens that carry the loss.
        validation_response_tokens: the same of the validation rows.
        longest: tokens of the longest sequence.
        special_text: rows with the text of a special token, which stays text.
        special_tokens: rows in which the tokenizer makes real special tokens of such text all the same.
        dropped_train: how many of `dropped` are training rows.
        template: what rows are put into, as in the config.
        refused: rows that the chat template does not take (`on_bad_row: skip`).
        shortened: chats cut between turns, to `max_length`.
        turns_cut: turns that they lost.
        open_answers: chats whose last learned turn ends in no special token.
        packs: sequences of at most `max_length` that the training rows are packed into; 0: not packed.
    """

    source: str
    format: str
    rows_read: int
    skipped: int
    filtered: int
    train_rows: int
    validation_rows: int
    train: int
    validation: int
    max_length: int
    truncated: int
    dropped: int
    ambiguous: int
    overlap: int
    tokens: int
    response_tokens: int
    validation_response_tokens: int
    longest: int
    special_text: int = 0
    special_tokens: int = 0
    dropped_train: int = 0
    packs: int = 0
    template: str = PAPER
    refused: int = 0
    shortened: int = 0
    turns_cut: int = 0
    open_answers: int = 0

    @property
    def mean_length(self) -> float:
        """Tokens of a training sequence on average."""
        return self.tokens / max(1, self.train)

    def to_dict(self) -> dict[str, str | int]:
        """Return the counts by name, as they are logged."""
        return asdict(self)

    def lines(self) -> list[str]:
        """Return the lines for the console: what was used, then whatever was lost."""
        lines = [
            f"data: {self.source} ({self.format}{self._in_template()}), {self.rows_read:,} rows read, "
            f"{self.train_rows:,} train, {self.validation_rows:,} validation",
            f"tokens: {self.tokens:,} train ({self.response_tokens:,} in responses), {self.mean_length:.0f} a sequence "
            f"on average, {self.longest} at most",
        ]
        if self.packs:
            full = self.tokens / (self.packs * self.max_length)
            lines.append(
                f"packing: {self.train:,} rows in {self.packs:,} sequences of {self.max_length} tokens, {full:.1%} full"
            )
        losses = (
            (self.skipped, "bad rows skipped"),
            (self.filtered, self._filtered_because()),
            (self.refused, "rows left out because the chat template does not take them"),
            (self.shortened, f"chats cut between turns at {self.max_length} tokens, {self.turns_cut:,} turns in all"),
            (self.truncated, f"sequences cut at {self.max_length} tokens"),
            (self.dropped, self._dropped_because()),
            (self.ambiguous, "validation answers not checked: two choices begin with the same token"),
            (self.overlap, "validation rows have the prompt of a training row"),
            (self.special_text, "rows hold the text of a special token, which stays text"),
            (self.open_answers, "chats end in no special token: the template does not say where an answer ends"),
            (self.special_tokens, "rows hold the text of a special token, which this tokenizer turns into the token"),
        )
        return lines + [f"{count:,} {description}" for count, description in losses if count]

    def _in_template(self) -> str:
        return "" if self.template == PAPER else f", template {self.template}"

    def _filtered_because(self) -> str:
        if self.template == PAPER:
            return (
                "rows left out (conversations of more than one round or with an empty turn, empty texts, pairs of "
                "equals); "
                f"data.template={CHAT} takes conversations whole"
            )
        return "rows left out (conversations in which the assistant says nothing, empty texts, pairs of equals)"

    def _dropped_because(self) -> str:
        train, validation = self.dropped_train, self.dropped - self.dropped_train
        return (
            f"rows dropped ({train:,} train, {validation:,} validation): the prompt alone has {self.max_length} tokens "
            "or more (data.max_length)"
        )
