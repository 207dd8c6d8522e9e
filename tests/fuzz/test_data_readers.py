"""Whatever is in a data file: rows, or one sentence that names it; rows that are read can be tokenised."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.fuzz.drawn import changed_bytes, changed_json, in_bounds, used_or_refused, values, written
from uniattn_pl.data import read_source
from uniattn_pl.data.encoding import encode_rows
from uniattn_pl.families.catalogue import byte_tokenizer

ALPACA = {"instruction": "Is it?", "input": "x", "output": "Yes. So.", "answer": "Yes", "choices": ["Yes", "No"]}
TURNS = [{"role": "user", "content": [{"type": "text", "text": "Why?"}]}, {"role": "assistant", "content": "Because."}]
SHARED = [{"from": "human", "value": "Why?"}, {"from": "gpt", "value": "Because."}]
ROWS = [
    ALPACA,
    {**ALPACA, "source": "x"},
    {"messages": TURNS},
    {"conversations": SHARED},
    {"input": "a", "output": "b"},
]
TOKENIZER = byte_tokenizer()

rows = st.one_of(changed_json(row) for row in ROWS) | values
formats = st.sampled_from(["auto", "alpaca", "pmc", "tulu3", "infinity_instruct"])
skipping = st.sampled_from(["error", "skip"])


def read(path: Path, content: bytes, format: str, on_bad_row: str) -> None:
    path.write_bytes(content)

    def use() -> None:
        found = read_source(str(path), format=format, on_bad_row=on_bad_row)
        assert found.read == len(found.rows) + found.skipped + found.filtered
        encode_rows(found.rows, TOKENIZER, 64, with_choices=True)

    used_or_refused(path.name, use)


@in_bounds
@given(st.lists(rows, min_size=1, max_size=4), st.sampled_from(["lines", "array", "inside"]), formats, skipping)
def test_json_of_any_values(folder: Path, drawn: list[object], form: str, format: str, on_bad_row: str) -> None:
    texts = [written(row) for row in drawn]
    array = b"[" + b",\n".join(texts) + b"]"
    content = {"lines": b"\n".join(texts), "array": array, "inside": b'{"data": ' + array + b"}"}[form]
    read(folder / "values.json", content, format, on_bad_row)


SEEDS = [
    "\n".join(map(json.dumps, ROWS)).encode(),
    json.dumps(ROWS).encode(),
    json.dumps({"data": ROWS}, indent=1).encode(),
]


@in_bounds
@given(changed_bytes(SEEDS), st.sampled_from([".json", ".jsonl"]), skipping)
def test_json_of_any_bytes(folder: Path, content: bytes, suffix: str, on_bad_row: str) -> None:
    read(folder / f"bytes{suffix}", content, "auto", on_bad_row)


@pytest.fixture(scope="module")
def parquet_files() -> list[bytes]:
    files = []
    for table, compression in ((ROWS[:1] * 20, "zstd"), (ROWS[3:4] * 20, "none"), (ROWS[:1] * 20, "snappy")):
        sink = pa.BufferOutputStream()
        pq.write_table(pa.Table.from_pylist(table), sink, compression=compression, row_group_size=10)
        files.append(sink.getvalue().to_pybytes())
    return files


@in_bounds
@given(data=st.data(), on_bad_row=skipping)
def test_parquet_of_any_bytes(folder: Path, parquet_files: list[bytes], data: st.DataObject, on_bad_row: str) -> None:
    read(folder / "bytes.parquet", data.draw(changed_bytes(parquet_files)), "auto", on_bad_row)
