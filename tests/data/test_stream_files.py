"""Files and hub data sets as streams: what is held out, found again, refused, and known without reading all."""

from __future__ import annotations

import gzip
import json
import os
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tests.data.conftest import byte_tokenizer

from uniattn_pl.config import load_config
from uniattn_pl.config.sections.data_section import DataConfig, SourceConfig
from uniattn_pl.data.data_module import InstructionDataModule
from uniattn_pl.data.open_rows import data_module, open_rows
from uniattn_pl.data.streaming import hub_shards as hub
from uniattn_pl.data.streaming import row_stream, shards, stream_loader
from uniattn_pl.data.streaming.stream_split import shards_of
from uniattn_pl.errors import UserError
from uniattn_pl.resilience.identity import TRAINING_ROWS, changes, write_items

TOKENIZER = byte_tokenizer()


def row(number: int, shard: int = 0) -> dict[str, Any]:
    return {"instruction": f"Question {shard}.{number}", "input": "", "output": f"Answer {number}."}


def written(folder: Path, kinds: tuple[str, ...] = (".jsonl", ".jsonl.gz", ".jsonl.zst", ".parquet")) -> str:
    """Ten rows in a shard of each kind; a pattern of all of them."""
    folder.mkdir(exist_ok=True)
    for shard, kind in enumerate(kinds):
        rows = [row(number, shard) for number in range(10)]
        text = "\n".join(map(json.dumps, rows)).encode()
        path = folder / f"shard{shard}{kind}"
        if kind == ".parquet":
            pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=3)
        elif kind == ".jsonl.zst":
            with pa.CompressedOutputStream(str(path), "zstd") as file:
                file.write(text)
        else:
            path.write_bytes(gzip.compress(text) if kind.endswith(".gz") else text)
    return str(folder / "shard*")


def config(source: str, **options: Any) -> DataConfig:
    defaults = {"streaming": True, "shuffle_buffer": 7, "validation_size": 4, "max_length": 400, "token_cache": False}
    return DataConfig(source=source, **{**defaults, **options})


def module(found: DataConfig, **options: Any) -> InstructionDataModule:
    sizes = {"batch_size": 4, "micro_batch_size": 2, "eval_batch_size": 4, "seed": 0}
    return data_module(found, TOKENIZER, **{**sizes, **options})


def texts(batches: Any) -> list[str]:
    return [text for batch in batches for text in TOKENIZER.batch_decode(batch["input_ids"])]


def questions(batches: Any) -> list[str]:
    return [text.partition("Instruction:\n")[2].partition("\n")[0] for text in texts(batches)]


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream_loader, "GROUP", 3)
    monkeypatch.setattr(row_stream, "CHUNK", 4)


def test_shards_of_every_kind_are_read_from_any_row_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = shards_of(written(tmp_path / "rows"), "train")
    for number, shard in enumerate(found):
        expected = [row(n, number) for n in range(10)]
        for first in (0, 1, 3, 9, 10):
            assert [record.value for record in shard.records(first)] == expected[first:]
    groups: list[int] = []
    original = pq.ParquetFile.iter_batches
    monkeypatch.setattr(
        pq.ParquetFile,
        "iter_batches",
        lambda self, *a, row_groups, **o: groups.extend(row_groups) or original(self, *a, row_groups=row_groups, **o),
    )
    list(found[3].records(7))
    assert groups == [2, 3], "row groups of rows that are passed over are not opened"
    assert [shard.name for shard in shards_of(str(tmp_path / "rows"), "train")] == [shard.name for shard in found]


def test_the_first_rows_are_held_out_and_never_trained_on(tmp_path: Path) -> None:
    pattern = written(tmp_path / "rows")
    data = module(config(pattern))
    assert questions(data.validation_batches(9, 4)) == [f"Question 0.{n}" for n in range(4)]
    trained = questions(data.train_dataloader(9))
    assert len(set(trained)) == 36
    assert not {f"Question 0.{n}" for n in range(4)} & set(trained)
    assert [line for line in data.report.lines() if "4 shards" in line and "its first 4 rows held out" in line]
    elsewhere = module(
        config(pattern, validation_source=written(tmp_path / "other", (".jsonl",)).replace("*", "0.jsonl"))
    )
    assert len(set(questions(elsewhere.train_dataloader(12)))) == 40
    several = config(
        "embedded", sources=[SourceConfig(pattern, weight=3), SourceConfig(written(tmp_path / "b"), weight=1)]
    )
    held_out = open_rows(several).validation
    assert [one.instruction for one in held_out] == ["Question 0.0", "Question 0.1"] * 2


def test_calibration_takes_the_beginning_of_what_is_trained_on_once(tmp_path: Path) -> None:
    data = module(config(written(tmp_path / "rows")))
    sample = questions(data.train_batches(6, 3)) + questions(data.train_batches(100, 3, first=6))
    assert len(sample) == len(set(sample)) == 36
    assert set(sample[:12]) <= set(sample)
    assert data.has_train_row(35)
    assert not data.has_train_row(36)
    assert data.train_length(2) == int(data.train_batches(1, 1, first=2)[0]["num_tokens"])


def test_documents_run_over_the_borders_of_rows_shards_and_groups(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    lines = [f"Text {n} " + "goes on. " * (n % 9) for n in range(40)]
    for shard in range(2):
        rows = [{"body": line, "id": n} for n, line in enumerate(lines[shard * 20 : shard * 20 + 20])]
        (tmp_path / f"a/{shard}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    options = {
        "text_column": "body",
        "pack_documents": True,
        "shuffle_buffer": 1,
        "validation_size": 1,
        "max_length": 32,
    }
    found = module(config(str(tmp_path / "a"), **options))
    assert found.plain_text
    whole = list(found.train_dataloader(6))
    assert {batch["input_ids"].shape[1] for batch in whole} == {32}
    ids = TOKENIZER.convert_tokens_to_ids
    stream = [
        token
        for line in lines[1:]
        for token in [ids("<bos>"), *TOKENIZER(line, add_special_tokens=False)["input_ids"], ids("<eos>")]
    ]
    sequences = {tuple(sequence) for batch in whole for sequence in batch["input_ids"].tolist()}
    expected = [tuple(stream[begin : begin + 32]) for begin in range(0, 24 * 31, 31)]
    assert sequences == set(expected)
    for position in (1, 5, 7, 11):
        former = found.train_dataloader(6)
        before = list(islice(iter(former), position))
        resumed = found.train_dataloader(6)
        resumed.load_state_dict(former.state_dict())
        assert [batch["input_ids"].tolist() for batch in [*before, *resumed]] == [
            b["input_ids"].tolist() for b in whole
        ]


def test_documents_are_not_packed_where_there_are_none(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"pack_documents puts plain texts one after another, and .* has none"):
        open_rows(config(written(tmp_path / "rows"), pack_documents=True))


def test_texts_that_were_cut_stay_together_in_the_buffer(tmp_path: Path) -> None:
    for name in "abcd":
        (tmp_path / f"{name}.txt").write_text("".join(f"{name} line {n} " + "x" * 500 + "\n" for n in range(30)))
    options = {"pack_documents": True, "validation_size": 1, "max_length": 3_300, "shuffle_buffer": 9}
    found = " ".join(texts(module(config(str(tmp_path), **options)).train_dataloader(6)))
    # four rows each: pieces end behind lines 7, 15 and 23; some where a sequence ends, too
    borders = [f"{name} line {n} {'x' * 500}\n{name} line {n + 1} " for name in "bcd" for n in (7, 15, 23)]
    assert sum(border in found for border in borders) >= 7


@pytest.mark.parametrize("workers", [0, 2])
def test_a_bad_row_is_named_where_it_is_met_or_counted(tmp_path: Path, workers: int) -> None:
    path = tmp_path / "rows.jsonl"
    lines = [json.dumps(row(n)) for n in range(20)]
    path.write_text("\n".join([*lines[:11], '{"instruction": "a"}', *lines[11:]]))
    found = config(str(path), num_workers=workers)
    with pytest.raises(UserError, match=r"rows.jsonl, line 12: the key 'output' is missing.*on_bad_row=skip"):
        list(module(found).train_dataloader(8))
    loader = module(replace(found, on_bad_row="skip")).train_dataloader(6)
    assert len(set(questions(loader))) == 16
    assert loader.source_counts()["source_0/skipped"] >= 1
    assert "skipped" in loader.source_lines()[0]


def test_held_out_rows_that_are_trained_on_too_are_left_out(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    rows = [row(n) for n in range(12)]
    rows[7]["instruction"] = "QUESTION  0.1"
    path.write_text("\n".join(map(json.dumps, rows)))
    loader = module(config(str(path), remove_overlap=True)).train_dataloader(3)
    assert "QUESTION  0.1" not in questions(loader)
    assert loader.source_counts()["source_0/removed"] >= 1


def test_a_stream_is_known_by_names_sizes_beginnings_and_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards, "HEAD", 50)
    monkeypatch.setattr(shards, "TAIL", 50)
    pattern = written(tmp_path / "rows", (".jsonl", ".jsonl"))
    first = tmp_path / "rows/shard0.jsonl"

    def digest(place: str = pattern) -> str:
        return open_rows(config(place)).train_contents().digest

    known = digest()
    contents = open_rows(config(pattern)).train_contents()
    (tmp_path / "rows").rename(tmp_path / "moved")
    assert digest(pattern.replace("/rows/", "/moved/")) == known
    (tmp_path / "moved").rename(tmp_path / "rows")
    text = first.read_bytes()
    for changed in (
        b"X" + text,
        text[:-9] + text[-8:],
        text.replace(b"Answer 9", b"Answer 8"),
        text.replace(b"0.0", b"0.x"),
    ):
        first.write_bytes(changed)
        with_other = open_rows(config(pattern, on_bad_row="skip")).train_contents()
        assert with_other.digest != known
    write_items({TRAINING_ROWS: contents}, tmp_path)
    sentence = changes({TRAINING_ROWS: with_other}, {TRAINING_ROWS: contents.digest}, tmp_path)[TRAINING_ROWS]
    assert sentence.startswith("the training rows changed: shard0.jsonl (")
    first.write_bytes(text)
    (tmp_path / "rows/shard1.jsonl").rename(tmp_path / "rows/shard2.jsonl")
    assert digest() != known


def test_a_hub_data_set_is_streamed_shard_by_shard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written(tmp_path / "hub", (".jsonl", ".jsonl"))
    monkeypatch.setattr(hub, "hub_commit", lambda source: None)
    found = hub.hub_shards(str(tmp_path / "hub"), "train")
    assert [shard.name for shard in found] == ["train, shard 1 of 2", "train, shard 2 of 2"]
    assert sorted(record.value["instruction"] for shard in found for record in shard.records()) == sorted(
        row(n, shard)["instruction"] for n in range(10) for shard in range(2)
    )
    assert [record.value for record in found[0].records(7)] == [record.value for record in found[0].records()][7:]
    assert next(found[0].records(7)).place().endswith("row index 7")
    with pytest.raises(UserError, match="split 'tarin', cannot be loaded"):
        hub.hub_shards(str(tmp_path / "hub"), "tarin")


def test_a_hub_that_cannot_be_reached_is_said_at_once() -> None:
    with pytest.raises(UserError, match=r"from which it would be streamed, cannot be reached .* give files"):
        shards_of("nobody/nothing", "train")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["data.source=embedded"], "data.streaming: streams files and hub data sets, and 'embedded' is held in memory"),
        (["data.further_sources=[a/c]"], "data.streaming: streams a source, or with data.sources several by weight"),
        (["training.objective=dpo"], "data.streaming: training.objective=dpo has the reference read all pairs"),
        (["data.num_samples=300"], "data.num_samples: takes rows of a shuffle of all of them"),
        (["data.packing=true"], "data.packing: finds the best fit among all rows"),
        (["training.stage1.max_steps=null"], "training.stage1.max_steps: is needed with data.streaming"),
        (["training.stage2.max_epochs=2"], "training.stage2.max_epochs: a stream (data.streaming) is trained on for"),
        (["data.shuffle_buffer=0"], "data.shuffle_buffer: must be at least 1, got 0"),
        (
            ["data.source=embedded", "data.sources=[{source: a/b}, {source: a/c}]"],
            "data.sources entry 1 needs a weight",
        ),
        (
            ["data.source=embedded", "data.sources=[{source: a/b, num_samples: 3}]"],
            "data.sources entry 1 has num_samples",
        ),
    ],
)
def test_what_cannot_go_with_a_stream_is_one_clear_message(words: list[str], message: str) -> None:
    stages = ["training.stage1.max_steps=2", "training.stage2.max_steps=2"]
    with pytest.raises(UserError) as caught:
        load_config([], ["data.source=a/b", "data.streaming=true", *stages, *words])
    assert len(caught.value.problems) == 1
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("rows.json", "[]", r"a .json file is read whole; write one object per line, as .jsonl"),
        ("rows.jsonl", '{"a": 1}', r"rows.jsonl, line 1: cannot tell the row format"),
        ("rows.jsonl", "not json", r"has no row that can be read"),
        ("rows.jsonl", json.dumps(row(1)), r"no row of .* is left to train on: 1 are held out"),
        ("rows.jsonl.gz", "text", r"rows.jsonl.gz' is not packed by gzip, as its name says"),
        ("rows.csv", "a,b", r"has no file of rows that could be streamed"),
    ],
)
def test_files_that_cannot_be_streamed_are_named(tmp_path: Path, name: str, content: str, message: str) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(UserError, match=message):
        open_rows(config(str(tmp_path)))
    with pytest.raises(UserError, match=r"does not exist. Did you mean|does not exist"):
        open_rows(config(str(tmp_path / "row.jsonl")))


def test_a_shard_whose_download_was_interrupted_is_named(tmp_path: Path) -> None:
    written(tmp_path / "rows", (".jsonl", ".jsonl.gz"))
    path = tmp_path / "rows/shard1.jsonl.gz"
    path.write_bytes(path.read_bytes()[:-20])
    os.utime(path)
    with pytest.raises(UserError, match=r"shard1.jsonl.gz' is damaged"):
        list(module(config(str(tmp_path / "rows"))).train_dataloader(8))


def test_chats_are_streamed_into_their_template_and_a_row_it_refuses_is_named(tmp_path: Path) -> None:
    (tmp_path / "template.jinja").write_text(
        "{% for m in messages %}{% if loop.first and m.role != 'user' %}{{ raise_exception('ask first') }}{% endif %}"
        "[{{ m.role }}]{% if m.role == 'assistant' %}{% generation %}{{ m.content }}<eos>{% endgeneration %}"
        "{% else %}{{ m.content }}{% endif %}{% endfor %}"
    )
    turns = [[("user", f"Q{n}"), ("assistant", f"A{n}"), ("user", "More?"), ("assistant", "No.")] for n in range(16)]
    rows = [{"messages": [{"role": role, "content": text} for role, text in chat]} for chat in turns]
    path = tmp_path / "chats.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    found = config(str(path), template=str(tmp_path / "template.jinja"))
    batches = list(module(found).train_dataloader(3))
    assert sorted(texts(batches)) == sorted(
        f"[user]Q{n}[assistant]A{n}<eos>[user]More?[assistant]No.<eos>" for n in range(4, 16)
    )
    learned = TOKENIZER.decode(batches[0]["labels"][0][batches[0]["labels"][0] >= 0])
    assert learned.endswith("<eos>No.<eos>")
    path.write_text("\n".join(map(json.dumps, [*rows, {"messages": [{"role": "assistant", "content": "A"}]}])))
    with pytest.raises(UserError, match=r"chats.jsonl, line 17: .*ask first.*data.on_bad_row=skip"):
        list(module(found).train_dataloader(6))
    loader = module(replace(found, on_bad_row="skip")).train_dataloader(6)
    assert len(list(loader)) == 12
    assert loader.source_counts()["source_0/refused"] >= 1
