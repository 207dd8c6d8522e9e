"""`uniattn_pl.calibrate`: texts or rows in, a model with fitted compensations and a report out."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import islice
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from uniattn_pl.api.stock_reference import stock_reference
from uniattn_pl.calibration import CalibrationReport
from uniattn_pl.calibration.device_copies import free_share
from uniattn_pl.calibration.layers import Batch, Progress
from uniattn_pl.calibration.streaming import calibrate as calibrate_on_batches
from uniattn_pl.config.sections.calibration_section import HEAD_ALIGNMENTS, INITIALISERS
from uniattn_pl.config.sections.data_section import PAPER, DataConfig
from uniattn_pl.data import Collator, Row, encode_rows
from uniattn_pl.data.chat_template import ChatTemplate
from uniattn_pl.data.row_problems import BadRow
from uniattn_pl.data.rows import detect_format, map_row
from uniattn_pl.errors import UserError, did_you_mean

SHOWN_PROBLEMS = 5
Data = Iterable[str | Mapping[str, Any] | Row]
"""Texts, or rows: dictionaries in any format of docs/data.md."""


def calibrate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    data: Data,
    *,
    held_out: Data | None = None,
    original: PreTrainedModel | None = None,
    initialiser: str = "joint_least_squares",
    ridge: float | str = 1e-2,
    head_alignment: str = "none",
    template: str = PAPER,
    max_length: int = 512,
    batch_size: int = 8,
    progress: Progress | None = None,
) -> CalibrationReport:
    """Fit every W_c of a converted model in closed form, in place, to the error it makes against the original.

    One pass over the data through both models, layer by layer; nothing is trained. Some dozens of rows do: each of
    the d inputs of a W_c should see several tokens.

    Args:
        model: what `apply_architecture` has made of a stock model.
        tokenizer: the model's.
        data: texts, or rows as a file of training data has them (`{"instruction": ..., "input": ..., "output": ...}`,
            `{"prompt": ..., "completion": ...}`, `{"messages": [...]}`; docs/data.md has all), which are put into the
            prompt that a fit would put them into. At least two without `held_out`.
        held_out: of the same kind; the report is measured on it. Default: the last fifth of `data`.
        original: the stock model on the same weights. Default: it is loaded once more from where the model was loaded,
            on the same device and in the same dtype, and given up again.
        initialiser: joint_least_squares (W_c and W_o), least_squares (W_c), theorem37 (the paper's), or zero.
        ridge: of the least squares, relative to the mean diagonal of the Gram matrix, or "auto".
        head_alignment: none, similarity, or output_error: which head of the source serves each head best.
        template: "paper" (Alpaca's prompt), "chat" (the model's own chat template), or a Jinja file.
        max_length: tokens of a sequence at most.
        batch_size: sequences that go through a layer together.
        progress: called with (done, total, what is being done).

    Returns:
        CalibrationReport: per layer the error per token before and after; prints as a table.

    Raises:
        UserError: the model has no W_c, the original cannot be found or is another, or the data cannot be used.

    Example:
        from uniattn_pl.data import embedded_rows

        model, tokenizer = uniattn_pl.load_model("smollm2-135m"), uniattn_pl.load_tokenizer("smollm2-135m")
        uniattn_pl.apply_architecture(model, "uniattn", superblock_size=4, num_superblocks=4)
        report = uniattn_pl.calibrate(model, tokenizer, embedded_rows(8), max_length=1024)
        print(report)
    """
    _check_arguments(model, tokenizer, initialiser, head_alignment, max_length=max_length, batch_size=batch_size)
    fitted_rows, held_out_rows = (
        _rows(data, "data", template),
        [] if held_out is None else _rows(held_out, "held_out", template),
    )
    if held_out is None:
        if len(fitted_rows) < 2:
            raise UserError("data: give at least 2 texts or rows; the report is measured on a part of them.")
        split = len(fitted_rows) - max(1, len(fitted_rows) // 5)
        fitted_rows, held_out_rows = fitted_rows[:split], fitted_rows[split:]
    to_batches = _Batches(tokenizer, template, max_length, batch_size)
    batches, measured = to_batches.of(fitted_rows, "data"), to_batches.of(held_out_rows, "held_out")
    return calibrate_on_batches(
        stock_reference(model) if original is None else original,
        model,
        batches,
        measured,
        initialiser=initialiser,
        ridge=ridge,
        head_alignment=head_alignment,
        device_limit_bytes=free_share(model.device),
        progress=progress,
    )


def _check_arguments(
    model: Any, tokenizer: Any, initialiser: str, head_alignment: str, *, max_length: int, batch_size: int
) -> None:
    """Raise UserError for arguments in the wrong places, and for values that there are not."""
    problems = []
    if not isinstance(model, PreTrainedModel):
        problems.append(f"model: expected a transformers model, got {type(model).__name__}.")
    elif getattr(model, "layer_plan", None) is None:
        problems.append("model: it has no layer plan; convert it first, with uniattn_pl.apply_architecture.")
    if not callable(tokenizer) or isinstance(tokenizer, torch.nn.Module):
        problems.append(
            f"tokenizer: expected the model's tokenizer (uniattn_pl.load_tokenizer), got {type(tokenizer).__name__}."
        )
    for name, value, allowed in (
        ("initialiser", initialiser, INITIALISERS),
        ("head_alignment", head_alignment, HEAD_ALIGNMENTS),
    ):
        if value not in allowed:
            problems.append(
                f"{name}: must be one of {', '.join(allowed)}; got {value!r}.{did_you_mean(str(value), allowed)}"
            )
    for name, number in (("max_length", max_length), ("batch_size", batch_size)):
        if not isinstance(number, int) or number < 1:
            problems.append(f"{name}: must be a whole number of at least 1, got {number!r}.")
    if problems:
        raise UserError(*problems)


def _rows(data: Data, name: str, template: str) -> list[Row]:
    """Read the rows; those that a format's filter leaves out are left out.

    Raises:
        UserError: it is no list of rows, or naming the rows that cannot be read.
    """
    if isinstance(data, str | Mapping) or not isinstance(data, Iterable):
        raise UserError(f"{name}: expected a list of texts or of rows, got one {type(data).__name__}.")
    rows, problems = list[Row](), list[str]()
    for number, entry in enumerate(data):
        try:
            row = entry if isinstance(entry, Row) else _row(entry, whole_chats=template != PAPER)
        except BadRow as error:
            problems.append(f"{name}[{number}]: {error}.")
            continue
        rows += [] if row is None else [row]
    if problems:
        more = len(problems) - SHOWN_PROBLEMS
        shown = list(islice(problems, SHOWN_PROBLEMS))
        raise UserError(*shown, *([f"and {more} more rows of {name} cannot be read."] if more > 0 else []))
    return rows


def _row(entry: str | Mapping[str, Any], *, whole_chats: bool) -> Row | None:
    record = {"text": entry} if isinstance(entry, str) else entry
    return map_row(record, detect_format(record, whole_chats=whole_chats), whole_chats=whole_chats)


class _Batches:
    """Turns rows into batches, the longest first, as a fit does."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, template: str, max_length: int, batch_size: int) -> None:
        self.tokenizer, self.max_length, self.batch_size = tokenizer, max_length, batch_size
        self.template = ChatTemplate.of(DataConfig(template=template), tokenizer)

    def of(self, rows: Sequence[Row], name: str) -> list[Batch]:
        """Raises UserError when nothing is left of the rows."""
        encoded = encode_rows(rows, self.tokenizer, self.max_length, template=self.template)
        if not len(encoded):
            raise UserError(
                f"{name}: of {len(rows)} rows none has anything to learn within max_length={self.max_length}."
            )
        pad = self.tokenizer.pad_token_id
        collate = Collator(int(self.tokenizer.eos_token_id if pad is None else pad))
        order = sorted(range(len(encoded)), key=lambda row: len(encoded[row].tokens), reverse=True)
        parts = (order[start : start + self.batch_size] for start in range(0, len(order), self.batch_size))
        return [collate([encoded[row] for row in part]) for part in parts]
