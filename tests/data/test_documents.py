"""Plain text: found under any key, and packed one document after another as pre-training reads it."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.data.conftest import byte_tokenizer

from uniattn_pl.config.sections.data_section import DataConfig
from uniattn_pl.data import InstructionDataModule, Row, encode_rows, load_split, read_source
from uniattn_pl.data.token_cache import encode_cached
from uniattn_pl.errors import UserError

TOKENIZER = byte_tokenizer()
SIZES = {"batch_size": 2, "micro_batch_size": 2, "eval_batch_size": 2}


def document(text: str) -> Row:
    return Row("", "", text)


def stream_of(texts: list[str], start: str) -> list[int]:
    """All documents as one text, spelled out: what begins each of them, its bytes, EOS."""
    ids = TOKENIZER.convert_tokens_to_ids
    return [
        token
        for text in texts
        for token in [ids(start), *TOKENIZER(text, add_special_tokens=False)["input_ids"], ids("<eos>")]
    ]


@settings(deadline=None, max_examples=40)
@given(
    st.lists(st.text("abc \u00e9", min_size=1, max_size=40).filter(str.strip), min_size=1, max_size=8),
    st.integers(8, 20),
)
def test_every_token_of_all_documents_is_learned_once_in_sequences_of_one_length(texts: list[str], length: int) -> None:
    encoded = encode_rows([document(text) for text in texts], TOKENIZER, length, pack_documents=True)
    examples = [encoded[index] for index in range(len(encoded))]
    assert {len(example.tokens) for example in examples[:-1]} <= {length}
    assert len(examples[-1].tokens) <= length
    expected = stream_of(texts, "<bos>")
    learned = [
        token for example in examples for a, b in example.spans.tolist() for token in example.tokens[a:b].tolist()
    ]
    assert [expected[0], *learned] == expected
    for former, example in pairwise(examples):
        assert example.tokens[0] == former.tokens[-1], "it begins with what the one before ended with"
    begins = [int(row) for row in encoded.source_rows]
    assert begins == sorted(begins)
    assert begins[0] == 0


def test_where_texts_begin_with_eos_that_of_the_document_before_is_enough() -> None:
    tokenizer = byte_tokenizer()
    tokenizer.bos_token = None
    eos = tokenizer.eos_token_id
    encoded = encode_rows([document("ab"), document("c")], tokenizer, 64, pack_documents=True)
    a, b, c = (tokenizer.convert_tokens_to_ids(letter) for letter in "abc")
    assert encoded.tokens.tolist() == [eos, a, b, eos, c, eos]


def test_rows_with_a_prompt_are_sequences_of_their_own_beside_packed_documents(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("UNIATTN_PL_CACHE", str(tmp_path))
    rows = [document("x" * 30), Row("Say.", "", "Yes."), document("y" * 30)]
    encoded = encode_cached(rows, TOKENIZER, 160, pack_documents=True)
    assert sorted(encoded.text_lengths.tolist())[0] == 64  # both documents, each with BOS and EOS
    assert len(encoded) == 2
    assert encoded.contents == encode_rows(rows, TOKENIZER, 160, pack_documents=True).contents
    assert len(encode_cached(rows, TOKENIZER, 160)) == 3, "kept tokens of the other kind are not taken"


def test_a_text_that_was_cut_into_rows_is_one_document_again_but_for_what_is_held_out(tmp_path: Path) -> None:
    lines = [f"Line {number} " + "of a long text. " * 20 + "\n" for number in range(200)]
    path = tmp_path / "book.txt"
    path.write_text("".join(lines))
    config = DataConfig(source=str(path), validation_size=2, pack_documents=True)
    split, plain = load_split(config), load_split(replace(config, pack_documents=False))
    assert sorted(row.output for row in split.train) == sorted(row.output for row in plain.train)
    assert sorted(row.output for row in split.validation) == sorted(row.output for row in plain.validation)
    ends = [index for index, row in enumerate(split.train) if not row.continues]
    assert 1 <= len(ends) <= 3
    for begin, end in zip([0, *(end + 1 for end in ends)], ends, strict=False):
        assert "".join(row.output for row in split.train[begin : end + 1]) in "".join(lines)


def test_the_module_packs_and_reports_and_knows_that_all_is_plain_text(tmp_path: Path) -> None:
    path = tmp_path / "texts.jsonl"
    path.write_text("".join(json.dumps({"text": f"Text {n}. " * (1 + n % 5)}) + "\n" for n in range(20)))
    config = DataConfig(source=str(path), validation_size=4, pack_documents=True, max_length=32, token_cache=False)
    data = InstructionDataModule(config, TOKENIZER, seed=0, **SIZES)
    report = data.report
    assert data.plain_text
    lengths = sorted({batch["input_ids"].shape[1] for batch in data.train_dataloader()})
    assert lengths[-1] == 32
    assert report.response_tokens == report.tokens - report.train  # the first token of each is context
    with pytest.raises(UserError, match="pack_documents puts plain texts one after another, and 'embedded' has none"):
        InstructionDataModule(DataConfig(pack_documents=True, validation_size=4), TOKENIZER, seed=0, **SIZES).setup()


def test_a_text_is_found_under_its_column(tmp_path: Path) -> None:
    path = tmp_path / "pages.jsonl"
    rows = [{"url": "a", "body": "First.", "id": 1}, {"url": "b", "body": "Second.", "id": 2}]
    path.write_text("\n".join(map(json.dumps, rows)))
    named = read_source(str(path), text_column="body")
    assert [row.output for row in named.rows] == ["First.", "Second."]
    assert all(row.plain for row in named.rows)
    path.write_text("\n".join(json.dumps({"id": row["id"], "body": row["body"]}) for row in rows))
    assert [row.output for row in read_source(str(path), format="text").rows] == ["First.", "Second."]
    with pytest.raises(UserError, match=r"line 1: the key 'bdy' is missing; .*here: body, id. Did you mean"):
        read_source(str(path), text_column="bdy")


def test_the_text_column_of_a_parquet_file_is_read(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = tmp_path / "pages.parquet"
    pq.write_table(pa.table({"content": ["One.", "Two."], "lang": ["en", "en"]}), path)
    assert [row.output for row in read_source(str(path), text_column="content").rows] == ["One.", "Two."]
    with pytest.raises(UserError, match=r"row index 0: the key 'text' is missing; data.text_column .* content, lang"):
        read_source(str(path), format="text")
