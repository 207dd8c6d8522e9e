"""The ids of a prompt are the same wherever it goes, whatever a tokenizer adds before or behind a text."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.data.conftest import byte_tokenizer

from uniattn_pl.config.sections.data_section import DataConfig
from uniattn_pl.data import InstructionDataModule, Row, encode_rows, format_prompt
from uniattn_pl.data.prompt_ids import prompt_ids, text_ids

EOS, BOS = 0, 1
TOKENIZERS = {(bos, eos): byte_tokenizer(bos=bos, eos=eos) for bos in (False, True) for eos in (False, True)}


@pytest.mark.parametrize(("bos", "eos"), TOKENIZERS)
def test_a_prompt_begins_as_the_tokenizer_has_it_and_never_ends_with_eos(bos: bool, eos: bool) -> None:
    tokenizer = TOKENIZERS[bos, eos]
    ids = prompt_ids(tokenizer, "Say why.")
    assert tokenizer("Say why.").input_ids == ids + [EOS] * eos
    assert ids == [BOS] * bos + text_ids(tokenizer, ["Say why."])[0]
    assert prompt_ids(tokenizer, "") == [BOS] * bos


@pytest.mark.parametrize(("bos", "eos"), TOKENIZERS)
def test_a_training_row_is_its_prompt_its_response_and_one_eos(bos: bool, eos: bool) -> None:
    tokenizer = TOKENIZERS[bos, eos]
    row = Row("Say why.", "Rain is wet.", "It is water.")
    example = encode_rows([row], tokenizer, 512)[0]
    prompt = prompt_ids(tokenizer, format_prompt(row.instruction, row.input))
    assert example.tokens[: example.prompt_length].tolist() == prompt
    assert example.tokens[example.prompt_length :].tolist() == [*text_ids(tokenizer, [row.output])[0], EOS]


def test_another_prefix_than_bos_is_the_models_too() -> None:
    """GLM puts two tokens before every text, and names no BOS."""
    from tokenizers import processors

    tokenizer = byte_tokenizer()
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<pad> <bos> $A", special_tokens=[("<pad>", 2), ("<bos>", 1)]
    )
    assert prompt_ids(tokenizer, "b")[:2] == [2, 1]
    assert len(prompt_ids(tokenizer, "b")) == 3


@given(st.lists(st.sampled_from(["<eos>", "<bos>", "<pad>", "<e", "os>", "a", "\n", "é"]), max_size=8).map("".join))
def test_special_tokens_in_a_text_are_its_characters(text: str) -> None:
    tokenizer: Any = TOKENIZERS[True, True]
    ids = prompt_ids(tokenizer, text)
    assert ids[1:] == [*text_ids(tokenizer, [text])[0]]
    assert len(ids) == 1 + len(text.encode())
    assert tokenizer.decode(ids[1:]) == text


def test_rows_with_special_text_are_counted_and_closed_once() -> None:
    rows = [
        Row("What closes a text?", "", "In HTML </p>, here <eos>."),
        Row("<bos>?", "", "Yes."),
        Row("No.", "", "N."),
    ]
    encoded = encode_rows(rows, TOKENIZERS[False, False], 512)
    assert (encoded.counts.special_text, encoded.counts.special_tokens) == (2, 0)
    for index in range(3):
        tokens = encoded[index].tokens.tolist()
        assert tokens.count(EOS) == 1
        assert tokens[-1] == EOS


def test_a_tokenizer_that_cannot_spell_them_out_is_told() -> None:
    class Stubborn:
        """Python code of a tokenizer that knows nothing of `split_special_tokens`."""

        eos_token_id, unk_token_id, bos_token_id = EOS, None, BOS
        all_special_ids, all_special_tokens = [EOS, BOS], ["<eos>", "<bos>"]

        def __call__(self, texts: Any, **_: Any) -> dict[str, Any]:
            single = isinstance(texts, str)
            ids = byte_tokenizer()([texts] if single else texts)["input_ids"]
            return {"input_ids": ids[0] if single else ids}

    encoded = encode_rows([Row("What?", "", "<eos>."), Row("No.", "", "N.")], Stubborn(), 512)  # type: ignore[arg-type]
    assert (encoded.counts.special_text, encoded.counts.special_tokens) == (0, 1)


def test_the_report_says_how_many_rows_hold_special_text(tmp_path: Path) -> None:
    rows = [{"instruction": f"Say {n}.", "input": "", "output": "a <eos> b" if n < 3 else "ab"} for n in range(8)]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    sizes = {"batch_size": 2, "micro_batch_size": 2, "eval_batch_size": 2}
    config = DataConfig(source=str(tmp_path / "rows.jsonl"), validation_size=2, token_cache=False)
    report = InstructionDataModule(config, byte_tokenizer(), seed=0, **sizes).report
    assert "3 rows hold the text of a special token, which stays text" in report.lines()
    assert report.to_dict()["special_text"] == 3
