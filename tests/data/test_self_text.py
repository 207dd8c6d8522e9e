"""Rows of the original model's own text: drawn from its distribution, the same ones again, kept batch by batch."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.chat_templates import template
from tests.data.conftest import byte_tokenizer
from tests.tiny_fit import CONFIG, ROWS

from uniattn_pl.cli import main
from uniattn_pl.config.sections.data_section import BOS, SELF, DataConfig, SelfTextConfig
from uniattn_pl.config.sections.model_section import ModelConfig
from uniattn_pl.data import InstructionDataModule, Row, load_split, read_source
from uniattn_pl.data.chat_template import ChatTemplate
from uniattn_pl.data.encoding import encode_rows, text_start
from uniattn_pl.data.prompt_ids import prompt_ids
from uniattn_pl.data.prompts import format_prompt
from uniattn_pl.data.self_text import NotSampledError, Original, self_rows
from uniattn_pl.data.text_sampling import TextSampler, TokenDraws, random_numbers
from uniattn_pl.errors import UserError
from uniattn_pl.modeling.loading.pretrained import load_model, load_tokenizer

MODEL = ModelConfig(source="tiny-llama", dtype="float32")
ORIGINAL = Original(MODEL, torch.device("cpu"))
PROMPTS = [Row("Count.", "", "1"), Row("Say why it is so.", "Rain is wet.", "2"), Row("Name one.", "", "3")]
OPTIONS = SelfTextConfig(rows=8, tokens=12, batch_size=3)
KILLED = """
import os, signal, torch
from tests.data.test_self_text import OPTIONS, ORIGINAL, PROMPTS
from uniattn_pl.data import self_text
from uniattn_pl.data.text_sampling import TextSampler
sample = TextSampler.sample
def dies_in_the_third(sampler, prompts, numbers):
    done = sample(sampler, prompts, numbers)
    if numbers[0] == 6:
        os.kill(os.getpid(), signal.SIGKILL)
    return done
TextSampler.sample = dies_in_the_third
self_text.self_rows(OPTIONS, PROMPTS, ORIGINAL)
"""
COUNTS = """
import sys
from tests.data.test_self_text import OPTIONS, ORIGINAL, PROMPTS
from uniattn_pl.data import self_text
from uniattn_pl.data.text_sampling import TextSampler
sample = TextSampler.sample
def counted(sampler, prompts, numbers):
    with open(sys.argv[1], "a") as file:
        file.write(f"{numbers[0]}\\n")
    return sample(sampler, prompts, numbers)
TextSampler.sample = counted
print([row.output for row in self_text.self_rows(OPTIONS, PROMPTS, ORIGINAL).rows])
"""


@pytest.fixture
def cache_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Points the cache to a folder of a name, which still finds the model."""

    def use(name: str) -> Path:
        folder = tmp_path / name
        monkeypatch.setenv("UNIATTN_PL_CACHE", str(folder))
        return folder

    use("first")
    return use


@pytest.fixture
def batches(monkeypatch: pytest.MonkeyPatch) -> list[list[int]]:
    """The numbers of the rows of every batch that is sampled."""
    sampled: list[list[int]] = []
    sample = TextSampler.sample

    def counting(self: TextSampler, prompts: Any, numbers: Any) -> Any:
        sampled.append(list(numbers))
        return sample(self, prompts, numbers)

    monkeypatch.setattr(TextSampler, "sample", counting)
    return sampled


@cache
def tiny() -> tuple[Any, Any]:
    return load_model("tiny-llama", dtype="float32"), load_tokenizer("tiny-llama")


def drawn_one_by_one(row: Row, number: int, temperature: float, tokens: int = 12) -> tuple[list[int], bool]:
    """A row's tokens by the definition: a whole forward without a cache or padding for each, and its random number."""
    model, tokenizer = tiny()
    ids = text_start(tokenizer) if row.plain else prompt_ids(tokenizer, format_prompt(row.instruction, row.input))
    text: list[int] = []
    for random in random_numbers(0, number, tokens):
        with torch.no_grad():
            logits = model(torch.tensor([ids + text])).logits[0, -1].double() / temperature
        if not text:
            logits[tokenizer.eos_token_id] = -torch.inf
        below = logits.softmax(0).cumsum(0)
        token = int((below <= random * below[-1]).sum())
        if token == tokenizer.eos_token_id:
            return text, True
        text.append(token)
    return text, False


@pytest.mark.parametrize("temperature", [1.0, 0.2])
def test_a_batch_with_its_cache_and_padding_draws_what_single_forwards_draw(temperature: float) -> None:
    model, tokenizer = tiny()
    prompts = [*PROMPTS, Row("", "", "")]
    sampler = TextSampler(model, tokenizer, tokens=12, temperature=temperature, seed=0)
    rows, drawn = sampler.sample(prompts, range(4))
    expected = [drawn_one_by_one(row, number, temperature) for number, row in enumerate(prompts)]
    assert drawn == sum(len(text) for text, _ in expected) > 12
    for row, prompt, (text, ended) in zip(rows, prompts, expected, strict=True):
        said = tokenizer.decode(text, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        assert row["output"] == (said if ended else said.rstrip("\ufffd"))
        assert row["continues"] is not ended
        assert (row["instruction"], row["input"]) == (prompt.instruction, prompt.input)


def test_what_is_drawn_has_the_distribution_of_the_model() -> None:
    model, tokenizer = tiny()
    count = 4000
    uniform = torch.stack([random_numbers(3, row, 1) for row in range(count)])
    start = torch.tensor([text_start(tokenizer)])
    with torch.no_grad():
        logits = model(start).logits[:, -1]
    chosen = TokenDraws(uniform, 1, 1.0, [tokenizer.eos_token_id])(
        start.expand(count, -1), logits.expand(count, -1)
    ).argmax(-1)
    logits[0, tokenizer.eos_token_id] = -torch.inf
    expected = logits.softmax(-1)[0] * count
    found = torch.bincount(chosen, minlength=len(expected)).float()
    assert found[tokenizer.eos_token_id] == 0
    usual = expected > 5  # chi squared, whose mean is the number of terms and whose deviation the root of twice it
    terms = int(usual.sum())
    statistic = float(((found - expected)[usual] ** 2 / expected[usual]).sum())
    assert abs(statistic - terms) < 5 * (2 * terms) ** 0.5


def test_the_same_seed_gives_the_same_rows_and_another_one_others(cache_of: Any) -> None:
    first = self_rows(OPTIONS, PROMPTS, ORIGINAL)
    cache_of("second")
    again = self_rows(OPTIONS, PROMPTS, ORIGINAL)
    assert again == first
    assert first.read == 8
    assert [row.instruction for row in first.rows] == [PROMPTS[n % 3].instruction for n in range(8)]
    other = self_rows(replace(OPTIONS, seed=1), PROMPTS, ORIGINAL)
    assert all(a.output != b.output for a, b in zip(first.rows, other.rows, strict=True))
    assert len({row.output for row in first.rows}) == 8


def test_kept_rows_are_not_sampled_again_and_more_of_them_go_on(cache_of: Any, batches: list[list[int]]) -> None:
    first = self_rows(OPTIONS, PROMPTS, ORIGINAL)
    assert batches == [[0, 1, 2], [3, 4, 5], [6, 7, 8]]
    batches.clear()
    assert self_rows(OPTIONS, PROMPTS, Original(MODEL)) == first  # which samples nothing
    more = self_rows(replace(OPTIONS, rows=12), PROMPTS, ORIGINAL)
    assert batches == [[9, 10, 11]]
    assert more.rows[:8] == first.rows
    cache_of("second")
    assert self_rows(replace(OPTIONS, rows=12), PROMPTS, ORIGINAL) == more


@pytest.mark.parametrize(
    "changed",
    [
        {"options": replace(OPTIONS, tokens=11)},
        {"options": replace(OPTIONS, temperature=0.9)},
        {"options": replace(OPTIONS, batch_size=4)},
        {"prompts": [PROMPTS[1], PROMPTS[0], PROMPTS[2]]},
        {"prompts": []},
        {"original": Original(replace(MODEL, dtype="bfloat16"), torch.device("cpu"))},
    ],
)
def test_all_that_rows_depend_on_has_them_sampled_anew(
    cache_of: Any, batches: list[list[int]], changed: dict[str, Any]
) -> None:
    wanted: dict[str, Any] = {"options": OPTIONS, "prompts": PROMPTS, "original": ORIGINAL}
    self_rows(**wanted)
    batches.clear()
    self_rows(**{**wanted, **changed})
    assert batches


def test_another_output_of_a_prompts_row_changes_nothing(cache_of: Any, batches: list[list[int]]) -> None:
    first = self_rows(OPTIONS, PROMPTS, ORIGINAL)
    batches.clear()
    assert self_rows(OPTIONS, [replace(row, output="other") for row in PROMPTS], ORIGINAL) == first
    assert not batches


def test_a_killed_process_is_gone_on_with_and_gives_the_rows_of_one_that_was_not(
    cache_of: Any, batches: list[list[int]]
) -> None:
    whole = self_rows(OPTIONS, PROMPTS, ORIGINAL)
    folder = cache_of("killed")
    batches.clear()
    environment = {**os.environ, "PYTHONHASHSEED": "7", "PYTHONPATH": os.pathsep.join([*sys.path, os.getcwd()])}
    killed = subprocess.run([sys.executable, "-c", KILLED], env=environment, capture_output=True, timeout=300)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert sorted(file.name for file in (folder / SELF).glob("*/*")) == ["000000.json", "000001.json"]
    assert self_rows(OPTIONS, PROMPTS, ORIGINAL) == whole
    assert batches == [[6, 7, 8]]


def test_of_two_processes_one_samples_and_the_other_waits(cache_of: Any, tmp_path: Path) -> None:
    whole = self_rows(OPTIONS, PROMPTS, ORIGINAL)
    cache_of("shared")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([*sys.path, os.getcwd()])}
    command = [sys.executable, "-c", COUNTS, str(tmp_path / "sampled")]
    both = [subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    said = [process.communicate(timeout=300)[0].splitlines()[-1] for process in both]
    assert said == [str([row.output for row in whole.rows])] * 2
    assert sorted((tmp_path / "sampled").read_text().split()) == ["0", "3", "6"]


@pytest.mark.parametrize("damage", [b"{", b"\xff\xfe", b'{"rows": []}', None])
def test_a_damaged_batch_is_sampled_again(cache_of: Any, batches: list[list[int]], damage: bytes | None) -> None:
    first = self_rows(OPTIONS, PROMPTS, ORIGINAL)
    file = next((Path(os.environ["UNIATTN_PL_CACHE"]) / SELF).glob("*/000001.json"))
    if damage is None:
        kept = json.loads(file.read_text())
        kept["rows"][0]["output"] += "!"
        damage = json.dumps(kept).encode()
    file.write_bytes(damage)
    batches.clear()
    with pytest.warns(UserWarning, match="is damaged and sampled again"):
        assert self_rows(OPTIONS, PROMPTS, ORIGINAL) == first
    assert batches == [[3, 4, 5]]


def test_to_look_samples_nothing(cache_of: Any) -> None:
    with pytest.raises(NotSampledError, match=r"the text of 'tiny-llama' .* is sampled when the fit starts"):
        self_rows(OPTIONS, PROMPTS, Original(MODEL))


def test_a_cache_folder_that_cannot_be_written_is_told(cache_of: Any) -> None:
    folder = cache_of("a file")
    load_tokenizer("tiny-llama")
    for file in sorted(folder.rglob("*"), reverse=True):
        file.unlink() if file.is_file() else file.rmdir()
    (folder / SELF).write_text("in the way")
    with pytest.raises(UserError, match=r"text sampled from the model is kept in .* cannot be used .*UNIATTN_PL_CACHE"):
        self_rows(OPTIONS, PROMPTS, ORIGINAL)


def rows_file(folder: Path, count: int = 12) -> str:
    file = folder / "rows.jsonl"
    lines = [json.dumps({"instruction": f"Count to {n}.", "input": "", "output": f"Up to {n}."}) for n in range(count)]
    file.write_text("\n".join(lines))
    return str(file)


def test_prompts_are_continued_but_those_that_are_held_out(cache_of: Any, tmp_path: Path) -> None:
    plain = DataConfig(source=rows_file(tmp_path), validation_size=4)
    without = load_split(plain)
    sampled = replace(OPTIONS, prompts=plain.source)
    split = load_split(replace(plain, source=SELF, self_text=sampled), ORIGINAL)
    assert split.validation == without.validation
    asked = [row.instruction for row in without.train]
    assert sorted(row.instruction for row in split.train) == sorted(asked)
    assert {row.output for row in split.train}.isdisjoint(row.output for row in without.train)
    assert split.overlap == 0
    beside = load_split(replace(plain, further_sources=[SELF], self_text=sampled), ORIGINAL)
    assert beside.validation == without.validation
    assert sorted(beside.train, key=str) == sorted([*without.train, *split.train], key=str)
    held_out_elsewhere = replace(plain, source=SELF, validation_source=plain.source, self_text=sampled)
    elsewhere = load_split(held_out_elsewhere, ORIGINAL)
    assert elsewhere.overlap == 0
    assert elsewhere.validation == without.validation


def test_texts_and_rows_of_several_sources_are_trained_on_together(cache_of: Any, tmp_path: Path) -> None:
    text = tmp_path / "wiki.raw"
    text.write_text("".join(f"Line {n} of a text about rain and what it does.\n" for n in range(400)))
    config = DataConfig(
        source=SELF,
        further_sources=[str(text)],
        validation_source=rows_file(tmp_path),
        validation_size=4,
        max_length=300,
        packing=True,
        self_text=replace(OPTIONS, prompts=BOS),
    )
    sizes = {"batch_size": 2, "micro_batch_size": 2, "eval_batch_size": 2}
    data = InstructionDataModule(config, byte_tokenizer(), seed=0, original=ORIGINAL, **sizes)
    report = data.report
    assert report.source == f"{SELF} + {text}"
    assert report.format == f"{SELF} + text"
    assert (report.train_rows, report.validation_rows, report.dropped) == (8 + 5, 4, 0)
    assert report.train > report.train_rows  # the text's rows are several sequences each
    assert report.response_tokens == report.tokens - report.train  # all but what each begins with
    for batch in data.train_dataloader():
        assert batch["input_ids"].shape[1] <= 300
    split = load_split(replace(config, num_samples=10), ORIGINAL)
    assert (len(split.train), len(split.validation)) == (6, 4)
    first, second = (load_split(c, ORIGINAL).train_contents() for c in (config, config))
    other = load_split(replace(config, self_text=replace(config.self_text, seed=9)), ORIGINAL).train_contents()
    assert first.digest == second.digest != other.digest
    assert sorted(first.labels) == list(range(1, 14))


def test_chats_are_continued_in_the_template_and_their_last_answer_is_drawn(cache_of: Any, tmp_path: Path) -> None:
    jinja = tmp_path / "own.jinja"
    jinja.write_text(template("mistral", tagged=False))
    file = tmp_path / "chats.jsonl"
    chats = []
    for number in range(8):
        said = [("user", f"Why {number}?"), ("assistant", "So."), ("user", "Sure?"), ("assistant", "Yes.")]
        messages = [{"role": role, "content": content} for role, content in said]
        chats.append({"messages": messages[: 2 + number % 2 * 2]})
    file.write_text("\n".join(map(json.dumps, chats)))
    config = DataConfig(
        source=SELF,
        validation_size=2,
        template=str(jinja),
        max_length=400,
        self_text=replace(OPTIONS, prompts=str(file), tokens=200),
    )
    split = load_split(config, ORIGINAL)
    asked = [[message["content"] for message in row.conversation.asked] for row in split.train]
    assert {len(turns) for turns in asked} == {1, 3}
    assert all(turns[0].startswith("Why ") and turns[1:] in ([], ["So.", "Sure?"]) for turns in asked)
    _, tokenizer = tiny()
    chat = ChatTemplate.of(config, tokenizer)
    assert chat is not None
    rows = encode_rows(split.train, tokenizer, 400, template=chat)
    for row, example in zip(split.train, (rows[index] for index in range(len(rows))), strict=True):
        [(start, end)] = example.spans.tolist()
        assert example.tokens[:start].tolist() == chat.prompt_ids(row.conversation.asked)
        text = str(tokenizer.decode(example.tokens[start:end]))
        assert end == len(example.tokens)
        assert text == f" {row.conversation.messages[-1]['content']}" + ("" if row.continues else "</s>")
    assert {row.continues for row in split.train} == {True, False}
    in_paper = replace(config, template="paper")
    with pytest.raises(NotSampledError):  # others of other prompts
        load_split(in_paper, Original(MODEL))


def test_fits_train_on_it_and_a_second_one_samples_nothing(
    cache_of: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    batches: list[list[int]],
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("tiny.yaml").write_text(CONFIG)
    Path("rows.jsonl").write_text(ROWS)
    sampled = "data.source={self: 7, prompts: rows.jsonl, tokens: 24, batch_size: 4}"
    fit = ["fit", "--config", "tiny.yaml", sampled, "data.max_length=256", "data.packing=true"]
    assert main([*fit, "--dry-run"]) == 0
    assert "the text of 'tiny-llama' (data.source=self) is sampled when the fit starts" in capsys.readouterr().out
    assert not batches
    assert main(fit) == 0
    assert batches == [[0, 1, 2, 3], [4, 5, 6, 7]]
    assert "data: self (self), 13 rows read, 7 train, 2 validation" in capsys.readouterr().out
    assert main([*fit, "--dry-run"]) == 0
    assert "data: self (self), 13 rows read, 7 train, 2 validation" in capsys.readouterr().out
    assert main([*fit, "name=second", "seed=1"]) == 0
    assert main(["evaluate", "--from", "runs/tiny", "evaluation.probes=[held_out]"]) == 0
    assert len(batches) == 2
    capsys.readouterr()
    other = sampled.replace("7", "6")
    assert main(["fit", "--config", "tiny.yaml", other, *fit[4:], "data.self_text.seed=1"]) == 2
    assert "data.self_text.rows was 7 when runs/tiny was started and is now 6." in capsys.readouterr().err


@settings(max_examples=60, deadline=None)
@given(
    st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=120).filter(str.strip),
    st.booleans(),
    st.integers(8, 40),
    st.booleans(),
)
def test_a_plain_text_is_cut_into_sequences_that_lose_nothing(
    text: str, continues: bool, max_length: int, bos: bool
) -> None:
    tokenizer = byte_tokenizer(bos=bos)
    encoded = encode_rows([Row("", "", text, continues=continues)], tokenizer, max_length)
    joined: list[int] = []
    for index in range(len(encoded)):
        example = encoded[index]
        assert example.tokens[: example.prompt_length].tolist() == [tokenizer.bos_token_id]
        assert len(example.tokens) == max_length or index == len(encoded) - 1
        assert example.row == 0
        joined += example.tokens[example.prompt_length :].tolist()
    expected = tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
    assert joined == expected + ([] if continues else [tokenizer.eos_token_id])
    assert (encoded.counts.truncated, encoded.counts.dropped) == (0, 0)


def test_a_response_that_continues_has_no_end() -> None:
    tokenizer = byte_tokenizer()
    ended, cut = (encode_rows([Row("Go.", "", "On", continues=c)], tokenizer, 300)[0].tokens for c in (False, True))
    assert ended.tolist() == [*cut.tolist(), tokenizer.eos_token_id]


@settings(max_examples=30, deadline=None)
@given(st.lists(st.text(st.characters(exclude_categories=["Cs", "Cc", "Zl", "Zp"]), max_size=3000), max_size=12))
def test_the_rows_of_a_text_file_are_its_text(tmp_path_factory: pytest.TempPathFactory, lines: list[str]) -> None:
    file = tmp_path_factory.mktemp("text") / "a.txt"
    text = "begins\n" + "\n".join(lines)
    file.write_text(text, encoding="utf-8")
    found = read_source(str(file), format="pmc")
    assert found.format == "text"
    assert all(row.plain and row.output.strip() for row in found.rows)
    kept = "".join(row.output for row in found.rows)
    assert kept.split() == text.split()
    if not found.filtered:
        assert kept == text
        assert [row.continues for row in found.rows] == [True] * (len(found.rows) - 1) + [False]
    assert all(len(row.output) <= 4096 for row in found.rows)


def test_a_text_file_that_is_none_is_told(tmp_path: Path) -> None:
    (tmp_path / "a.raw").write_bytes(b"\x80\x81")
    with pytest.raises(UserError, match=r"a\.raw' is not a text file in UTF-8"):
        read_source(str(tmp_path / "a.raw"))
