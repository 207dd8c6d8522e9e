"""Tokens are made once, found again by what they depend on, and made again when they are damaged."""

from __future__ import annotations

import fcntl
import multiprocessing
import os
import signal
import subprocess
import sys
import warnings
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tests.chat_templates import tokenizer_of
from tests.data.conftest import byte_tokenizer
from transformers import PreTrainedTokenizerFast

from uniattn_pl.config.sections.data_section import DataConfig
from uniattn_pl.data import InstructionDataModule, Row, encode_rows, token_cache
from uniattn_pl.data.chat_template import ChatTemplate
from uniattn_pl.data.rows import map_row
from uniattn_pl.data.token_cache import encode_cached

ROWS = [
    Row("Is it?", "Value 3.", "No. It is within.", "No", ("Yes", "No")),
    Row("z" * 400, "", "Dropped."),
    Row("Say why.", "Rain is wet.", "Because it is water.\n\u00e9"),
]
OTHER_PROCESS = """
import sys
from tests.data.test_token_cache import ROWS
from tests.data.conftest import byte_tokenizer
from uniattn_pl.data.chat_template import ChatTemplate
from uniattn_pl.data.rows import map_row
from uniattn_pl.data.token_cache import encode_cached
tokenizer = byte_tokenizer(bos=True)
tokenizer(["used before"], truncation=True, max_length=4, padding="max_length")
encode_cached(ROWS, tokenizer, 300, with_choices=True)
"""


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("UNIATTN_PL_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "tokens"


@pytest.fixture
def calls(monkeypatch):
    """Counts what is tokenised."""
    counted = []
    original = PreTrainedTokenizerFast.__call__

    def counting(self, *args, **options):
        counted.append(args)
        return original(self, *args, **options)

    monkeypatch.setattr(PreTrainedTokenizerFast, "__call__", counting)
    return counted


def assert_same(found, expected):
    parts = [
        (rows.tokens, rows.lengths, rows.spans.bounds, rows.spans.counts, rows.source_rows)
        for rows in (found, expected)
    ]
    for one, other in zip(*parts, strict=True):
        assert torch.equal(one, other)
        assert one.dtype == other.dtype
    assert (found.choices, found.counts) == (expected.choices, expected.counts)


def encode(rows=ROWS, tokenizer=None, max_length=300, with_choices=True):
    return encode_cached(rows, tokenizer or byte_tokenizer(bos=True), max_length, with_choices=with_choices)


def entry(cache: Path) -> Path:
    (folder,) = (path for path in cache.iterdir() if path.is_dir())
    return folder


def test_the_same_rows_are_not_tokenised_again(calls):
    expected = encode_rows(ROWS, byte_tokenizer(bos=True), 300, with_choices=True)
    assert (expected.counts.dropped, expected.choices) == (1, [(expected.choices[0][0], 1), ((), -1)])
    first = encode()
    calls.clear()
    second = encode()
    assert not calls
    assert_same(first, expected)
    assert_same(second, expected)
    assert second.tokens.dtype == torch.int32


@pytest.mark.parametrize(
    "changed",
    [
        {"rows": [*ROWS[:2], replace(ROWS[2], output="Because it is water.")]},
        {"rows": ROWS[:2]},
        {"rows": [ROWS[1], ROWS[0], ROWS[2]]},
        {"rows": [replace(ROWS[0], instruction="Is it?V", input="alue 3."), *ROWS[1:]]},
        {"rows": [replace(ROWS[0], answer=None, choices=()), *ROWS[1:]]},
        {"max_length": 301},
        {"with_choices": False},
        {"tokenizer": byte_tokenizer()},
        {"tokenizer": byte_tokenizer(bos=True, pad=False)},
    ],
)
def test_anything_that_tokens_depend_on_makes_another_entry(calls, changed):
    encode()
    calls.clear()
    encode(**changed)
    assert calls


def test_a_chat_template_and_what_is_learned_of_it_make_other_entries(calls):
    tokenizer = tokenizer_of("smollm2")
    messages = [{"role": role, "content": role} for role in ("user", "assistant", "user", "assistant")]
    row = map_row({"messages": messages}, "chat", whole_chats=True)

    def kept(**options):
        chat = ChatTemplate.of(DataConfig(template="chat", **options), tokenizer)
        return encode_cached([row], tokenizer, 500, template=chat)

    first = kept()
    calls.clear()
    again = kept()
    assert not calls
    assert_same(again, first)
    assert again[0].spans.tolist() == first[0].spans.tolist()
    assert len(first[0].spans) == 2
    assert len(kept(loss_turns="last")[0].spans) == 1
    assert calls
    tokenizer.chat_template = tokenizer.chat_template.replace("SmolLM", "another")
    assert len(kept()[0].tokens) != len(first[0].tokens)


def test_an_end_of_sequence_token_that_was_set_later_counts(calls):
    encode()
    other = byte_tokenizer(bos=True)
    other.eos_token = "<pad>"
    calls.clear()
    assert encode(tokenizer=other)[0].tokens[-1] == other.convert_tokens_to_ids("<pad>")


def test_another_process_finds_the_tokens(cache, calls):
    # Its hash seed and the tokenizer's former calls are other ones.
    environment = {**os.environ, "PYTHONHASHSEED": "7", "PYTHONPATH": os.pathsep.join([*sys.path, os.getcwd()])}
    subprocess.run([sys.executable, "-c", OTHER_PROCESS], env=environment, check=True, timeout=120)
    folder = entry(cache)
    calls.clear()
    encode()
    assert not calls
    assert entry(cache) == folder


def flip_bit(file: Path, at: int) -> None:
    content = bytearray(file.read_bytes())
    content[at] ^= 1
    file.write_bytes(content)


@pytest.mark.parametrize(
    "damage",
    [
        lambda folder: flip_bit(folder / "tokens.safetensors", -5),
        lambda folder: flip_bit(folder / "tokens.safetensors", 20),
        lambda folder: flip_bit(folder / "checksum", 0),
        lambda folder: os.truncate(folder / "tokens.safetensors", 100),
        lambda folder: os.truncate(folder / "tokens.safetensors", 0),
        lambda folder: (folder / "tokens.safetensors").unlink(),
        lambda folder: (folder / "checksum").unlink(),
    ],
)
def test_a_damaged_entry_is_made_again_with_a_warning(cache, calls, damage):
    expected = encode()
    damage(entry(cache))
    with pytest.warns(UserWarning, match="damaged"):
        assert_same(encode(), expected)
    calls.clear()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert_same(encode(), expected)
    assert not calls


FORK = multiprocessing.get_context("fork")


def test_a_kill_while_tokens_are_written_leaves_nothing_that_counts(cache, calls):
    def killed():
        token_cache._checksum = lambda _: os.kill(os.getpid(), signal.SIGKILL)
        encode()

    process = FORK.Process(target=killed)
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    (leftover,) = (path for path in cache.iterdir() if path.is_dir())
    assert leftover.name.startswith(".")
    calls.clear()
    encode()
    assert calls
    assert not leftover.exists()


def test_of_processes_at_the_same_time_one_tokenises(cache):
    begun, waits, go_on = FORK.Event(), FORK.Event(), FORK.Event()

    def slow():
        def encode_slowly(*args, **options):
            begun.set()
            go_on.wait()
            return encode_rows(*args, **options)

        token_cache.encode_rows = encode_slowly
        encode()

    def waiting():
        token_cache.encode_rows = None  # can only find what the other has made
        flock = fcntl.flock

        def watched(file, operation):
            with pytest.raises(BlockingIOError):
                flock(file, operation | fcntl.LOCK_NB)
            waits.set()
            flock(file, operation)

        fcntl.flock = watched
        encode()

    first = FORK.Process(target=slow)
    first.start()
    assert begun.wait(60)
    second = FORK.Process(target=waiting)
    second.start()
    assert waits.wait(60)
    go_on.set()
    first.join()
    second.join()
    assert (first.exitcode, second.exitcode) == (0, 0)


def test_a_folder_that_cannot_be_written_costs_only_the_cache(cache):
    cache.parent.mkdir()
    cache.write_text("a file in the place of the folder")
    with pytest.warns(UserWarning, match="tokens are not kept"):
        assert_same(encode(), encode_rows(ROWS, byte_tokenizer(bos=True), 300, with_choices=True))


def test_a_tokenizer_with_code_of_its_own_is_not_cached(cache):
    class Own(PreTrainedTokenizerFast):
        pass

    encode(tokenizer=Own(tokenizer_object=byte_tokenizer().backend_tokenizer, eos_token="<eos>"))
    assert not cache.exists()


@pytest.mark.parametrize("kept", [True, False])
def test_a_second_fit_tokenises_only_without_the_cache(calls, kept):
    def batches():
        config = DataConfig(num_samples=40, validation_size=10, max_length=2_048, token_cache=kept)
        sizes = {"batch_size": 4, "micro_batch_size": 4, "eval_batch_size": 8}
        data = InstructionDataModule(config, byte_tokenizer(), **sizes, seed=0)
        return [*data.train_dataloader(), *data.validation_batches(10, 8)]

    first = batches()
    calls.clear()
    second = batches()
    assert bool(calls) is not kept
    for one, other in zip(first, second, strict=True):
        assert one.keys() == other.keys()
        assert all(torch.equal(one[name], other[name]) for name in one)
