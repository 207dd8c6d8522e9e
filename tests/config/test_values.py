"""Values are read as written, in bounds, or told: YAML 1.1's octal numbers and words, repeated keys, large numbers."""

from __future__ import annotations

import dataclasses
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from uniattn_pl.cli import main
from uniattn_pl.config import load_config
from uniattn_pl.config.schema import ExperimentConfig
from uniattn_pl.config.typing_rules import field_hints
from uniattn_pl.config.yaml_scalars import dump_value, parse_value
from uniattn_pl.errors import UserError

SEED = 2**31 - 1


def problems(*words: str, text: str | None = None, folder: Path | None = None) -> list[str]:
    files = []
    if text is not None and folder is not None:
        files = [folder / "a.yaml"]
        files[0].write_text(text)
    with pytest.raises(UserError) as raised:
        load_config(files, words)
    return raised.value.problems


@pytest.mark.parametrize(("written", "meant"), [("012", 12), ("08", 8), ("0x10", 16), ("1_000", 1000), ("1e3", 1000)])
def test_a_whole_number_is_read_as_written(written: str, meant: int) -> None:
    assert load_config([], [f"seed={written}"]).config.seed == meant


@pytest.mark.parametrize("written", ["1:30", "2024-01-01", "2024-99-99", "0b11", "yes", "=", "012a", "!!float x"])
def test_what_is_no_whole_number_is_told(written: str) -> None:
    (problem,) = problems(f"seed={written}")
    assert f"seed={written}" in problem


def test_text_is_read_as_written_also_in_lists_and_open_sections() -> None:
    texts = ["no", "on", "1:30", "2024-01-01", "0b11", "=", "n", "y"]
    listed = ", ".join(texts)
    config = load_config([], [f"evaluation.tasks=[{listed}]", f"sweep.grid={{name2: [{listed}]}}"]).config
    assert config.evaluation.tasks == texts
    assert config.sweep.grid == {"name2": texts}
    for text in [*texts, "012", "1.10", "1_000", "0x10", "1e3", "08"]:
        assert load_config([], [f"report.title={text}"]).config.report.title == text


@pytest.mark.parametrize(
    ("word", "meant"), [("yes", True), ("On", True), ("true", True), ("no", False), ("OFF", False)]
)
def test_words_for_true_and_false_are_those_where_one_of_them_is_expected(word: str, meant: bool) -> None:
    assert load_config([], [f"data.packing={word}"]).config.data.packing is meant


@pytest.mark.parametrize("text", ["1", "y", "maybe", "012"])
def test_other_words_are_not(text: str) -> None:
    assert "expected true or false" in problems(f"data.packing={text}")[0]


@settings(deadline=None)
@given(st.recursive(st.none() | st.booleans() | st.integers(-(10**9), 10**9) | st.text(), lambda s: st.lists(s)))
def test_what_is_written_is_read_back(value: Any) -> None:
    assert parse_value(dump_value(value)) == value


@settings(deadline=None, max_examples=30)
@given(st.text(max_size=20))
def test_any_text_after_a_key_is_a_value_or_a_problem(text: str) -> None:
    keys = ("seed", "name", "data.packing", "sweep.grid", "training.lora.target_modules", "data.source")
    with suppress(UserError):  # and nothing else
        load_config([], [f"{key}={text}" for key in keys])


@pytest.mark.parametrize(
    "tag", ["int", "float", "bool", "timestamp", "binary", "python/object:os.system", "set", "omap"]
)
@pytest.mark.parametrize("value", ["", "x", "2024-99-99"])
def test_values_under_tags_are_read_or_told(tag: str, value: str) -> None:
    assert all(problems(f"seed=!!{tag} '{value}'"))


@pytest.mark.parametrize(
    "word", ["seed=4294967295", "seed=99999999999", f"seed={SEED + 1}", "seed=1e30", f"seed={'9' * 5000}", "seed=-1"]
)
def test_a_seed_that_numpy_or_a_rank_could_not_take_is_told_before_anything_else(
    word: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["fit", "--config", "/dev/null", word]) == 2
    printed = capsys.readouterr().err
    assert "seed" in printed
    assert len(printed) < 1000
    assert load_config([], [f"seed={SEED}"]).config.seed == SEED


def _numbers(cls: type, path: str = "") -> list[tuple[str, bool]]:
    """Every key that takes a whole number or a list of them."""
    found = []
    for name, (hint, _) in field_hints(cls).items():
        if dataclasses.is_dataclass(hint):
            found += _numbers(hint, f"{path}{name}.")
        elif "int" in str(hint):
            found.append((path + name, "list" in str(hint)))
    return found


@pytest.mark.parametrize("number", [2**31, 10**30, -(2**31)])
def test_every_whole_number_has_bounds(number: int) -> None:
    keys = _numbers(ExperimentConfig)
    assert len(keys) > 30
    told = problems(*(f"{key}={[number] if listed else number}" for key, listed in keys))
    for key, _ in keys:
        assert any(f"{key}: must be at" in problem or f"{key}: expected" in problem for problem in told), key


@pytest.mark.parametrize("option", ["superblock_size", "num_superblocks", "first_layer"])
def test_options_of_architectures_have_bounds(option: str) -> None:
    assert f"architecture.{option}: must be at most" in problems(f"architecture.{option}=99999999999")[0]


@pytest.mark.parametrize("words", [["plan", "--length"], ["plan", "--gpus"], ["sweep", "--max-steps"]])
@pytest.mark.parametrize("number", ["99999999999", "9" * 5000, "1.5", "x"])
def test_numbers_of_options_have_bounds(words: list[str], number: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*words, number]) == 2
    printed = capsys.readouterr().err
    assert words[1] in printed
    assert len(printed) < 500


@pytest.mark.parametrize(
    "text",
    [
        "sweep: {grid: {seed: [1], seed: [2]}}",
        "sweep:\n  points:\n    a: {seed: 1}\n    a: {seed: 2}",
        "report: {columns: {A: x, A: y}}",
        "architecture: {name: cla, name: uniattn}",
        "model: {source: a}\nmodel: {dtype: auto}",
    ],
)
def test_a_key_that_stands_twice_is_told_wherever_it_stands(text: str, tmp_path: Path) -> None:
    (problem, *_) = problems(text=text, folder=tmp_path)
    assert "a.yaml:" in problem
    assert "set twice, first" in problem


def test_what_an_anchor_brings_in_may_be_replaced(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(
        "training:\n  stage1: &stage {learning_rate: 1e-3, max_steps: 012}\n  stage2: {<<: *stage, max_steps: 7}\n"
    )
    training = load_config([tmp_path / "a.yaml"]).config.training
    assert (training.stage1.max_steps, training.stage2.max_steps) == (12, 7)
    assert training.stage2.learning_rate == 1e-3
