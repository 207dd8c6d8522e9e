"""Model folders that are broken, incomplete or something else: one sentence that names the file, before any weight."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from uniattn_pl.cli import main
from uniattn_pl.errors import UserError
from uniattn_pl.families.catalogue import named_model
from uniattn_pl.modeling.loading.pretrained import (
    check_weights,
    load_folder,
    load_folder_tokenizer,
    load_model,
    load_shape,
    load_tokenizer,
)
from uniattn_pl.modeling.loading.weight_files import check_weight_files

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a2146\nsize 12345\n"
PAGE = b"\n<!DOCTYPE html><html><body>404: not found</body></html>"
Change = Callable[[Path], Any]


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A tiny model folder to spoil."""
    return Path(shutil.copytree(named_model("tiny-llama"), tmp_path / "model"))


@pytest.fixture
def user_error() -> Callable[..., None]:
    """Call a function that must refuse its arguments with a message that holds a text."""

    def check(message: str, function: Callable[..., Any], *arguments: Any) -> None:
        with pytest.raises(UserError) as caught:
            function(*arguments)
        assert message in str(caught.value)
        assert "\n" not in str(caught.value)

    return check


def write(name: str, content: bytes) -> Change:
    return lambda folder: (folder / name).write_bytes(content)


def cut(name: str, length: int) -> Change:
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[:length])


def remove(*names: str) -> Change:
    return lambda folder: [(folder / name).unlink() for name in names]


def config(**values: object) -> Change:
    """Change keys of config.json; an ellipsis takes one away."""

    def change(folder: Path) -> None:
        merged = {**json.loads((folder / "config.json").read_text()), **values}
        kept = {key: value for key, value in merged.items() if value is not ...}
        (folder / "config.json").write_text(json.dumps(kept))

    return change


def index(**weight_map: object) -> Change:
    """One shard holds everything; the index says what it likes."""

    def change(folder: Path) -> None:
        (folder / WEIGHTS).rename(folder / "model-00001-of-00002.safetensors")
        (folder / INDEX).write_text(json.dumps({"weight_map": weight_map}))

    return change


def link_to_nothing(folder: Path) -> None:
    (folder / WEIGHTS).unlink()
    (folder / WEIGHTS).symlink_to("../blobs/gone")


SHARD = "model-00001-of-00002.safetensors"
WEIGHTS_REFUSED: dict[str, tuple[Change, str]] = {
    "LFS pointer": (write(WEIGHTS, POINTER), f"{WEIGHTS}' is a Git LFS pointer"),
    "web page": (write(WEIGHTS, PAGE), f"{WEIGHTS}' is a web page"),
    "empty": (write(WEIGHTS, b""), f"{WEIGHTS}' is empty (0 bytes)"),
    "cut in the data": (cut(WEIGHTS, 20_000), f"{WEIGHTS}' is damaged or cut off at 20,000 bytes"),
    "cut in the header": (cut(WEIGHTS, 100), f"{WEIGHTS}' is damaged or cut off at 100 bytes"),
    "cut in the length": (cut(WEIGHTS, 5), f"{WEIGHTS}' is damaged or cut off at 5 bytes"),
    "no weights": (remove(WEIGHTS), f"has no weights: there is no {WEIGHTS}"),
    "a dead link": (link_to_nothing, f"{WEIGHTS}' is a link to '../blobs/gone', which is not there"),
    "a missing shard": (
        index(**{"lm_head.weight": "model-00002-of-00002.safetensors"}),
        "model-00002-of-00002.safetensors' is not there, though the index beside it names it",
    ),
    "a weight elsewhere": (index(**{"no.such": SHARD}), f"{SHARD}' lacks 'no.such'"),
    "a shard of no name": (index(**{"no.such": 3}), f"{INDEX}' names '3'"),
    "an empty index": (index(), f"{INDEX}' has no weight_map"),
    "an index that is a pointer": (lambda f: (index()(f), write(INDEX, POINTER)(f)), f"{INDEX}' is a Git LFS pointer"),
    "sizes of another model": (
        config(intermediate_size=3_000_000),
        "config.json': intermediate_size is 3000000, but the weights beside it have no side longer than 259",
    ),
    "layers of another model": (
        config(num_hidden_layers=9_000),
        "config.json': num_hidden_layers is 9000, but the weights beside it have only 75 tensors",
    ),
    "GPTQ": (config(quantization_config={"quant_method": "gptq", "bits": 4}), "are quantised (gptq, 4 bits)"),
    "FP8": (config(quantization_config={"quant_method": "fp8"}), "are quantised (fp8)"),
    "odd quantisation": (config(quantization_config="4bit"), "config.json': quantization_config names no quant_method"),
    "weights elsewhere": (config(transformers_weights="../x.safetensors"), "config.json' names '../x.safetensors'"),
}


@pytest.mark.parametrize(("change", "message"), WEIGHTS_REFUSED.values(), ids=WEIGHTS_REFUSED)
def test_weights_that_cannot_be_used_are_named_with_the_reason(
    model: Path, change: Change, message: str, user_error: Callable[..., None]
) -> None:
    change(model)
    user_error(message, check_weight_files, model)
    user_error(message, check_weights, str(model))
    user_error(message, load_model, str(model))
    user_error(message, load_folder, model)


@pytest.mark.parametrize("name", ["tiny-llama", "sharded"])
def test_good_weights_pass(model: Path, name: str) -> None:
    if name == "sharded":
        load_model(str(model)).save_pretrained(model.parent / name, max_shard_size="20KB")
        name = str(model.parent / name)
    check_weights(name)


def test_every_broken_shard_is_named_at_once(model: Path) -> None:
    sharded = model.parent / "sharded"
    load_model(str(model)).save_pretrained(sharded, max_shard_size="20KB")
    first, second, *_ = sorted(sharded.glob("*.safetensors"))
    first.write_bytes(POINTER)
    second.unlink()
    with pytest.raises(UserError) as caught:
        check_weight_files(sharded)
    assert [problem.split("'")[1] for problem in caught.value.problems] == [str(first), str(second)]


CONFIGS_REFUSED: dict[str, tuple[Change, str]] = {
    "no JSON": (write("config.json", b"{broken"), "is not valid JSON (Expecting property name"),
    "LFS pointer": (write("config.json", POINTER), "is a Git LFS pointer"),
    "empty": (write("config.json", b""), "is empty (0 bytes)"),
    "no text": (write("config.json", b"\xff\xfe\x00"), "is not UTF-8 text"),
    "a list": (write("config.json", b"[1]"), "holds a list; it must be a JSON object"),
    "null": (write("config.json", b"null"), "holds null; it must be a JSON object"),
    "nested": (write("config.json", b"[" * 100_000), "holds JSON that cannot be read (maximum recursion depth"),
    "digits": (write("config.json", b'{"a": ' + b"1" * 5_000 + b"}"), "holds JSON that cannot be read (Exceeds"),
    "no type": (config(model_type=...), "it has no model_type"),
    "an unknown type": (config(model_type="lama"), "knows no model type 'lama'. Did you mean 'llama'?"),
    "a type that is none": (config(model_type=["llama"]), "model_type is ['llama']; it must be a string"),
    "a negative size": (config(hidden_size=-4), "hidden_size is -4; it must be a whole number from 1"),
    "a size in words": (config(vocab_size="many"), "vocab_size is 'many'; it must be a whole number"),
    "layers without end": (config(num_hidden_layers=10**9), "num_hidden_layers is 1000000000; it must be"),
}


@pytest.mark.parametrize(("change", "message"), CONFIGS_REFUSED.values(), ids=CONFIGS_REFUSED)
def test_a_config_that_is_none_is_named_by_whatever_reads_it(
    model: Path, change: Change, message: str, user_error: Callable[..., None]
) -> None:
    change(model)
    for load in (load_shape, load_model, load_tokenizer):
        user_error(message, load, str(model))
    for load in (load_folder, load_folder_tokenizer):
        user_error(message, load, model)


OTHER_CONFIGS: dict[str, tuple[Change, str]] = {
    "heads that do not divide": (config(num_attention_heads=3), "is not a multiple of the number of attention heads"),
    "an unknown activation": (config(hidden_act="nothing"), "cannot be loaded: 'nothing' (KeyError)"),
    "weights of another size": (config(intermediate_size=65), "has weights of other sizes than its config.json says"),
    "a layer too many": (config(num_hidden_layers=9), "are not complete: model.layers.8."),
    "another kind of model": (config(model_type="vit"), "ViTConfig"),
    "a model with an encoder": (config(model_type="t5"), "are not complete: "),
}


@pytest.mark.parametrize(("change", "message"), OTHER_CONFIGS.values(), ids=OTHER_CONFIGS)
def test_what_transformers_says_to_a_config_is_one_sentence_and_no_weight_is_made_up(
    model: Path, change: Change, message: str, user_error: Callable[..., None]
) -> None:
    change(model)
    user_error(message, load_model, str(model))
    user_error(message, load_folder, model)


TOKENIZERS_REFUSED: dict[str, tuple[Change, str]] = {
    "none": (remove("tokenizer.json", "tokenizer_config.json"), "model' has no tokenizer"),
    "no vocabulary": (remove("tokenizer.json"), "the tokenizer of"),
    "LFS pointer": (write("tokenizer.json", POINTER), "tokenizer.json' is a Git LFS pointer"),
    "empty": (write("tokenizer.json", b""), "tokenizer.json' is empty"),
    "no JSON": (write("tokenizer.json", b"{broken"), "tokenizer.json' is not valid JSON"),
    "an empty object": (write("tokenizer.json", b"{}"), "the tokenizer of"),
    "a list": (write("tokenizer_config.json", b"[]"), "tokenizer_config.json' holds a list"),
    "a damaged sentencepiece model": (
        lambda folder: (remove("tokenizer.json")(folder), write("tokenizer.model", PAGE)(folder)),
        "tokenizer.model' is a web page",
    ),
}


@pytest.mark.parametrize(("change", "message"), TOKENIZERS_REFUSED.values(), ids=TOKENIZERS_REFUSED)
def test_a_tokenizer_that_is_none_is_named(
    model: Path, change: Change, message: str, user_error: Callable[..., None]
) -> None:
    change(model)
    user_error(message, load_tokenizer, str(model))
    user_error(message, load_folder_tokenizer, model)


def test_a_command_on_a_broken_folder_ends_with_one_line(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (model / WEIGHTS).write_bytes(POINTER)
    assert main(["generate", "--from", str(model), "--prompt", "x"]) == 2
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize(
    "words",
    [["generate", "--prompt", "x"], ["export", "--to", "exported"], ["evaluate", "evaluation.probes=[held_out]"]],
    ids=lambda words: words[0],
)
def test_a_dry_run_opens_what_the_command_will_open(
    model: Path, words: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(model.parent)
    command = [words[0], "--from", str(model), *words[1:], "--dry-run"]
    assert main(command) == 0
    (model / "tokenizer.json").write_bytes(POINTER)
    assert main(command) == 2
    (model / WEIGHTS).write_bytes(PAGE)
    assert main(command) == 2
    printed = capsys.readouterr().err
    assert "tokenizer.json' is a Git LFS pointer" in printed
    assert f"{WEIGHTS}' is a web page" in printed


@pytest.mark.parametrize("source", ["a/b c", "a/" + "b" * 100, "a/b."])
def test_a_source_that_cannot_be_on_the_hub_is_no_model(source: str, user_error: Callable[..., None]) -> None:
    user_error(f"there is no model '{source}'", load_model, source)


def with_token(folder: Path, **tokens: str) -> None:
    """Add special tokens to a folder's tokenizer, as for chats, and leave its model as it is."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_special_tokens(tokens)
    tokenizer.save_pretrained(folder)


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        (
            {"eos_token": "<|im_end|>"},
            "has <|im_end|> (eos_token) as token 259, but the model's embedding has 259 rows",
        ),
        ({"pad_token": "[PAD]"}, "has [PAD] (pad_token) as token 259"),
    ],
)
def test_a_token_beyond_the_embedding_is_named_with_both_numbers(
    model: Path, tokens: dict[str, str], message: str, user_error: Callable[..., None]
) -> None:
    with_token(model, **tokens)
    user_error(message, load_tokenizer, str(model))
    user_error(message, load_folder_tokenizer, model)


def test_a_vocabulary_of_another_model_is_named(model: Path, user_error: Callable[..., None]) -> None:
    config(vocab_size=100, pad_token_id=2)(model)
    user_error("as token 100 and 158 more, but the model's embedding has 100 rows", load_tokenizer, str(model))


def test_a_special_token_that_no_text_becomes_may_lie_beyond(model: Path) -> None:
    """Gemma-3's text models come with the token of an image, which they have no row for."""
    with_token(model, additional_special_tokens=["<image>"])
    assert len(load_tokenizer(str(model))) == 260
