"""Greedy is greedy: nothing of a checkpoint's generation config reaches the tokens. A seed repeats a text."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers.generation import utils as generation_code

from uniattn_pl.cli import main
from uniattn_pl.data.prompt_ids import prompt_ids
from uniattn_pl.data.prompts import format_prompt
from uniattn_pl.display import notices
from uniattn_pl.inference.generation import generate
from uniattn_pl.modeling.conversion.convert import apply_architecture
from uniattn_pl.modeling.decoding import own_defaults
from uniattn_pl.modeling.loading.pretrained import load_folder, load_model, load_tokenizer

PROMPT = "The heart pumps blood through the body."
TOKENS = 12
LEAKS = {
    "repetition_penalty": 1.5,
    "no_repeat_ngram_size": 1,
    "bad_words_ids": [[220], [221], [222]],
    "suppress_tokens": list(range(100, 250)),
    "begin_suppress_tokens": [5, 6],
    "forced_bos_token_id": 7,
    "forced_eos_token_id": 8,
    "min_length": 60,
    "min_new_tokens": 2,
    "length_penalty": 3.0,
    "num_beams": 3,
    "penalty_alpha": 0.6,
    "do_sample": True,
    "temperature": 5.0,
    "top_k": 3,
    "top_p": 0.5,
    "min_p": 0.3,
    "typical_p": 0.4,
    "epsilon_cutoff": 0.1,
    "sequence_bias": [[[9], 20.0]],
    "exponential_decay_length_penalty": [2, 3.0],
    "stop_strings": ["e"],
    "num_return_sequences": 2,
    "max_length": 3,
    "max_time": 1e-9,
    "use_cache": False,
    "prompt_lookup_num_tokens": 3,
    "guidance_scale": 3.0,
    "return_dict_in_generate": True,
    "cache_implementation": "static",
}


@pytest.fixture(scope="module", params=["stock", "uniattn"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder whose generation config says all that it can against the likeliest tokens."""
    path: Path = tmp_path_factory.mktemp(request.param)
    model = load_model("tiny-llama", dtype="float32")
    if request.param == "uniattn":
        apply_architecture(model, "uniattn", superblock_size=4, num_superblocks=1)
    model.save_pretrained(path)
    load_tokenizer("tiny-llama").save_pretrained(path)
    (path / "generation_config.json").write_text(json.dumps(LEAKS))
    return path


def likeliest(folder: Path, ids: list[int]) -> str:
    """The text of an argmax loop without a cache."""
    model, tokenizer, start = load_folder(folder), load_tokenizer(str(folder)), len(ids)
    for _ in range(TOKENS):
        with torch.no_grad():
            ids = [*ids, int(model(torch.tensor([ids])).logits[0, -1].argmax())]
        if ids[-1] == tokenizer.eos_token_id:
            break
    return str(tokenizer.decode(ids[start:], skip_special_tokens=True))


@pytest.mark.parametrize("instruction", [False, True])
def test_temperature_zero_takes_the_likeliest_token_every_time(folder: Path, instruction: bool) -> None:
    tokenizer = load_tokenizer(str(folder))
    ids = prompt_ids(tokenizer, format_prompt(PROMPT) if instruction else PROMPT)
    assert generate(folder, [PROMPT], max_new_tokens=TOKENS, instruction=instruction) == [likeliest(folder, ids)]


def test_a_long_prompt_goes_in_chunks_without_a_word(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    monkeypatch.setattr(generation_code.logger, "warning_once", lambda line, *_: said.append(line))
    text = " ".join(str(number * number) for number in range(90))
    ids = prompt_ids(load_tokenizer(str(folder)), text)
    assert len(ids) > 256
    assert generate(folder, [text], max_new_tokens=TOKENS) == [likeliest(folder, ids)]
    assert not said


def test_a_seed_gives_the_same_text_again(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def drawn(*words: str) -> str:
        command = ["generate", "--from", str(folder), "--prompt", PROMPT, "--max-new-tokens", "8"]
        assert main([*command, "--temperature", "1", *words]) == 0
        return capsys.readouterr().out

    first = drawn("--seed", "3")
    torch.manual_seed(0)
    assert drawn("--seed", "3") == first
    assert drawn("--seed", "4") != first
    assert drawn() != drawn()


@pytest.mark.parametrize("seed", ["-1", str(2**32)])
def test_a_seed_has_bounds(seed: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["generate", "--from", str(folder), "--prompt", PROMPT, "--seed", seed]) == 2
    assert f"--seed is a number from 0 to {2**32 - 1}; got {seed}" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--prompt", "smile \ud83d"], "--prompt 'smile \\ud83d' is not text: it has half a character."),
        (["--prompt", "a\udc80"], "--prompt 'a\\udc80' is not text"),
        (["--prompt", "a", "--temperature", "1e-40"], "--temperature is 0, or a number of at least 1e-06; got 1e-40."),
        (["--prompt", "a", "--temperature", "nan"], "--temperature is 0, or a number of at least 1e-06; got nan."),
        (["--prompt", "a", "--temperature", "-1"], "--temperature is 0, or a number of at least 1e-06; got -1."),
    ],
)
def test_what_nothing_can_be_made_of_is_refused(
    words: list[str], says: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["generate", "--from", str(folder), *words]) == 2
    assert says in capsys.readouterr().err


def test_sampling_draws_from_the_whole_distribution(folder: Path) -> None:
    """At a temperature that makes all tokens alike, more than the 50 of transformers' own default are drawn."""
    texts = generate(folder, [PROMPT] * 3, max_new_tokens=60, temperature=1e6, seed=0)
    ids = {token for text in texts for token in load_tokenizer(str(folder))(text).input_ids}
    assert len(ids) > 60


def test_the_models_own_defaults_come_back(folder: Path) -> None:
    model = load_folder(folder)
    former = model.generation_config
    with own_defaults(model, load_tokenizer(str(folder))):
        assert model.generation_config.repetition_penalty is None
    assert model.generation_config is former


def test_an_empty_prompt_is_refused_or_begins_with_bos(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["generate", "--from", str(folder), "--prompt", ""]) == 2
    assert "--prompt '' has no token" in capsys.readouterr().err
    from tokenizers import processors

    tokenizer = load_tokenizer(str(folder))
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 1)]
    )
    load_folder(folder).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    assert generate(tmp_path, [""], max_new_tokens=TOKENS) == [likeliest(tmp_path, [0])]


def test_what_is_odd_about_a_prompt_is_told_once(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(notices, "_told", set())
    model = load_folder(folder)
    model.config.max_position_embeddings = 16
    model.save_pretrained(tmp_path)
    load_tokenizer(str(folder)).save_pretrained(tmp_path)
    command = ["generate", "--from", str(tmp_path), "--prompt", "a </s> b", "--prompt", "c </s>", "--max-new-tokens"]
    assert main([*command, "1"]) == 0
    told = capsys.readouterr().err
    assert told.count("'</s>' in a prompt is text") == 1
    assert "positions" not in told
    assert main([*command, "16"]) == 0
    assert "up to 16 new ones are more than the 16 positions of this model" in capsys.readouterr().err
