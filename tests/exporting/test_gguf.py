"""GGUF files in stock llama.cpp: its answers are those of torch, its ids the tokenizer's, its cache the plan's."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gguf import GGUFReader, dequantize
from tests.exporting.llama_engine import Job, run_engine
from tests.exporting.test_export import saved
from tests.tiny_models import UNMODIFIED, random_model, with_random_compensations
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from uniattn_pl import cli
from uniattn_pl.errors import UserError
from uniattn_pl.exporting.gguf.export_gguf import export_gguf
from uniattn_pl.families.catalogue import byte_tokenizer
from uniattn_pl.families.model_shape import shape_of
from uniattn_pl.modeling.conversion.convert import apply_plan
from uniattn_pl.modeling.loading.pretrained import load_folder, load_model
from uniattn_pl.plan import LayerPlan
from uniattn_pl.plan.costs import kv_cache_bytes

PREDICT, CELLS, NEAR = 64, 2048, 0.01
PROMPTS = [[5, 9, 17, 33, 60, 3, 41], [7], list(range(40, 4, -1))]
PLANS: dict[str, LayerPlan] = {
    "unmodified": UNMODIFIED,
    "drop": UNMODIFIED.drop([0, 3], compensated=False),
    "drop_w_c": UNMODIFIED.drop([2, 5], compensated=True),
    "low_rank": UNMODIFIED.drop([0, 4], compensated=True).limit_rank(3),
    "bias": UNMODIFIED.drop([0, 4], compensated=True).add_bias(),
    "low_rank_bias": UNMODIFIED.drop([5], compensated=True).limit_rank(2).add_bias(),
    "skip": UNMODIFIED.skip([0, 5], compensated=False),
    "heads": UNMODIFIED.merge_heads([1, 2], 1, compensated=False),
    "mixed": UNMODIFIED.merge_heads([1], 1, compensated=False)
    .skip([4], compensated=False)
    .drop([3], compensated=False)
    .drop([2], compensated=True)
    .add_bias(),
}
STRETCHED = {"rope_type": "llama3", "rope_theta": 5e4, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {},
    "qwen2": {"tie_word_embeddings": True},
    "mistral": {"sliding_window": None},
    "llama3": {"rope_parameters": {**STRETCHED, "original_max_position_embeddings": 32}},
    "linear": {"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 4.0}},
    "biased": {"attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True},
}
CASES = [("llama", plan) for plan in PLANS] + [(family, "mixed") for family in FAMILIES if family != "llama"]


def model_of(family: str, plan: LayerPlan, **special: Any) -> PreTrainedModel:
    """A tiny model whose biases and norms do something, converted, with a W_c of random weights."""
    options = {"max_position_embeddings": 512, **FAMILIES.get(family, {}), **special}
    model = random_model(family if family in ("qwen2", "mistral") else "llama", **options).eval()
    generator = torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        if parameter.dim() == 1:
            parameter.data.add_(torch.randn(parameter.shape, generator=generator), alpha=0.2)
    return with_random_compensations(apply_plan(model, plan))


@cache
def answers(folder: Path) -> dict[tuple[str, str], tuple[Path, Job]]:
    """Each case as a folder and what llama.cpp says of its file; one process for all, after the first test asks."""
    folders, jobs = [], []
    for index, (family, plan) in enumerate(CASES):
        source = saved(model_of(family, PLANS[plan]), folder / str(index))
        file = folder / f"{index}.gguf"
        export_gguf(source, file)
        folders.append(source)
        jobs.append({"file": str(file), "cells": CELLS, "prompts": PROMPTS, "predict": PREDICT})
    return dict(zip(CASES, zip(folders, run_engine(jobs), strict=True), strict=True))


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("gguf")


def check_answers(model: PreTrainedModel, prompts: list[list[int]], said: Job, *, ends: list[int]) -> None:
    """Ten likeliest first tokens of each prompt, and each greedy one behind it, where no token of `ends` may be.

    llama.cpp rounds on its way, by up to a hundredth: what it chooses is torch's choice, or as likely up to that.
    """
    for prompt, top, tokens in zip(prompts, said["top"], said["tokens"], strict=True):
        with torch.no_grad():
            steps = model(torch.tensor([prompt + tokens])).logits[0, len(prompt) - 1 : -1].log_softmax(-1)
        assert max(abs(steps[0, int(token)].item() - value) for token, value in top.items()) < NEAR
        steps[:, ends] = -torch.inf
        assert {int(token) for token in top} - set(ends) <= set(steps[0].topk(10).indices.tolist())
        chosen = steps.gather(1, torch.tensor(tokens)[:, None])[:, 0]
        assert len(tokens) == PREDICT
        assert (steps.max(-1).values - chosen).max() < NEAR


@pytest.mark.parametrize(("family", "plan"), CASES)
def test_llama_cpp_gives_what_torch_gives_and_caches_what_the_plan_says(place: Path, family: str, plan: str) -> None:
    pytest.importorskip("xllamacpp", reason="xllamacpp, llama.cpp as a wheel, is not installed")
    source, said = answers(place)[family, plan]
    model = load_folder(source)
    check_answers(model, PROMPTS, said, ends=[1, 2])
    predicted = kv_cache_bytes(PLANS[plan], shape_of(model.config), batch_size=1, length=CELLS, bytes_per_element=4)
    assert said["cells"] == CELLS
    assert said["cache_mib"] == pytest.approx(predicted / 2**20, abs=0.006)  # as exactly as llama.cpp says it


@pytest.mark.parametrize(("dtype", "near"), [("bf16", 0.2), ("f16", 0.02), ("q8_0", 0.2)])
def test_matrices_are_written_as_asked_and_vectors_in_full(tmp_path: Path, dtype: str, near: float) -> None:
    model = model_of("llama", PLANS["bias"], hidden_size=64, intermediate_size=96)
    file = tmp_path / "model.gguf"
    assert export_gguf(saved(model, tmp_path / "model"), file, dtype=dtype) == dtype
    tensors = {tensor.name: tensor for tensor in GGUFReader(file).tensors}
    kinds = {name: tensor.tensor_type.name.lower() for name, tensor in tensors.items()}
    assert {kinds[name] for name in kinds if "norm" in name or "bias" in name} == {"f32"}
    assert {kinds[name] for name in kinds if name.endswith("weight") and "norm" not in name} == {dtype}
    written = tensors["blk.3.attn_v.weight"]
    values = dequantize(written.data, written.tensor_type)
    expected = model.model.layers[2].self_attn.v_proj.weight.detach().numpy()
    error = np.abs(values - expected).max() / np.abs(expected).max()
    assert 0 < error < {"bf16": 0.004, "f16": 0.0005, "q8_0": 0.005}[dtype]
    pytest.importorskip("xllamacpp", reason="xllamacpp, llama.cpp as a wheel, is not installed")
    (said,) = run_engine([{"file": str(file), "prompts": PROMPTS, "predict": 1}])
    for prompt, top in zip(PROMPTS, said["top"], strict=True):
        with torch.no_grad():
            expected_log = model(torch.tensor([prompt])).logits[0, -1].log_softmax(-1)
        assert max(abs(expected_log[int(token)].item() - value) for token, value in top.items()) < near


def test_rows_that_blocks_of_32_do_not_fill_are_kept_in_float16(tmp_path: Path) -> None:
    file = tmp_path / "model.gguf"
    export_gguf(saved(model_of("llama", PLANS["drop"]), tmp_path / "model"), file, dtype="q8_0")
    kinds = {tensor.name: tensor.tensor_type.name for tensor in GGUFReader(file).tensors}
    assert (kinds["blk.0.ffn_down.weight"], kinds["blk.0.ffn_up.weight"]) == ("F16", "Q8_0")  # 48 columns, 32


LLAMA_3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
SPLITS = {
    "gpt-2": pre_tokenizers.ByteLevel(add_prefix_space=False),
    "smollm": pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    ),
    "llama-bpe": pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(LLAMA_3), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    ),
    "qwen2": pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(LLAMA_3.replace("{1,3}", "")), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    ),
}
TEXTS = [
    "Name two causes of chest pain, at 12345 degrees; it's  what we'll   see.",
    "  leading spaces\n\n\tand tabs\r\n",
    "naïve café 你好, мир! 🙂 ½",
    "x",
    "### Instruction:\nDoes aspirin help? 3.14159\n\n### Response:\n",
]
CHAT = "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}</s>{% endfor %}<|assistant|>"


def byte_level(name: str) -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.BPE(ignore_merges=name == "llama-bpe"))
    tokenizer.pre_tokenizer, tokenizer.decoder = SPLITS[name], decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=420, initial_alphabet=alphabet, special_tokens=["<s>", "</s>"], show_progress=False
    )
    tokenizer.train_from_iterator(TEXTS * 3, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>")


def sentence_piece(*, prefix: bool) -> PreTrainedTokenizerFast:
    """As Llama 2's and Mistral's: BPE over characters, a fallback to bytes, BOS before every text."""
    specials = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    model = models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True)
    tokenizer = Tokenizer(model)
    steps = [normalizers.Prepend("\u2581")] if prefix else []
    tokenizer.normalizer = normalizers.Sequence([*steps, normalizers.Replace(" ", "\u2581")])
    trainer = trainers.BpeTrainer(vocab_size=420, special_tokens=specials, show_progress=False, limit_alphabet=40)
    tokenizer.train_from_iterator([TEXTS[0], TEXTS[4]] * 3, trainer)
    described = json.loads(tokenizer.to_str())
    described["added_tokens"] = described["added_tokens"][:3]
    single = [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}]
    begin = {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}}
    described["post_processor"] = {
        "type": "TemplateProcessing",
        "single": single,
        "pair": [*single, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": begin,
    }
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(described)), bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )


TOKENIZERS = {
    **{name: lambda name=name: byte_level(name) for name in SPLITS},
    "bytes": byte_tokenizer,
    "sentence_piece": lambda: sentence_piece(prefix=True),
    "sentence_piece_no_prefix": lambda: sentence_piece(prefix=False),
}


def test_llama_cpp_makes_the_ids_and_the_chats_of_the_models_tokenizer(tmp_path: Path) -> None:
    pytest.importorskip("xllamacpp", reason="xllamacpp, llama.cpp as a wheel, is not installed")
    chat = [{"role": "system", "content": "Be short."}, {"role": "user", "content": "Does it help?"}]
    jobs, made = [], {}
    for name, make in TOKENIZERS.items():
        tokenizer = made[name] = make()
        tokenizer.chat_template = CHAT
        model = random_model("llama", vocab_size=len(tokenizer) + 5)  # with rows that no id has
        model.save_pretrained(tmp_path / name)
        tokenizer.save_pretrained(tmp_path / name)
        export_gguf(tmp_path / name, tmp_path / f"{name}.gguf")
        jobs.append({"file": str(tmp_path / f"{name}.gguf"), "texts": TEXTS, "messages": chat})
    for (name, tokenizer), said in zip(made.items(), run_engine(jobs), strict=True):
        assert said["ids"] == [tokenizer(text)["input_ids"] for text in TEXTS], name
        assert said["chat"] == tokenizer.apply_chat_template(chat, tokenize=False), name


def test_a_real_model_answers_in_llama_cpp_as_in_torch(tmp_path: Path) -> None:
    pytest.importorskip("xllamacpp", reason="xllamacpp, llama.cpp as a wheel, is not installed")
    from uniattn_pl.modeling.loading.pretrained import load_tokenizer

    model = load_model("smollm2-135m", dtype="float32")
    plan = LayerPlan.unmodified(30).merge_heads([4, 5], 1, compensated=False).drop([14], compensated=False)
    apply_plan(model, plan.drop([9, 20, 27], compensated=True).add_bias())
    generator = torch.Generator().manual_seed(0)
    for layer in (9, 20, 27):
        for parameter in model.model.layers[layer].self_attn.w_c.parameters():
            parameter.data.normal_(0, 0.02, generator=generator)
    tokenizer = load_tokenizer("smollm2-135m")
    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    export_gguf(tmp_path / "model", tmp_path / "model.gguf")
    prompts = [tokenizer(text)["input_ids"] for text in TEXTS[4:]]
    (said,) = run_engine(
        [{"file": str(tmp_path / "model.gguf"), "prompts": prompts, "predict": PREDICT, "texts": TEXTS}]
    )
    assert said["ids"] == [tokenizer(text)["input_ids"] for text in TEXTS]
    check_answers(model, prompts, said, ends=[0, 2])
    ids = torch.tensor(prompts)
    options = {"max_new_tokens": PREDICT, "do_sample": False, "suppress_tokens": [0, 2]}
    greedy = model.generate(ids, attention_mask=torch.ones_like(ids), **options)
    assert said["tokens"] == greedy[:, ids.shape[1] :].tolist()


REFUSED: dict[str, tuple[str, LayerPlan, dict[str, Any], str]] = {
    "uniattn": (
        "llama",
        UNMODIFIED.reuse([2, 3, 5], 1, compensated=True),
        {},
        "layers 2-3, 5: .*no attention map.*vLLM",
    ),
    "cla": ("llama", UNMODIFIED.share_kv([2], 1, compensated=False), {}, "layer 2: .*no keys and values.*vLLM"),
    "window": ("llama", UNMODIFIED.limit_window([2], 4, compensated=False), {}, "layer 2: .*no window"),
    "heads_w_c": ("llama", UNMODIFIED.merge_heads([2], 1, compensated=True), {}, "no linear layer beside an attention"),
    "skip_w_c": ("llama", UNMODIFIED.skip([2], compensated=True), {}, "without a norm"),
    "late": (
        "llama",
        UNMODIFIED.drop([2], compensated=True).place_compensation(input="attention_input", output="layer_output"),
        {},
        "adds to layer_output",
    ),
    "qwen3": (
        "qwen3",
        UNMODIFIED,
        {},
        r"qwen3 model \(it has norms of queries and keys\).*families: llama, mistral, qwen2",
    ),
    "gemma2": ("gemma2", UNMODIFIED, {}, "gemma2 model .*soft caps"),
    "sliding": ("mistral", UNMODIFIED, {"sliding_window": 8}, "layers 0-5: .*sees 8 tokens"),
    "yarn": (
        "llama",
        UNMODIFIED,
        {"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4, "factor": 2.0}},
        "rope_type 'yarn'.*default, linear, llama3",
    ),
    "gelu": ("llama", UNMODIFIED, {"hidden_act": "gelu"}, "hidden_act 'gelu'"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_llama_cpp_cannot_say_is_refused_and_nothing_is_written(tmp_path: Path, name: str) -> None:
    family, plan, special, message = REFUSED[name]
    model = apply_plan(random_model(family, **special), plan)
    source, target = saved(model, tmp_path / "model"), tmp_path / "out" / "model.gguf"
    with pytest.raises(UserError, match=message):
        export_gguf(source, target)
    assert not target.parent.exists()


def _punctuated(backend: Tokenizer) -> None:
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Punctuation(), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )


def _lowered(backend: Tokenizer) -> None:
    backend.normalizer = normalizers.Lowercase()


def _marked(backend: Tokenizer) -> None:
    backend.post_processor = processors.TemplateProcessing(
        single="<s> </s> $A", special_tokens=[("<s>", 0), ("</s>", 1)]
    )


@pytest.mark.parametrize(
    ("make", "change", "message"),
    [
        ("gpt-2", _punctuated, r"first splits a text .Punctuation.*then gpt2"),
        ("gpt-2", _lowered, r"this tokenizer changes a text \(.*Lowercase.*it would give other tokens"),
        ("sentence_piece", _lowered, r"this tokenizer changes a text \(.*Lowercase"),
        ("sentence_piece", _punctuated, r"this tokenizer splits a text \(.*Punctuation"),
        ("gpt-2", _marked, r"begins a text with the tokens \[0, 1\]; llama.cpp adds BOS or nothing"),
    ],
)
def test_other_tokenizers_are_refused_by_what_they_do(
    tmp_path: Path, make: str, change: Callable[[Tokenizer], None], message: str
) -> None:
    tokenizer = TOKENIZERS[make]()
    change(tokenizer.backend_tokenizer)
    random_model("llama", vocab_size=len(tokenizer)).save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    with pytest.raises(UserError, match=message):
        export_gguf(tmp_path / "model", tmp_path / "model.gguf")


def test_no_text_is_closed_since_a_prompt_goes_on(tmp_path: Path) -> None:
    tokenizer = byte_level("gpt-2")
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 1)]
    )
    assert tokenizer("x")["input_ids"][-1] == tokenizer.eos_token_id
    random_model("llama", vocab_size=len(tokenizer)).save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    export_gguf(tmp_path / "model", tmp_path / "model.gguf")
    fields = GGUFReader(tmp_path / "model.gguf").fields
    assert fields["tokenizer.ggml.add_bos_token"].contents() is True
    assert fields["tokenizer.ggml.add_eos_token"].contents() is False


def test_a_weight_too_large_for_float16_is_refused_by_name(tmp_path: Path) -> None:
    model = model_of("llama", UNMODIFIED)
    model.model.layers[1].mlp.up_proj.weight.data[0, 0] = 1e5
    with pytest.raises(UserError, match=r"blk\.1\.ffn_up\.weight has a weight of 1e\+05.*bf16"):
        export_gguf(saved(model, tmp_path / "model"), tmp_path / "model.gguf", dtype="f16")
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_defaults_of_sampling_and_every_end_are_in_the_file(tmp_path: Path) -> None:
    model = model_of("llama", UNMODIFIED)
    model.generation_config.update(do_sample=True, temperature=0.6, top_p=0.9, top_k=40, repetition_penalty=1.1)
    model.generation_config.eos_token_id = [2, 5]
    export_gguf(saved(model, tmp_path / "model"), tmp_path / "model.gguf")
    fields = GGUFReader(tmp_path / "model.gguf").fields
    read = {name: fields[name].contents() for name in fields}
    assert read["tokenizer.ggml.eos_token_id"] == 2
    assert read["tokenizer.ggml.eot_token_id"] == 5
    assert read["general.sampling.temp"] == pytest.approx(0.6)
    assert read["general.sampling.top_k"] == 40
    assert read["general.sampling.penalty_repeat"] == pytest.approx(1.1)
    assert LayerPlan.from_dict(json.loads(read["uniattn_pl.layer_plan"])) == UNMODIFIED


def test_the_command_writes_one_file_and_says_what_is_wrong_before(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    saved(model_of("llama", PLANS["drop"]), tmp_path / "model")
    words = ["export", "--from", "model", "--format", "gguf"]
    assert cli.main([*words, "--to", "out.gguf", "--dry-run"]) == 0
    assert not Path("out.gguf").exists()
    assert cli.main([*words, "--to", "out.gguf", "--drop", "5"]) == 0
    assert "exported model to out.gguf" in capsys.readouterr().out
    plan = GGUFReader("out.gguf").fields["uniattn_pl.layer_plan"].contents()
    assert LayerPlan.from_dict(json.loads(plan)) == PLANS["drop"].drop([5], compensated=False)
    for more, message in {
        ("--to", "out.gguf"): "'out.gguf' exists",
        ("--to", "model"): "is a folder; --format gguf writes one file: model/model.gguf",
        ("--to", "out.bin"): "does not end in .gguf",
        ("--to", "model/out.gguf"): "lies inside the model folder 'model'",
        ("--to", "o.gguf", "--dtype", "q8"): "--dtype 'q8' is none. Did you mean 'q8_0'?",
        ("--to", "o.gguf", "--standalone"): "--standalone is of --format folder",
    }.items():
        assert cli.main([*words, *more]) == 2
        assert message in capsys.readouterr().err
    saved(apply_plan(random_model("llama"), UNMODIFIED.reuse([2], 1, compensated=False)), tmp_path / "reuse")
    assert cli.main(["export", "--from", "reuse", "--format", "gguf", "--to", "r.gguf", "--dry-run"]) == 2
    assert "layer 2: llama.cpp's deci architecture has no attention map" in capsys.readouterr().err
