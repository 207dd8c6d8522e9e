"""Files packed by gzip and zstd, and several files that are one source."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pyarrow as pa
import pytest

from uniattn_pl.cli import main
from uniattn_pl.config.load import load_config
from uniattn_pl.config.sections.data_section import DataConfig
from uniattn_pl.data import Row, load_split, read_source
from uniattn_pl.errors import UserError

ROWS = [{"instruction": f"task {i}", "input": "context", "output": f"response {i}"} for i in range(6)]
BAD = {**ROWS[0], "output": ""}


def packed(path: Path, content: bytes) -> Path:
    if path.suffix == ".gz":
        path.write_bytes(gzip.compress(content))
    elif path.suffix == ".zst":
        half = len(content) // 2  # two frames, as parallel packers write them
        path.write_bytes(b"".join(bytes(pa.compress(c, "zstd")) for c in (content[:half], content[half:])))
    else:
        path.write_bytes(content)
    return path


def lines(rows: list[dict[str, str]]) -> bytes:
    return "\n".join(map(json.dumps, rows)).encode()


@pytest.mark.parametrize("packing", ["gz", "zst"])
@pytest.mark.parametrize(
    ("kind", "content"),
    [
        ("jsonl", lines(ROWS)),
        ("json", json.dumps(ROWS, indent=1).encode()),
        ("json", json.dumps({"data": ROWS}, indent=1).encode()),
        ("JSONL", lines(ROWS)),
    ],
)
def test_a_packed_file_has_the_rows_of_the_file(tmp_path, packing, kind, content):
    found = read_source(str(packed(tmp_path / f"rows.{kind}.{packing}", content)))
    assert found.rows == [Row(**row) for row in ROWS]
    assert (found.format, found.read) == ("alpaca", 6)


@pytest.mark.parametrize("packing", ["gz", "zst"])
def test_a_bad_row_of_a_packed_file_has_a_line(tmp_path, packing):
    path = packed(tmp_path / f"rows.jsonl.{packing}", lines([*ROWS[:2], BAD]))
    with pytest.raises(UserError, match=rf"rows\.jsonl\.{packing}, line 3: 'output' is empty"):
        read_source(str(path))


@pytest.mark.parametrize(("name", "packer"), [("rows.jsonl.gz", "gzip"), ("rows.jsonl.zst", "zstd")])
def test_a_damaged_or_mistaken_packed_file_is_named(tmp_path, name, packer):
    whole = packed(tmp_path / name, lines(ROWS * 50)).read_bytes()
    wrong = {
        whole[:-3]: rf"{name}' is damaged, or its download or copy was interrupted \({packer}: ",
        whole + b"garbage": rf"{name}' is damaged, or its download",
        lines(ROWS): rf"{name}' is not packed by {packer}, as its name says",
        b"": rf"{name}' is empty \(0 bytes\)",
        b"<!DOCTYPE html><html>": rf"{name}' is a web page",
    }
    for content, message in wrong.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(UserError, match=message):
            read_source(str(tmp_path / name))
    (tmp_path / "rows.jsonl").write_bytes(whole)
    with pytest.raises(UserError, match=rf"rows\.jsonl' is compressed \({packer}\)"):
        read_source(str(tmp_path / "rows.jsonl"))


def test_other_packed_files_are_refused_with_what_is_allowed(tmp_path):
    (tmp_path / "rows.csv.gz").write_bytes(gzip.compress(b"a,b"))
    with pytest.raises(UserError, match=r"ends in '\.csv\.gz'; allowed are .*packed as \.gz or \.zst"):
        read_source(str(tmp_path / "rows.csv.gz"))


@pytest.fixture
def parts(tmp_path: Path) -> Path:
    """Six rows in three files of two, named so that order matters."""
    for number, name in enumerate(("part-1.jsonl", "part-2.jsonl.gz", "part-3.json")):
        rows = ROWS[2 * number : 2 * number + 2]
        packed(tmp_path / name, lines(rows) if "jsonl" in name else json.dumps(rows).encode())
    return tmp_path


def test_a_pattern_is_one_source(parts):
    pattern = str(parts / "part-*")
    found = read_source(pattern)
    assert found.rows == [Row(**row) for row in ROWS]
    assert (found.source, found.read, list(found.numbers)) == (pattern, 6, [1, 2, 3, 4, 5, 6])
    packed(parts / "part-2.jsonl.gz", lines([ROWS[2], BAD]))
    with pytest.raises(UserError, match=r"part-2\.jsonl\.gz, line 2: 'output' is empty"):
        read_source(pattern)
    with pytest.raises(UserError, match=r"is a pattern that no file matches"):
        read_source(str(parts / "nothing-*.jsonl"))


def test_a_list_of_files_is_one_source(parts):
    one, two, three = (str(parts / name) for name in ("part-1.jsonl", "part-2.jsonl.gz", "part-3.json"))
    config = DataConfig(source=three, more_files=[one, two], validation_size=2)
    split = load_split(config)
    assert split.source.source == f"{three} + {one} + {two}"
    assert (split.source.read, len(split.train), len(split.validation)) == (6, 4, 2)
    whole = load_split(
        DataConfig(source=str(packed(parts / "all.jsonl", lines([*ROWS[4:], *ROWS[:4]]))), validation_size=2)
    )
    assert (split.train, split.validation) == (whole.train, whole.validation), "as one file with all of them"
    assert split.train_contents().digest == whole.train_contents().digest
    places = {split.place(index, "train") for index in range(4)}
    assert places <= {f"{one}, line 1", f"{one}, line 2", f"{two}, line 1", f"{two}, line 2"} | {
        f"{three}, row index {index}, line 1" for index in (0, 1)
    }


def test_lists_and_patterns_in_a_config(parts, monkeypatch, capsys):
    monkeypatch.chdir(parts)
    Path("exp.yaml").write_text(
        "model: {source: tiny-llama}\ndata: {source: [part-1.jsonl, part-3.json], validation_size: 1}"
    )
    data = load_config([Path("exp.yaml")]).config.data
    assert (data.source, data.more_files) == ("part-1.jsonl", ["part-3.json"])
    over = load_config([Path("exp.yaml")], ["data.source=part-*"]).config.data
    assert (over.source, over.more_files) == ("part-*", None), "another source has no more files of the former"
    for setting, words in (
        ("data.source=[part-1.jsonl, part-9.jsonl]", "data.more_files: there is no data file 'part-9.jsonl'"),
        ("data.source=prat-*.jsonl", "data.source: no data file matches 'prat-*.jsonl'"),
        ("data.source=[embedded, part-1.jsonl]", "'embedded' is no file that others could be read with"),
    ):
        assert main(["fit", "--config", "exp.yaml", setting, "--dry-run"]) == 2
        assert words in capsys.readouterr().err
