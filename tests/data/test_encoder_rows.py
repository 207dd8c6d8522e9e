"""Rows of an encoder-decoder model: the prompt for the encoder, the response for the decoder, padded apart."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from tests.tiny_fit import ROWS
from tests.tiny_seq2seq import stock_seq2seq

from uniattn_pl.config.sections.data_section import DataConfig
from uniattn_pl.data import Collator, InstructionDataModule, Row, encode_rows, format_prompt
from uniattn_pl.data.prompt_ids import decoder_begins, prompt_ids
from uniattn_pl.data.token_cache import encode_cached
from uniattn_pl.errors import UserError
from uniattn_pl.families.encoder_decoder import tell_decoder_start

ROW = Row("Say why.", "Rain is wet.", "Because it is water.")
SHORT = Row("", "Why?", "No.")


def tokenizer_of(make_tokenizer, family: str = "t5", **options: bool):
    """A byte tokenizer of a model of this family, closing texts with EOS as those of encoders do."""
    tokenizer = make_tokenizer(eos=True, **options)
    tell_decoder_start(tokenizer, stock_seq2seq(family).config)
    return tokenizer


def test_the_encoder_reads_the_prompt_as_its_tokenizer_closes_it_and_the_decoder_writes_the_response(make_tokenizer):
    tokenizer = tokenizer_of(make_tokenizer)
    example = encode_rows([ROW], tokenizer, 512)[0]
    prompt = format_prompt(ROW.instruction, ROW.input)
    assert tokenizer.decode(example.source) == prompt + "<eos>"
    assert example.source.tolist() == tokenizer(prompt)["input_ids"] == prompt_ids(tokenizer, prompt)
    assert example.tokens[0] == 0, "T5's decoder begins with its padding token"
    assert tokenizer.decode(example.tokens[1:]) == ROW.output + "<eos>"
    assert example.prompt_length == 1


def test_what_the_tokenizer_puts_before_texts_is_given_to_the_decoder_once(make_tokenizer):
    assert decoder_begins(tokenizer_of(make_tokenizer, "bart", bos=True)) == [2, 1], "as BART: </s> <s>"
    assert decoder_begins(tokenizer_of(make_tokenizer, "t5gemma", bos=True)) == [1], "T5Gemma begins with BOS itself"
    assert decoder_begins(make_tokenizer(bos=True)) is None


def test_a_batch_has_both_paddings_and_labels_on_responses_alone(make_tokenizer):
    tokenizer = tokenizer_of(make_tokenizer)
    rows = encode_rows([ROW, SHORT], tokenizer, 512)
    batch = Collator(tokenizer.pad_token_id)([rows[0], rows[1]])
    assert rows.lengths.tolist() == [len(row.source) + len(row.tokens) for row in (rows[0], rows[1])]
    for ids, mask, texts in (
        ("input_ids", "attention_mask", [row.source for row in (rows[0], rows[1])]),
        ("decoder_input_ids", "decoder_attention_mask", [row.tokens for row in (rows[0], rows[1])]),
    ):
        for number, text in enumerate(texts):
            assert batch[mask][number].tolist() == [1] * len(text) + [0] * (batch[mask].shape[1] - len(text))
            assert batch[ids][number][: len(text)].tolist() == text.tolist()
            assert (batch[ids][number][len(text) :] == tokenizer.pad_token_id).all()
    labels = batch["labels"]
    assert labels.shape == batch["decoder_input_ids"].shape
    for number, row in enumerate((ROW, SHORT)):
        assert tokenizer.decode(labels[number][labels[number] != -100]) == row.output + "<eos>"
    assert int(batch["num_tokens"]) == int(rows.lengths.sum())


def test_labels_give_the_loss_that_the_model_gives_itself(make_tokenizer):
    from uniattn_pl.losses.response_loss import ScoredTokens, summed_response_loss

    model, tokenizer = stock_seq2seq("t5"), tokenizer_of(make_tokenizer)
    rows = [ROW, SHORT]
    encoded = encode_rows(rows, tokenizer, 512)
    batch = Collator(tokenizer.pad_token_id)([encoded[0], encoded[1]])
    batch = {name: value.clamp(max=63) if value.dtype == torch.int64 else value for name, value in batch.items()}
    own = batch["labels"][:, 1:].contiguous()  # in transformers' layout: what the state at t predicts
    expected = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], labels=own).loss
    scored = ScoredTokens.of(batch["labels"])
    for chunked in (False, True):
        found = summed_response_loss(model, batch, scored, chunked=chunked)
        torch.testing.assert_close(found / len(scored.targets), expected, atol=1e-5, rtol=1e-5)


def test_a_source_that_is_too_long_is_dropped_and_a_response_cut(make_tokenizer):
    tokenizer = tokenizer_of(make_tokenizer)
    source = len(encode_rows([ROW], tokenizer, 512)[0].source)
    assert len(encode_rows([ROW], tokenizer, source)) == 1
    assert encode_rows([ROW], tokenizer, source - 1).counts.dropped == 1
    long = replace(ROW, output="word " * 100)
    cut = encode_rows([long], tokenizer, source)
    assert (cut.counts.truncated, len(cut[0].tokens), len(cut[0].source)) == (1, source, source)


def test_kept_tokens_are_those_of_the_layout(make_tokenizer, tmp_path, monkeypatch):
    monkeypatch.setenv("UNIATTN_PL_CACHE", str(tmp_path))
    alone, beside = make_tokenizer(eos=True), tokenizer_of(make_tokenizer)
    first, again = (encode_cached([ROW, SHORT], beside, 512) for _ in range(2))
    decoder = encode_cached([ROW, SHORT], alone, 512)
    assert decoder[0].source is None
    assert [list(map(int, part[1].source)) for part in (first, again)] == [list(map(int, first[1].source))] * 2
    assert first.contents == again.contents != decoder.contents


def test_plain_texts_and_packing_are_refused(make_tokenizer, tmp_path):
    tokenizer = tokenizer_of(make_tokenizer)
    with pytest.raises(UserError, match="plain text"):
        encode_rows([Row("", "", "It rains.")], tokenizer, 512)
    (tmp_path / "rows.jsonl").write_text(ROWS)
    config = DataConfig(source=str(tmp_path / "rows.jsonl"), validation_size=2, packing=True)
    data = InstructionDataModule(config, tokenizer, batch_size=2, micro_batch_size=1, eval_batch_size=2, seed=0)
    with pytest.raises(UserError, match=r"data\.packing=false"):
        data.setup()


def test_a_model_whose_decoder_begins_with_no_known_token_is_refused(make_tokenizer):
    config = stock_seq2seq("bart").config
    config.decoder_start_token_id = None
    with pytest.raises(UserError, match="decoder_start_token_id"):
        tell_decoder_start(make_tokenizer(), config)
