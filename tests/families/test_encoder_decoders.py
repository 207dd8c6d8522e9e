"""Encoder-decoder families x roles x kernels, each against the stock model with only its attention kernel exchanged.

Sources and texts of different lengths, padded on the right or on the left; the encoder is stock, and so is
cross-attention but where a plan has layers use another's map there, too.
"""

from __future__ import annotations

import copy
import functools
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
import torch
from benchmarks.exchanged_kernel import exchanged, give_equal_heads
from peft import get_peft_model
from tests.tiny_models import random_model, with_random_compensations
from tests.tiny_seq2seq import DECODER_LAYERS, FAMILIES, SPECIAL, seq2seq_batch, stock_seq2seq
from transformers import AutoConfig, AutoModelForSeq2SeqLM, EncoderDecoderCache, PreTrainedModel
from transformers.models.bart import modeling_bart

from uniattn_pl.errors import UserError
from uniattn_pl.families.model_shape import shape_of
from uniattn_pl.modeling.caches.plan_cache import kv_cache_bytes
from uniattn_pl.modeling.conversion.convert import apply_architecture, apply_plan, drop_attention
from uniattn_pl.modeling.lora import lora_config
from uniattn_pl.plan import LayerPlan, ModelShape, costs

CLOSE = {"rtol": 1e-5, "atol": 1e-5}
UNMODIFIED = LayerPlan.unmodified(DECODER_LAYERS)
SOURCES, TEXTS, NEW_TOKENS = (9, 6), (12, 8), 5
STEPS = (5, 3, 1, 1, 2)  # T5Gemma's window is of 6 tokens
PLANS = {
    # Of T5Gemma's layers 1, 3 and 5 see everything, so that they read from each other and the others from them.
    "reuse": UNMODIFIED.reuse([2, 3], 1, compensated=True).reuse([5], 1, compensated=False),
    "share_kv": UNMODIFIED.share_kv([2], 1, compensated=True).share_kv([4], 3, compensated=False),
    "drop": UNMODIFIED.drop([0], compensated=False).drop([1, 4], compensated=True),
    "window": UNMODIFIED.limit_window([3], 4, 1, compensated=False).limit_window([5], 3, 2, compensated=True),
    "heads": UNMODIFIED.merge_heads([1], 1, compensated=False).merge_heads([4], 1, compensated=True),
    "skip": UNMODIFIED.skip([0], compensated=False).skip([3], compensated=True),
    "cross": (
        UNMODIFIED.share_kv([2], 1, compensated=False)
        .reuse([3], 2, compensated=True)
        .reuse([4, 5], 1, compensated=False)
        .reuse_cross_maps([3, 4])
    ),
    "mixed": (
        UNMODIFIED.drop([0], compensated=True)
        .share_kv([2], 1, compensated=False)
        .reuse([3], 1, compensated=True)
        .reuse([4], 1, compensated=False)
    ),
}
T5_HEADS = UNMODIFIED.merge_heads([1], 2, compensated=False).merge_heads([4], 1, compensated=True)  # of four
KERNELS = {"t5": ("eager", "sdpa"), "t5gemma": ("eager",), "bart": ("eager", "sdpa")}
MODES = dict.fromkeys(("reuse", "mixed"), ("materialise", "replay"))
CROSS_MODES = {"t5": ("materialise",), "t5gemma": ("replay",), "bart": ("materialise", "replay")}
CELLS = [
    (family, role, kernel, mode)
    for number, family in enumerate(FAMILIES)
    for at, role in enumerate(PLANS)
    if (family, role) != ("t5", "window")  # refused, as its biases are of all tokens
    for kernel in KERNELS[family][(number + at) % len(KERNELS[family]) :][:1]
    for mode in (CROSS_MODES[family] if role == "cross" else MODES.get(role, ("auto",)))
]
T5_LIKE = ("mt5", "switch_transformers")
NO_DROPS: dict[str, Any] = {"attention_dropout": 0.0, "encoder_layerdrop": 0.0, "decoder_layerdrop": 0.0}
CROSS_PARTS = ("encoder_attn", "cross_attn", "EncDecAttention")
OTHERS: dict[str, dict[str, Any]] = {
    **dict.fromkeys(("mbart", "pegasus", "marian", "m2m_100", "blenderbot", "plbart", "bigbird_pegasus"), NO_DROPS),
    "nllb-moe": {"num_experts": 4, **NO_DROPS},
    "mt5": {},
    "switch_transformers": {"num_experts": 4, "num_sparse_encoder_layers": 1, "num_sparse_decoder_layers": 1},
}
every_cell = pytest.mark.parametrize(("family", "role", "kernel", "mode"), CELLS)


@lru_cache
def shape(family: str) -> ModelShape:
    return shape_of(stock_seq2seq(family).config)


@lru_cache(maxsize=2)
def _converted(family: str, role: str, kernel: str) -> PreTrainedModel:
    original = stock_seq2seq(family)
    original.set_attn_implementation(kernel)
    plan = T5_HEADS if (family, role) == ("t5", "heads") else PLANS[role]
    give_equal_heads(original, plan)  # merged, they are what they were
    return with_random_compensations(apply_plan(original, plan))


def converted(family: str, role: str, kernel: str, mode: str) -> PreTrainedModel:
    model = _converted(family, role, kernel).eval()
    model.activation_checkpointing_disable()
    model.config.reuse_mode = mode
    model.zero_grad()
    return model


class SeqReference:
    """The stock model whose kernel is exchanged whenever it is called."""

    def __init__(self, family: str, kernel: str, compensated: PreTrainedModel) -> None:
        self.model, self.plan = stock_seq2seq(family), compensated.layer_plan
        self.model.set_attn_implementation(kernel)
        give_equal_heads(self.model, self.plan)
        weights = {name: p.detach().clone() for name, p in compensated.named_parameters() if "w_c" in name}
        self.compensations = {layer_of(name): weight.requires_grad_() for name, weight in weights.items()}
        self.names = list(weights)

    def __call__(self, **inputs: torch.Tensor) -> torch.Tensor:
        with exchanged(self.model, self.plan, self.compensations):
            return self.model(**inputs, use_cache=False).logits

    def gradients(self) -> dict[str, torch.Tensor | None]:
        found = {name: p.grad for name, p in self.model.named_parameters()}
        return {**found, **{name: self.compensations[layer_of(name)].grad for name in self.names}}


def layer_of(name: str) -> int:
    return next(int(part) for part in name.split("decoder.")[1].split(".") if part.isdigit())


def moved_bias(name: str) -> str:
    """T5's position biases are made by the lowest layer that attends; the stock model's by layer 0."""
    return name if "relative_attention_bias" not in name or "decoder" not in name else T5_BIAS


T5_BIAS = "decoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight"


@every_cell
@pytest.mark.parametrize("left", [False, True])
@torch.no_grad()
def test_logits_are_the_references_with_any_padding(family: str, role: str, kernel: str, mode: str, left: bool) -> None:
    model = converted(family, role, kernel, mode)
    reference, batch = SeqReference(family, kernel, model), seq2seq_batch(SOURCES, TEXTS, left=left)
    found, expected = model(**batch, use_cache=False).logits, reference(**batch)
    text = batch["decoder_attention_mask"].bool()
    torch.testing.assert_close(found[text], expected[text], **CLOSE)
    assert (found - reference.model(**batch).logits)[text].abs().max() > 1e-3  # the role changes something


@every_cell
@torch.no_grad()
def test_steps_and_generation_give_them_in_the_predicted_bytes(family: str, role: str, kernel: str, mode: str) -> None:
    model = converted(family, role, kernel, mode)
    reference, batch = SeqReference(family, kernel, model), seq2seq_batch(SOURCES, TEXTS[:1] * 2)
    source = {name: batch[name] for name in ("input_ids", "attention_mask")}
    cache, logits, length = None, [], 0
    for part in batch["decoder_input_ids"].split(STEPS, 1):
        output = model(**source, decoder_input_ids=part, past_key_values=cache, use_cache=True)
        cache, length = output.past_key_values, length + part.shape[1]
        logits.append(output.logits)
        assert isinstance(cache, EncoderDecoderCache)
        sizes = {"batch_size": 2, "length": length, "source_length": max(SOURCES), "bytes_per_element": 4}
        assert kv_cache_bytes(cache) == costs.kv_cache_bytes(model.layer_plan, shape(family), **sizes), length
    torch.testing.assert_close(torch.cat(logits, 1), reference(**batch), **CLOSE)
    # T5Gemma takes token 0 for padding where there is no cache
    options = {"max_new_tokens": NEW_TOKENS, "do_sample": False, "suppress_tokens": [0]}
    ids = model.generate(**source, max_new_tokens=1, do_sample=False)[:, :1]  # what the decoder begins with
    for _ in range(NEW_TOKENS):
        best = reference(**source, decoder_input_ids=ids)[:, -1, 1:].argmax(-1, keepdim=True) + 1
        ids = torch.cat([ids, best], dim=1)
    assert torch.equal(model.generate(**source, **options), ids)
    beams = {**options, "num_beams": 3}
    assert torch.equal(model.generate(**source, **beams), model.generate(**source, **beams, use_cache=False))


@every_cell
def test_gradients_are_the_references_with_checkpointing_too(family: str, role: str, kernel: str, mode: str) -> None:
    model = converted(family, role, kernel, mode)
    reference, batch = SeqReference(family, kernel, model), seq2seq_batch(SOURCES, TEXTS)
    text = batch["decoder_attention_mask"].bool()

    def loss_of(logits: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.cross_entropy(logits[text], batch["decoder_input_ids"][text])

    loss_of(reference(**batch)).backward()
    expected = reference.gradients()
    for checkpointing in (False, True):
        if checkpointing:
            without_dropout(model).train()
            model.activation_checkpointing_enable()
            model.zero_grad()
        loss_of(model(**batch, use_cache=False).logits).backward()
        for name, parameter in model.named_parameters():
            if expected[moved_bias(name)] is None:  # of BART's shared embedding, which nothing shares here
                assert parameter.grad is None, name
                continue
            assert parameter.grad is not None, name
            wanted = of_merged(expected[moved_bias(name)], parameter.grad, model.layer_plan, name)
            torch.testing.assert_close(parameter.grad, wanted, **CLOSE, msg=lambda m, n=name: f"{n}: {m}")


def of_merged(gradient: torch.Tensor, like: torch.Tensor, plan: LayerPlan, name: str) -> torch.Tensor:
    """The reference's gradient of equal heads, summed over those that are one in the converted model."""
    if gradient.shape == like.shape:
        return gradient
    row = plan.rows[layer_of(name)]
    return gradient.unflatten(0, (row.kv_heads, -1, len(like) // row.kv_heads)).sum(1).flatten(0, 1)


def without_dropout(model: PreTrainedModel) -> PreTrainedModel:
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
        for name in ("dropout", "activation_dropout"):
            if isinstance(getattr(module, name, None), float):
                setattr(module, name, 0.0)
    return model


@every_cell
@torch.no_grad()
def test_it_is_saved_and_loaded(family: str, role: str, kernel: str, mode: str, tmp_path: Path) -> None:
    model, batch = converted(family, role, kernel, mode), seq2seq_batch(SOURCES, TEXTS)
    count = sum(parameter.numel() for parameter in model.parameters())
    assert count == costs.parameters(model.layer_plan, shape(family))
    model.save_pretrained(tmp_path)
    loaded = AutoModelForSeq2SeqLM.from_pretrained(tmp_path, attn_implementation=kernel)
    loaded.config.reuse_mode = mode
    assert type(loaded) is type(model)
    assert loaded.layer_plan == model.layer_plan
    weights = loaded.state_dict()
    assert all(torch.equal(weights.pop(name), tensor) for name, tensor in model.state_dict().items())
    torch.testing.assert_close(loaded(**batch).logits, model(**batch).logits, **CLOSE)


@pytest.mark.parametrize("family", FAMILIES)
def test_attention_weights_are_not_dropped_at_random_in_a_converted_decoder(family: str) -> None:
    model = converted(family, "reuse", KERNELS[family][0], "materialise").train()
    batch = seq2seq_batch(SOURCES, TEXTS)
    for name, module in model.named_modules():  # what is not the decoder's attention keeps what it has
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
        elif not name.endswith(("self_attn", "SelfAttention")) or "encoder." in name:
            for rate in ("dropout", "activation_dropout"):
                if isinstance(getattr(module, rate, None), float):
                    setattr(module, rate, 0.0)
    with torch.no_grad():
        first, second = (model(**batch, use_cache=False).logits for _ in range(2))
    assert torch.equal(first, second)


@pytest.mark.parametrize(("role", "without", "without_cross"), [("drop", [0, 1, 4], []), ("skip", [0, 3], [0, 3])])
@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_maps_are_given_layer_by_layer_those_of_cross_attention_too(
    family: str, role: str, without: list[int], without_cross: list[int]
) -> None:
    output = converted(family, role, "eager", "auto")(
        **seq2seq_batch(SOURCES, TEXTS), use_cache=False, output_attentions=True
    )
    assert [index for index, given in enumerate(output.decoder_attentions) if given is None] == without
    shapes = [None if given is None else given.shape[-2:] for given in output.cross_attentions]
    of_map = (max(TEXTS), max(SOURCES))
    assert shapes == [None if index in without_cross else of_map for index in range(DECODER_LAYERS)]


@pytest.mark.parametrize("mode", ["materialise", "replay"])
@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_a_reader_of_cross_attention_gives_the_map_of_its_source(family: str, mode: str) -> None:
    model = converted(family, "cross", "eager", mode)
    maps = model(**seq2seq_batch(SOURCES, TEXTS), use_cache=False, output_attentions=True).cross_attentions
    assert [torch.equal(maps[reader], maps[source]) for reader, source in ((3, 2), (4, 1), (5, 1))] == [1, 1, 0]


@pytest.mark.parametrize("mode", ["materialise", "replay"])
@pytest.mark.parametrize(("family", "kernel"), [(family, k) for family in FAMILIES for k in KERNELS[family]])
@torch.no_grad()
def test_without_padding_every_token_sees_the_whole_source(family: str, kernel: str, mode: str) -> None:
    model = converted(family, "cross", kernel, mode)
    inputs = {name: ids for name, ids in seq2seq_batch(SOURCES[:1], TEXTS[:1]).items() if "mask" not in name}
    expected = SeqReference(family, kernel, model)(**inputs)
    torch.testing.assert_close(model(**inputs, use_cache=False).logits, expected, **CLOSE)


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_low_rank_updates_are_of_what_a_reader_of_cross_attention_has_left(family: str) -> None:
    model, batch = copy.deepcopy(converted(family, "cross", KERNELS[family][0], "auto")), seq2seq_batch(SOURCES, TEXTS)
    before = model(**batch).logits
    adapted = get_peft_model(model, lora_config(model, rank=2))
    layers = adapted.get_base_model().get_decoder().named_modules()
    updated = [name.split(".lora_A")[0] for name, _ in layers if name.endswith("lora_A.default")]
    of_cross = [name for name in updated if name.split(".")[1] == "4" and any(part in name for part in CROSS_PARTS)]
    assert sorted(name.rsplit(".", 1)[1][0] for name in of_cross) == ["o", "v"]
    torch.testing.assert_close(adapted(**batch).logits, before, **CLOSE)
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            parameter.normal_(std=0.02)
    after = adapted(**batch).logits
    assert (after - before).abs().max() > 1e-3
    torch.testing.assert_close(adapted.merge_and_unload()(**batch).logits, after, **CLOSE)


@torch.no_grad()
def test_a_static_cache_holds_values_of_the_source_alone() -> None:
    model, batch = converted("bart", "cross", "sdpa", "auto"), seq2seq_batch(SOURCES, TEXTS)
    source = {name: batch[name] for name in ("input_ids", "attention_mask")}
    options = {**source, "max_new_tokens": NEW_TOKENS, "do_sample": False, "return_dict_in_generate": True}
    static = model.generate(**options, cache_implementation="static", disable_compile=True)
    assert torch.equal(static.sequences, model.generate(**options).sequences)
    keys = [layer.keys.numel() for layer in static.past_key_values.cross_attention_cache.layers]
    assert [index for index, numbers in enumerate(keys) if numbers == 0] == [3, 4]


@pytest.mark.parametrize("model_type", OTHERS)
@torch.no_grad()
def test_others_are_exact_where_inspection_finds_all(model_type: str) -> None:
    torch.manual_seed(0)
    special = SPECIAL["t5" if model_type in T5_LIKE else "bart"]
    config = AutoConfig.for_model(model_type, **special, **OTHERS[model_type])
    original = AutoModelForSeq2SeqLM.from_config(config).eval()
    plan = PLANS["mixed"].reuse_cross_maps([3])
    model = with_random_compensations(apply_plan(copy.deepcopy(original), plan))
    weights = {layer_of(name): p for name, p in model.named_parameters() if "w_c" in name}
    batch = seq2seq_batch(SOURCES, TEXTS)
    with exchanged(original, plan, weights):
        expected = original(**batch, use_cache=False).logits
    text = batch["decoder_attention_mask"].bool()
    torch.testing.assert_close(model(**batch, use_cache=False).logits[text], expected[text], **CLOSE)
    counted = costs.parameters(plan, shape_of(original.config))
    assert counted == sum(parameter.numel() for parameter in model.parameters())


def test_cross_attention_maps_are_refused_where_there_are_none() -> None:
    with pytest.raises(UserError, match=r"layer 2 is to use the map.*a llama model is a decoder alone"):
        apply_plan(random_model("llama"), UNMODIFIED.reuse([2], 1, compensated=False).reuse_cross_maps())
    with pytest.raises(UserError, match=r"layer 2 \(share_kv\) reads no map"):
        UNMODIFIED.share_kv([2], 1, compensated=False).reuse_cross_maps([2])
    model = stock_seq2seq("t5")
    apply_architecture(model, "shared_attention", first_layer=3, cross_attention=True)
    assert [row.cross_map for row in model.layer_plan.rows] == [False] * 4 + [True] * 2
    with pytest.raises(UserError, match="queries and keys of its cross-attention given up"):
        drop_attention(model, [4])
    assert apply_plan(model, model.layer_plan.skip([4], compensated=False)) is model


def test_a_family_whose_cross_attention_does_more_is_refused_in_that_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    stock = modeling_bart.BartAttention.forward

    @functools.wraps(stock)
    def tuned(self: Any, hidden_states: torch.Tensor, *args: Any, key_value_states: Any = None, **kwargs: Any) -> Any:
        output, *others = stock(self, hidden_states, *args, key_value_states=key_value_states, **kwargs)
        if key_value_states is not None:  # what its queries would have been takes part
            output = output * self.q_proj(hidden_states).norm(dim=-1, keepdim=True)
        return output, *others

    monkeypatch.setattr(modeling_bart.BartAttention, "forward", tuned)
    plan = UNMODIFIED.reuse([2], 1, compensated=False)
    with pytest.raises(UserError, match="the cross-attention of layers 2 computes something that a plan would lose"):
        apply_plan(stock_seq2seq("bart"), plan.reuse_cross_maps())
    apply_plan(stock_seq2seq("bart"), plan)


def test_what_a_plan_would_lose_is_refused() -> None:
    model = stock_seq2seq("bart")
    model.config.decoder_layerdrop = 0.1
    with pytest.raises(UserError, match="decoder_layerdrop"):
        apply_plan(model, PLANS["reuse"])
    config = AutoConfig.for_model("umt5", **SPECIAL["t5"])
    with pytest.raises(UserError, match="position biases of its own"):
        apply_plan(AutoModelForSeq2SeqLM.from_config(config), PLANS["reuse"])
    with pytest.raises(UserError, match="biases by the distance"):
        apply_plan(stock_seq2seq("t5"), PLANS["window"])
