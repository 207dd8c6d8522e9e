"""`data` finds the rows of shipped experiments again among those of a public set, and says where it cannot."""

from __future__ import annotations

import json
import random
from importlib.resources import files
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from uniattn_pl.cli import main
from uniattn_pl.config import published_sets
from uniattn_pl.config.published_sets import SETS, PublishedFile, PublishedSet
from uniattn_pl.data.published_rows import build, digest_of
from uniattn_pl.errors import UserError

SHARED = Path(__file__).parents[3] / "shared" / "data"
ROWS = [{"question": f"{n} + 1?", "answer": str(n + 1)} for n in range(40)]


def shards(folder: Path, rows: list[dict[str, Any]], split: str = "train") -> None:
    """Write rows as a hub keeps them: in two files."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, part in enumerate((rows[: len(rows) // 2], rows[len(rows) // 2 :])):
        pq.write_table(pa.Table.from_pylist(part), folder / f"{split}-{number:05}-of-00002.parquet")


@pytest.fixture
def own(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A published set of all rows of one public set, and the copy of that."""
    fields = ("question", "answer")
    file = PublishedFile("sums/train.jsonl", "owner/sums", "train", fields, digest_of(ROWS), 40, chosen=False)
    monkeypatch.setitem(SETS, "sums", PublishedSet("sums", "UNIATTN_PL_DATA", "nowhere", (file,)))
    shards(tmp_path / "mirror/owner/sums/data", [{**row, "more": 1} for row in ROWS])
    return tmp_path / "mirror"


def test_a_whole_split_is_written_in_its_order_and_once(
    own: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["data", "sums", "--mirror", str(own)]
    monkeypatch.setenv("UNIATTN_PL_DATA", str(tmp_path / "rows"))
    assert main([*words, "--dry-run"]) == 0
    assert not (tmp_path / "rows").exists()
    assert main(words) == 0
    target = tmp_path / "rows/sums/train.jsonl"
    assert list(map(json.loads, target.read_text().splitlines())) == ROWS
    assert f"wrote {target}" in capsys.readouterr().out
    target.write_text("mine")
    assert main(words) == 0
    assert target.read_text() == "mine"
    assert main([*words, "--to", str(tmp_path / "elsewhere")]) == 0
    assert f"export UNIATTN_PL_DATA={tmp_path / 'elsewhere'}" in capsys.readouterr().out


def test_a_set_that_has_changed_is_not_written(own: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    changed = {**ROWS[3], "answer": "5"}
    (file,) = SETS["sums"].files
    with pytest.raises(UserError, match=r"its 40 rows are not the 40 .* nothing was written"):
        build(file, [*ROWS[:3], changed, *ROWS[4:]], tmp_path / "rows")
    spaced = [{name: f" {text}\n" for name, text in row.items()} for row in ROWS]
    build(file, spaced, tmp_path / "spaced")  # white space is no change
    assert not (tmp_path / "rows").exists()
    next(own.rglob("*00001*")).write_bytes(b"PAR1 damaged")
    assert main(["data", "sums", "--mirror", str(own), "--to", str(tmp_path / "rows")]) == 2
    assert "00001-of-00002.parquet' cannot be read" in capsys.readouterr().err
    assert main(["data", "pmc-1000", "--mirror", str(own), "--to", str(tmp_path / "rows")]) == 2
    assert "train*.parquet', a shard of axiong/pmc_llama_instructions." in capsys.readouterr().err


@pytest.mark.parametrize("file", [file for one in SETS.values() for file in one.files], ids=lambda file: file.place)
def test_every_list_of_rows_is_shipped(file: PublishedFile, tmp_path: Path) -> None:
    assert len(file.digest) == 64
    if file.chosen:
        keys = (files("uniattn_pl.data") / "published" / file.keys).read_text().split()
        assert len(keys) == len(set(keys)) == file.rows
        with pytest.raises(UserError, match=f"{file.rows:,} of the {file.rows:,} rows .* are not there"):
            build(file, [], tmp_path)


@pytest.mark.parametrize("name", SETS)
def test_the_files_of_the_results_are_found_again(name: str, tmp_path: Path) -> None:
    folder = SHARED / "train" if SETS[name].variable == "UNIATTN_PL_DATA" else SHARED
    if not folder.is_dir():
        pytest.skip(f"the real data samples are not at {folder}")
    for file in SETS[name].files:
        text = (folder / file.place).read_text(encoding="utf-8")
        if file.place.endswith(".raw"):
            lines = text.split("\n")[:-1]
            rows = [{"text": "" if line == " " else line + "\n"} for line in lines]
        else:
            rows = json.loads(text) if file.place.endswith(".json") else list(map(json.loads, text.split("\n")[:-1]))
        public = [as_published(file, row) for row in rows]
        if file.chosen:
            public += [{**row, file.key or "input": "another"} for row in public[:20]]
            random.Random(0).shuffle(public)
        place = tmp_path / "mirror" / file.hub / (file.config or "data")
        shards(place, public, file.split)
    assert main(["data", name, "--mirror", str(tmp_path / "mirror"), "--to", str(tmp_path / "built")]) == 0
    for file in SETS[name].files:
        built = (tmp_path / "built" / file.place).read_text(encoding="utf-8")
        original = (folder / file.place).read_text(encoding="utf-8")
        if file.place.endswith(".json"):
            kept = [{field: row[field] for field in file.fields} for row in json.loads(original)]
            assert json.loads(built) == kept
        else:
            assert built == original


def as_published(file: PublishedFile, row: dict[str, Any]) -> dict[str, Any]:
    """A row as its public set has it: Tulu's as a conversation."""
    if "tulu" not in file.hub:
        return row
    turns = [{"role": "user", "content": row["input"]}, {"role": "assistant", "content": row["output"]}]
    return {"id": row["id"], "messages": turns, "source": row["source"]}


def test_a_missing_file_of_a_shipped_experiment_names_the_command(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("UNIATTN_PL_DATA", str(tmp_path))
    monkeypatch.setenv("UNIATTN_PL_EVALUATION_DATA", str(tmp_path))
    experiments = Path(__file__).parents[2] / "experiments/smollm2"
    for experiment, name in (("pmc_uniattn", "pmc-1000"), ("mixture", "pmc-1000"), ("text", "tulu-1000")):
        assert main(["fit", "--config", str(experiments / f"{experiment}.yaml"), "--dry-run"]) == 2
        assert f"-m uniattn_pl data {name}; without a network --embedded" in capsys.readouterr().err
    assert main(["evaluate", "--config", str(experiments / "base.yaml"), "--dry-run"]) == 2
    assert "-m uniattn_pl data evaluation" in capsys.readouterr().err
    assert published_sets.how_to_build(str(tmp_path / "pubmedqa")).endswith("-m uniattn_pl data evaluation")
    assert published_sets.how_to_build("rows.jsonl") == ""


def test_embedded_rows_stand_in(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("UNIATTN_PL_DATA", str(tmp_path))
    experiments = Path(__file__).parents[2] / "experiments/smollm2"
    for name in ("pmc_uniattn", "mixture", "text"):
        words = ["--config", str(experiments / f"{name}.yaml"), "--embedded", "--print-config"]
        assert main(["fit", *words]) == 0
        assert "source: embedded" in capsys.readouterr().out
