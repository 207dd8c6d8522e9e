"""Digests of contents: they change with what is said and its order, and with nothing else."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from uniattn_pl.config.sections.data_section import DataConfig
from uniattn_pl.data import Row, load_split
from uniattn_pl.data.row_contents import contents_of
from uniattn_pl.families.catalogue import byte_tokenizer
from uniattn_pl.modeling.loading.model_contents import folder_contents, tokenizer_contents
from uniattn_pl.resilience import known_digests
from uniattn_pl.resilience.identity import TRAINING_ROWS, changes, digests_of, write_items
from uniattn_pl.resilience.known_digests import known_digest

TEXT = st.text(st.characters(codec="utf-8"), min_size=1, max_size=8)
ROWS = st.lists(st.builds(Row, TEXT, TEXT, TEXT), min_size=1, max_size=6)


def digest(rows: Sequence[Row]) -> str:
    return contents_of(rows, "here").digest


@given(rows=ROWS, others=ROWS)
def test_rows_have_the_same_digest_exactly_when_they_are_the_same_in_the_same_order(
    rows: list[Row], others: list[Row]
) -> None:
    assert (digest(rows) == digest(others)) == (rows == others)
    assert digest(rows) == digest(list(rows))


@given(rows=ROWS, data=st.data())
def test_any_change_of_any_row_or_of_their_order_changes_the_digest(rows: list[Row], data: st.DataObject) -> None:
    others = data.draw(st.permutations(rows))
    assert (digest(rows) == digest(others)) == (rows == others)
    place = data.draw(st.integers(0, len(rows) - 1))
    row = rows[place]
    moved = Row(row.instruction + row.input[:1], row.input[1:], row.output)  # the same letters, elsewhere
    longer = Row(row.instruction, row.input, row.output + " ")
    checkable = Row(row.instruction, row.input, row.output, row.output, (row.output,))
    for other in (moved, longer, checkable):
        assert digest([*rows[:place], other, *rows[place + 1 :]]) != digest(rows)
    assert digest(rows[:place] + rows[place + 1 :]) != digest(rows)


@given(rows=ROWS, indent=st.sampled_from([None, 1]), escape=st.booleans())
def test_how_a_file_is_written_says_nothing(
    rows: list[Row], indent: int | None, escape: bool, tmp_path_factory: pytest.TempPathFactory
) -> None:
    said = [{"output": row.output, "instruction": row.instruction, "input": row.input} for row in rows] * 2
    files = [tmp_path_factory.getbasetemp() / name for name in ("a.json", "b.jsonl")]
    files[0].write_text(json.dumps(said, indent=indent, ensure_ascii=escape), encoding="utf-8")
    lines = (json.dumps(dict(reversed(row.items()))) for row in said)
    files[1].write_text("\n".join(lines), encoding="utf-8")
    splits = [
        load_split(DataConfig(source=str(file), validation_size=1, on_bad_row="skip"))
        for file in files
        if all(row.output.strip() and (row.instruction + row.input).strip() for row in rows)
    ]
    assert len({split.train_contents().digest for split in splits}) <= 1
    assert len({split.validation_contents().digest for split in splits}) <= 1


@given(rows=ROWS, others=ROWS)
def test_a_change_is_named_with_the_first_row_in_the_file(
    rows: list[Row], others: list[Row], tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.getbasetemp()
    before = {TRAINING_ROWS: contents_of(rows, "'rows.jsonl'")}
    write_items(before, folder)
    found = changes({TRAINING_ROWS: contents_of(others, "'rows.jsonl'")}, digests_of(before), folder)
    assert bool(found) == (rows != others)
    counts = ((number, others[:number].count(row), rows.count(row)) for number, row in enumerate(others, start=1))
    new = next((number for number, now, before in counts if now > before), None)
    if new is not None:
        assert f"not among the former {len(rows)}, row {new} first" in found[TRAINING_ROWS]


@pytest.mark.parametrize("content", ["", "[]", "{", '{"training_rows": 1}', '{"training_rows": {"place": 1}}', "\xff"])
def test_damaged_items_only_cost_the_name_of_the_row(content: str, tmp_path: Path) -> None:
    (tmp_path / "identity.json").write_text(content, encoding="latin-1")
    now = {TRAINING_ROWS: contents_of([Row("a", "", "b")], "'rows.jsonl'")}
    assert changes(now, {TRAINING_ROWS: "0" * 64}, tmp_path) == {
        TRAINING_ROWS: "the training rows changed (now: 'rows.jsonl')."
    }
    assert changes(now, {}, tmp_path) == {}, "of what was not recorded nothing is known"


def test_a_folder_is_its_weights_config_and_code(tmp_path: Path) -> None:
    def written(**files: str) -> str:
        for name, text in files.items():
            (tmp_path / name.replace("__", ".")).write_text(text)
        return folder_contents(tmp_path).digest

    first = written(model__safetensors="one", config__json='{"a": 1, "b": 2}', README__md="x")
    assert written(config__json='{\n "b": 2, "a": 1, "transformers_version": "9"}', README__md="y") == first
    assert written(config__json='{"a": 1, "b": 3}') != first
    assert written(config__json='{"a": 1, "b": 2}', model__safetensors="two") != first
    assert written(model__safetensors="one", modeling__py="pass") != first


def test_a_tokenizer_is_what_it_does_not_what_a_call_has_left() -> None:
    first, second = byte_tokenizer(), byte_tokenizer()
    second(["a", "bc"], padding=True, truncation=True, max_length=2)
    assert tokenizer_contents(first, "x").digest == tokenizer_contents(second, "y").digest
    second.add_tokens(["new"])
    assert tokenizer_contents(first, "x").digest != tokenizer_contents(second, "x").digest
    second = byte_tokenizer()
    second.eos_token = "a"
    assert tokenizer_contents(first, "x").digest != tokenizer_contents(second, "x").digest


def test_a_file_is_read_again_only_when_it_was_written_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UNIATTN_PL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(known_digests, "SETTLED_S", -1.0)
    read: list[Path] = []
    original = known_digests.file_digest
    monkeypatch.setattr(known_digests, "file_digest", lambda path: read.append(path) or original(path))
    file = tmp_path / "weights"
    file.write_bytes(b"one")
    first = known_digest(file)
    assert (known_digest(file), len(read)) == (first, 1)
    stat = file.stat()
    file.write_bytes(b"two")
    os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))  # the same size and time of writing
    assert known_digest(file) != first
    assert len(read) == 2


def test_a_file_that_was_just_written_is_read_each_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UNIATTN_PL_CACHE", str(tmp_path / "cache"))
    file = tmp_path / "weights"
    for content in (b"one", b"two", b"six"):
        file.write_bytes(content)
        known_digest(file)
    assert not list((tmp_path / "cache").rglob("*.json"))


def test_a_cache_that_cannot_be_written_costs_only_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "cache").write_text("a file where the folder would be")
    monkeypatch.setenv("UNIATTN_PL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(known_digests, "SETTLED_S", -1.0)
    (tmp_path / "weights").write_bytes(b"one")
    assert known_digest(tmp_path / "weights") == known_digest(tmp_path / "weights")
