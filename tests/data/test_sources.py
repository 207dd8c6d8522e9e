import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from uniattn_pl.data import Row, read_source
from uniattn_pl.errors import UserError

ROWS = [{"instruction": f"task {i}", "input": "context", "output": f"response {i}"} for i in range(4)]
BAD = {"instruction": "task", "input": "context", "output": ""}


def write(folder, suffix, rows):
    path = folder / f"rows{suffix}"
    if suffix == ".json":
        path.write_text(json.dumps(rows, indent=2))
    elif suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        pq.write_table(pa.Table.from_pylist(rows), path)
    return path


@pytest.mark.parametrize("suffix", [".json", ".jsonl", ".parquet"])
def test_every_kind_of_file_gives_the_same_rows(tmp_path, suffix):
    result = read_source(str(write(tmp_path, suffix, ROWS)))
    assert result.rows == [Row(**row) for row in ROWS]
    assert (result.format, result.read, result.skipped, result.filtered) == ("alpaca", 4, 0, 0)


@pytest.mark.parametrize(
    ("suffix", "place"), [(".json", "row index 2, line 12"), (".jsonl", "line 3"), (".parquet", "row index 2")]
)
def test_a_bad_row_names_its_place_and_can_be_skipped(tmp_path, suffix, place):
    path = write(tmp_path, suffix, [*ROWS[:2], BAD, ROWS[3]])
    with pytest.raises(UserError) as caught:
        read_source(str(path))
    assert caught.value.problems == [
        f"{path}, {place}: 'output' is empty; it must hold the response to learn; "
        "data.on_bad_row=skip leaves bad rows out and counts them."
    ]
    result = read_source(str(path), on_bad_row="skip")
    assert (len(result.rows), result.read, result.skipped) == (3, 4, 1)


def test_json_lines_with_blank_lines_a_byte_order_mark_and_line_separators_in_strings(tmp_path):
    path = tmp_path / "rows.jsonl"
    first = json.dumps({**ROWS[0], "output": "one\u2028two\x85three"}, ensure_ascii=False)
    path.write_bytes(b"\xef\xbb\xbf" + first.encode() + b"\r\n\n" + b"{broken\n" + b"\xff\xfe{}\n")
    with pytest.raises(UserError, match=r"rows\.jsonl, line 3: invalid JSON .* each line must be one JSON object"):
        read_source(str(path))
    result = read_source(str(path), on_bad_row="skip")
    assert result.rows[0].output == "one\u2028two\x85three"
    assert result.skipped == 2
    assert "line 3" in result.first_problem


def test_a_json_file_may_hold_json_lines(tmp_path):
    path = tmp_path / "rows.json"
    path.write_text("\n".join(map(json.dumps, ROWS)))
    assert len(read_source(str(path)).rows) == 4


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('[\n{"a": 1},\n{"a": \n]', "row index 1, line 4, column 1: invalid JSON"),
        ('[\n{"instruction": "a", "input": "b", "output": "c"}\n{', "after row index 0, line 3: invalid JSON"),
        ('[\n{"instruction": "a", "input": "b", "output": "c"}\n', "found the end of the file); is the file complete?"),
        ('{\n  "data": []\n}', "line 1: invalid JSON"),
        ("[]", "has no usable row (0 read"),
        ("", "has no usable row (0 read"),
        ("[1, 2]", "row index 0, line 1: the row is a number; it must be an object"),
    ],
)
@pytest.mark.parametrize("on_bad_row", ["error", "skip"])
def test_a_broken_json_file_is_named_with_the_line(tmp_path, text, message, on_bad_row):
    path = tmp_path / "rows.json"
    path.write_text(text)
    with pytest.raises(UserError) as caught:
        read_source(str(path), format="alpaca", on_bad_row=on_bad_row)
    if on_bad_row == "error" and text.startswith('[\n{"a"'):
        message = "row index 0, line 2: the key 'instruction' is missing"
    assert message in str(caught.value)


def test_auto_detection_under_skip_uses_the_first_row_with_known_keys(tmp_path):
    result = read_source(str(write(tmp_path, ".jsonl", [{"x": 1}, *ROWS])), on_bad_row="skip")
    assert (len(result.rows), result.skipped, result.format) == (4, 1, "alpaca")


def test_filtered_conversations_are_counted(tmp_path):
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    result = read_source(str(write(tmp_path, ".parquet", [{"messages": turns}, {"messages": turns * 2}])))
    assert (len(result.rows), result.filtered, result.skipped) == (1, 1, 0)


def test_a_wrong_file_name_gets_the_nearest_one(tmp_path):
    write(tmp_path, ".jsonl", ROWS)
    with pytest.raises(UserError, match=r"row\.jsonl' does not exist\. Did you mean 'rows\.jsonl'\?"):
        read_source(str(tmp_path / "row.jsonl"))
    with pytest.raises(UserError, match=r"is a folder; give one .json, .jsonl or .parquet file.*holds rows\.jsonl"):
        read_source(str(tmp_path))
    with pytest.raises(UserError, match=r"nor does the folder"):
        read_source(str(tmp_path / "missing" / "rows.jsonl"))


def test_another_kind_of_file_is_refused(tmp_path):
    (tmp_path / "rows.csv").write_text("a,b\n")
    with pytest.raises(UserError, match=r"ends in '\.csv'; allowed are \.json, \.jsonl, \.parquet"):
        read_source(str(tmp_path / "rows.csv"))
    (tmp_path / "rows.parquet").write_text("no")
    with pytest.raises(UserError, match=r"rows\.parquet' is not a readable Parquet file"):
        read_source(str(tmp_path / "rows.parquet"))


def test_an_unknown_hub_name_offline_says_how_to_get_it(monkeypatch, tmp_path):
    # Offline mode as a user sets it, in the modules that have read the environment already.
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    with pytest.raises(UserError) as caught:
        read_source("embeded")
    assert "is not a local file" in str(caught.value)
    assert "datasets.load_dataset('embeded')" in str(caught.value)
    assert "Did you mean 'embedded'?" in str(caught.value)


def test_the_real_samples_are_read(shared_train):
    pmc = read_source(str(shared_train / "pmc_llama_instructions_1000.json"))
    tulu = read_source(str(shared_train / "tulu3_sft_filtered_1000.json"))
    assert (pmc.format, len(pmc.rows)) == ("pmc", 1000)
    assert (tulu.format, len(tulu.rows), tulu.filtered) == ("tulu3", 999, 1)
    assert all(row.instruction == "" for row in tulu.rows)
