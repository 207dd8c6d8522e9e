"""Sequences of which several spans carry the loss, wherever labels are read; old rows keep their digests."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tests.data.conftest import byte_tokenizer
from tests.data.test_encoder_rows import ROW, SHORT, tokenizer_of
from tests.tiny_models import converted, tokens

from uniattn_pl.data import (
    Collator,
    EncodedRows,
    PackCollator,
    PackedRows,
    Row,
    ScoredSpans,
    embedded_rows,
    encode_rows,
)
from uniattn_pl.evaluation.compressed import compressed_response_loss
from uniattn_pl.evaluation.held_out import held_out_metrics
from uniattn_pl.evaluation.served_held_out import served_held_out

LENGTHS = torch.tensor([9, 4, 7])
SPANS = ScoredSpans(torch.tensor([[2, 4], [6, 9], [0, 3], [1, 2], [5, 6]], dtype=torch.int32), torch.tensor([2, 1, 2]))
LEARNED = ([2, 3, 6, 7, 8], [0, 1, 2], [1, 5])


def chats() -> EncodedRows:
    return EncodedRows(torch.arange(10, 10 + int(LENGTHS.sum()), dtype=torch.int32), LENGTHS, SPANS)


def test_labels_lie_on_the_spans_and_nowhere_else():
    rows = chats()
    examples = [rows[index] for index in range(3)]
    batch = Collator(pad_id=0, with_choices=True)(examples)
    for labels, ids, learned in zip(batch["labels"], batch["input_ids"], LEARNED, strict=True):
        assert (labels != -100).nonzero().flatten().tolist() == learned
        assert torch.equal(labels[learned], ids[learned])
    assert batch["answer_position"].tolist() == [1, -1, 0]
    assert rows.response_tokens == 10
    blanks = Collator(pad_id=0)([example.blank() for example in examples])
    assert (blanks["labels"] == -100).all()
    assert torch.equal(blanks["input_ids"], batch["input_ids"])


def test_labels_lie_on_the_spans_of_each_row_in_a_pack():
    rows = chats()
    packs = PackedRows(rows, 20, seed=0)
    [pack] = [packs[index] for index in range(len(packs))]
    batch = PackCollator(pad_id=0)([pack])
    starts = (batch["position_ids"][0] == 0).nonzero().flatten().tolist()
    expected = {start + place for row, start in zip(batch["rows"][0].tolist(), starts, strict=True)
                for place in LEARNED[row] if place > 0}  # fmt: skip
    assert set((batch["labels"][0] != -100).nonzero().flatten().tolist()) == expected


def test_rows_of_the_papers_prompt_keep_the_digests_of_former_versions():
    rows = [*embedded_rows(4), Row("", "", "It rains. " * 40), Row("Say why.", "", "Because.", continues=True)]
    digests = [encode_rows(rows, byte_tokenizer(bos=bos), 600, with_choices=True).contents for bos in (False, True)]
    assert digests == ["587f095c97535b8b", "8ef637a1dce91d50"]
    assert encode_rows([ROW, SHORT], tokenizer_of(byte_tokenizer), 512).contents == "78ddf94a945ad914"


def test_spans_are_part_of_the_contents():
    one = chats()
    other = EncodedRows(one.tokens, LENGTHS, ScoredSpans(SPANS.bounds.clone(), SPANS.counts))
    assert one.contents == other.contents
    other.spans.bounds[1, 1] = 8
    moved = EncodedRows(one.tokens, LENGTHS, other.spans)
    last = EncodedRows(one.tokens, LENGTHS, ScoredSpans.behind(torch.tensor([6, 0, 5]), LENGTHS))
    assert len({one.contents, moved.contents, last.contents}) == 3


def row(length: int, learned: list[int], seed: int) -> dict[str, torch.Tensor]:
    ids = tokens(1, length, seed=seed)
    labels = torch.full_like(ids, -100)
    labels[:, learned] = ids[:, learned]
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}


ROWS = [row(9, [2, 3, 6, 7], 0), row(6, [0, 1, 2], 1), row(7, [3, 5, 6], 2)]


class Served:
    """What a server would answer, from the model itself."""

    max_length = 100

    def __init__(self, model: Any) -> None:
        self.model = model

    @torch.no_grad()
    def likelihoods(self, pairs: list[tuple[list[int], list[int]]]) -> list[tuple[float, bool]]:
        found = []
        for before, after in pairs:
            ids = torch.tensor([before + after])
            logs = self.model(ids).logits[0].log_softmax(-1)[len(before) - 1 : -1]
            found.append((float(logs.gather(1, ids[0, len(before) :, None]).sum()), False))
        return found


def test_several_responses_are_scored_alike_here_and_behind_a_server():
    model = converted("llama", "uniattn")
    expected = held_out_metrics(model, ROWS)
    found = served_held_out(Served(model), ROWS)  # type: ignore[arg-type]
    assert found.figures["response_loss"].value == pytest.approx(expected.response_loss, abs=1e-5)
    assert [detail["tokens"] for detail in found.details] == [4, 2, 3]


def test_several_responses_are_scored_behind_a_compressed_prompt():
    model, rows = converted("llama", "uniattn"), [ROWS[0], ROWS[2]]
    expected = held_out_metrics(model, rows)
    whole = compressed_response_loss(model, rows, 1.0)
    assert whole.response_loss == pytest.approx(expected.response_loss, abs=1e-5)
    assert whole.tokens == expected.tokens == 7
