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
        ('{\n  "data": []\n}', "holds one object (its keys: data) and no list of rows"),
        ('[{"instruction": "a", "output": "b"}] [1]', "line 1: the array has ended, and '[1]' follows"),
        ("[" * 100_000, "row index 0, line 1: JSON of more levels than can be read"),
        ("[]", "has no usable row (0 read"),
        ("", "rows.json' is empty (0 bytes)"),
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


LEVELS = b'{"a": ' * 100_000 + b"1" + b"}" * 100_000


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        (
            b'{"instruction": "smile \\ud83d", "output": "b"}',
            r"the text of its instruction has half a character \(\\ud83d",
        ),
        (b'{"instruction": "a", "output": "\\udc00"}', r"the text of its output has half a character"),
        (b'{"instruction": "a", "input": "\\ud800 x", "output": "b"}', "the text of its input has half a character"),
        (b'{"instruction": "a", "output": "b", "id": ' + b"7" * 5_000 + b"}", "it holds an integer of 5000 digits"),
        (b'{"instruction": "a", "output": "b", "output": "c"}', "the key 'output' is there twice in one object"),
        (LEVELS, "JSON of more levels than can be read"),
        (b'{"instruction": "a", "output": NaN}', "'output' is a number; it must be a string"),
        (b"\xff\xfe{}", "not UTF-8 text"),
        (b"\0\0\0", "invalid JSON"),
        (b'"text"', "the row is a string"),
    ],
)
def test_a_row_that_cannot_be_read_is_named_and_counted(tmp_path, line, problem):
    path = tmp_path / "rows.jsonl"
    good = json.dumps(ROWS[0]).encode()
    path.write_bytes(b"\n".join([good, line, good]))
    with pytest.raises(UserError, match=rf"rows\.jsonl, line 2: .*{problem}"):
        read_source(str(path))
    result = read_source(str(path), on_bad_row="skip")
    assert (len(result.rows), result.skipped) == (2, 1)


@pytest.mark.parametrize("value", ['"\\ud83d"', "7" * 5_000, '"b", "input": "c"'])
def test_a_row_of_an_array_that_cannot_be_read_is_named_and_counted(tmp_path, value):
    path = tmp_path / "rows.json"
    path.write_text(json.dumps(ROWS)[:-1] + f', {{"instruction": "a", "output": "b", "input": {value}}}]')
    with pytest.raises(UserError, match=r"rows\.json, row index 4, line 1: "):
        read_source(str(path))
    result = read_source(str(path), on_bad_row="skip")
    assert (len(result.rows), result.skipped) == (4, 1)


@pytest.mark.parametrize("suffix", [".json", ".jsonl"])
@pytest.mark.parametrize("indent", [None, 1])
def test_rows_inside_one_object_are_read(tmp_path, suffix, indent):
    path = tmp_path / f"rows{suffix}"
    path.write_text(json.dumps({"version": "1.0", "data": [*ROWS, BAD]}, indent=indent))
    with pytest.raises(UserError, match=rf"rows{suffix}, 'data', row index 4: 'output' is empty"):
        read_source(str(path))
    assert read_source(str(path), on_bad_row="skip").rows == [Row(**row) for row in ROWS]


def test_one_object_may_be_the_only_row(tmp_path):
    path = tmp_path / "rows.json"
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    path.write_text(json.dumps({"messages": turns}, indent=1))
    assert read_source(str(path)).rows == [Row("", "a", "b")]


def test_one_object_with_several_lists_is_named_with_its_keys(tmp_path):
    path = tmp_path / "rows.json"
    path.write_text(json.dumps({"train": ROWS, "test": ROWS[:1]}))
    with pytest.raises(UserError, match=r"several lists of rows \(4 under 'train', 1 under 'test'\)"):
        read_source(str(path))


def damaged(path, groups, spoil):
    """A Parquet file with a good footer whose row groups in `spoil` have overwritten pages."""
    pq.write_table(pa.Table.from_pylist(ROWS * 4), path, row_group_size=16 // groups, compression="zstd")
    metadata = pq.read_metadata(path)
    data = bytearray(path.read_bytes())
    for group in spoil:
        column = metadata.row_group(group).column(0)
        start = column.dictionary_page_offset or column.data_page_offset
        data[start : start + column.total_compressed_size] = b"\xff" * column.total_compressed_size
    path.write_bytes(data)


def test_damaged_pages_behind_a_good_footer_are_named_and_their_rows_counted(tmp_path):
    path = tmp_path / "rows.parquet"
    damaged(path, 4, [1, 3])
    with pytest.raises(UserError, match=r"rows\.parquet, row index 4: the file is damaged here \("):
        read_source(str(path))
    result = read_source(str(path), on_bad_row="skip")
    assert (len(result.rows), result.skipped, result.read) == (8, 8, 16)


def test_values_of_parquet_that_python_does_not_have_cost_one_row(tmp_path):
    path = tmp_path / "rows.parquet"
    text = pa.Array.from_buffers(pa.string(), 2, pa.array([b"a", b"\xff"], pa.binary()).buffers())
    columns = {"instruction": text, "output": pa.array(["b", "c"])}
    pq.write_table(pa.table(columns), path)
    with pytest.raises(UserError, match=r"rows\.parquet, row index 1: a value of it cannot be read"):
        read_source(str(path))
    assert read_source(str(path), on_bad_row="skip").rows == [Row("a", "", "b")]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 1\n", "is a Git LFS pointer"),
        (b"<!DOCTYPE html><html></html>", "is a web page"),
        (b"\x1f\x8b\x08\x00", "is compressed (gzip)"),
        (b"PK\x03\x04", "is compressed (zip)"),
    ],
)
@pytest.mark.parametrize("suffix", [".json", ".jsonl", ".parquet"])
def test_a_file_that_is_something_else_is_told(tmp_path, content, message, suffix):
    path = tmp_path / f"rows{suffix}"
    path.write_bytes(content)
    with pytest.raises(UserError) as caught:
        read_source(str(path), on_bad_row="skip")
    assert f"{path}' {message}" in str(caught.value)


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
    with pytest.raises(UserError, match=r"is a folder; give a file of it .*, or a pattern.*holds rows\.jsonl"):
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
    assert 'datasets.load_dataset("embeded", split="train")' in str(caught.value)
    assert "Did you mean 'embedded'?" in str(caught.value)


def test_the_real_samples_are_read(shared_train):
    pmc = read_source(str(shared_train / "pmc_llama_instructions_1000.json"))
    tulu = read_source(str(shared_train / "tulu3_sft_filtered_1000.json"))
    assert (pmc.format, len(pmc.rows)) == ("pmc", 1000)
    assert (tulu.format, len(tulu.rows), tulu.filtered) == ("tulu3", 999, 1)
    assert all(row.instruction == "" for row in tulu.rows)
