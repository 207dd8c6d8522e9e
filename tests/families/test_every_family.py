"""Tested families x roles x kernels x modes, each against the stock model with only its attention kernel exchanged.

A sample of the grid, the same in every run; all of it, in some minutes:

    UNIATTN_PL_WHOLE_GRID=1 python -m pytest -n0 tests/families/test_every_family.py
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

import pytest
import torch
from benchmarks.exchanged_kernel import exchanged, give_equal_heads
from tests.families.grid import KERNELS, ROLES, cells, plan_for
from tests.tiny_models import LATENT, SIZES, shape, stock, tokens, with_random_compensations
from transformers import AutoModelForCausalLM, DynamicCache, PreTrainedModel

from uniattn_pl.families.inspection import FAMILIES
from uniattn_pl.modeling.caches.plan_cache import kv_cache_bytes
from uniattn_pl.modeling.conversion.convert import apply_plan
from uniattn_pl.plan import LayerPlan, LayerRow, costs

CLOSE = {"rtol": 1e-5, "atol": 1e-5}
BATCH, LENGTH, PADDING, NEW_TOKENS = 2, 12, 4, 4
IDS = tokens(BATCH, LENGTH)
STEPS = (5, 3, 1, 1, 2)  # the tiny models' windows are of 6 tokens, those of the role of 4
CELLS = cells()
every_cell = pytest.mark.parametrize(("family", "role", "kernel", "mode"), CELLS)
QUERY_WIDTH = SIZES["num_attention_heads"] * SIZES["head_dim"]
# Of queries, keys and values in one projection: values are what a reader of maps keeps, queries one of keys.
FUSED_ROWS = {"reuse": slice(-SIZES["num_key_value_heads"] * SIZES["head_dim"], None), "share_kv": slice(QUERY_WIDTH)}


# What a reader of maps keeps of projections for several: the latent itself, values made of it, the gates of its heads.
KEPT_ROWS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "kv_a_proj_with_mqa": lambda rows: rows[: LATENT["kv_lora_rank"]],
    "kv_b_proj": lambda rows: rows.unflatten(0, (4, -1))[:, -LATENT["v_head_dim"] :].flatten(0, 1),
    "q_proj": lambda rows: rows.unflatten(0, (4, 2, -1))[:, 1].flatten(0, 1),
}


@lru_cache(maxsize=2)
def _converted(family: str, role: str, kernel: str) -> PreTrainedModel:
    original = stock(family)
    original.set_attn_implementation(kernel)
    return with_random_compensations(apply_plan(original, plan_for(family, role)))


def converted(family: str, role: str, kernel: str, mode: str) -> PreTrainedModel:
    """The tiny model under the plan of a role, of random compensations."""
    model = _converted(family, role, kernel).eval()
    model.activation_checkpointing_disable()
    model.config.reuse_mode = mode
    model.zero_grad()
    return model


class Reference:
    """The stock model whose kernel is exchanged whenever it is called."""

    def __init__(self, family: str, kernel: str, plan: LayerPlan, compensated: PreTrainedModel) -> None:
        self.model, self.plan = stock(family), plan
        self.model.set_attn_implementation(kernel)
        give_equal_heads(self.model, plan)
        weights = {name: p.detach().clone() for name, p in compensated.named_parameters() if "w_c" in name}
        self.compensations = {layer_of(name): weight.requires_grad_() for name, weight in weights.items()}
        self.names = list(weights)

    def __call__(self, ids: torch.Tensor, *, training: bool = False, **inputs: torch.Tensor) -> torch.Tensor:
        """Logits [B, L, vocabulary]."""
        self.model.train(training)
        with exchanged(self.model, self.plan, self.compensations):
            return self.model(ids, use_cache=False, **inputs).logits

    def in_steps(self) -> torch.Tensor:
        """Logits of `STEPS` with a cache: a recurrence rounds otherwise than over the whole text."""
        cache = DynamicCache(config=self.model.config)
        with exchanged(self.model, self.plan, self.compensations):
            return torch.cat([self.model(part, past_key_values=cache).logits for part in IDS.split(STEPS, 1)], dim=1)

    def greedy(self, ids: torch.Tensor) -> torch.Tensor:
        """`ids` [B, L] and the most likely further tokens, by a whole forward for each."""
        for _ in range(NEW_TOKENS):
            best = self(ids)[:, -1].topk(2)
            assert (best.values[:, 0] - best.values[:, 1]).min() > 1e-4, "a near tie: give this family another seed"
            ids = torch.cat([ids, best.indices[:, :1]], dim=1)
        return ids

    def gradients(self) -> dict[str, torch.Tensor | None]:
        """By the names of the converted model."""
        found = {name: p.grad for name, p in self.model.named_parameters()}
        return {**found, **{name: self.compensations[layer_of(name)].grad for name in self.names}}


def layer_of(name: str) -> int:
    """The layer of a parameter."""
    return int(name.split(".layers.")[1].split(".")[0])


def loss_of(logits: torch.Tensor) -> torch.Tensor:
    """The mean cross-entropy of every next token."""
    return torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), IDS[:, 1:].flatten())


@every_cell
@torch.no_grad()
def test_logits_are_the_references_with_left_padding_too(family: str, role: str, kernel: str, mode: str) -> None:
    model = converted(family, role, kernel, mode)
    reference = Reference(family, kernel, model.layer_plan, model)
    logits = model(IDS, use_cache=False).logits
    torch.testing.assert_close(logits, reference(IDS), **CLOSE)
    assert (logits - reference.model(IDS).logits).abs().max() > 1e-2  # the role changes something
    mask = torch.ones_like(IDS)
    mask[1, :PADDING] = 0
    inputs = {"attention_mask": mask, "position_ids": (mask.cumsum(-1) - 1).clamp(min=0)}
    found, expected = model(IDS, use_cache=False, **inputs).logits, reference(IDS, **inputs)
    torch.testing.assert_close(found[mask.bool()], expected[mask.bool()], **CLOSE)


@every_cell
@torch.no_grad()
def test_steps_and_generation_give_them_in_the_predicted_bytes(family: str, role: str, kernel: str, mode: str) -> None:
    model = converted(family, role, kernel, mode)
    reference = Reference(family, kernel, model.layer_plan, model)
    cache, logits = DynamicCache(config=model.config), []
    for part in IDS.split(STEPS, 1):
        logits.append(model(part, past_key_values=cache).logits)
        length = sum(piece.shape[1] for piece in logits)
        sizes = {"batch_size": BATCH, "length": length, "bytes_per_element": 4}
        assert kv_cache_bytes(cache) == costs.kv_cache_bytes(model.layer_plan, shape(family), **sizes), length
    recurrent = any(layer.state for layer in shape(family).layers)
    expected = reference.in_steps() if recurrent else reference(IDS)
    # in steps products are of other shapes, and round otherwise
    torch.testing.assert_close(torch.cat(logits, dim=1), expected, rtol=1e-5, atol=3e-5)
    options = {"max_new_tokens": NEW_TOKENS, "do_sample": False, "pad_token_id": 0}
    assert torch.equal(model.generate(IDS, attention_mask=torch.ones_like(IDS), **options), reference.greedy(IDS))


@every_cell
def test_gradients_are_the_references_with_checkpointing_too(family: str, role: str, kernel: str, mode: str) -> None:
    model = converted(family, role, kernel, mode).train()
    reference = Reference(family, kernel, model.layer_plan, model)
    torch.manual_seed(0)  # some routers choose at random when they train
    loss_of(reference(IDS, training=True)).backward()
    expected = reference.gradients()
    for checkpointing in (False, True):
        if checkpointing:
            model.activation_checkpointing_enable()
            model.zero_grad()
        torch.manual_seed(0)
        loss_of(model(IDS, use_cache=False).logits).backward()
        for name, parameter in model.named_parameters():
            if expected[name] is None:  # of corrections that balance routers
                assert parameter.grad is None, name
            else:
                assert parameter.grad is not None, name
                wanted = kept(model.layer_plan.rows, name, expected[name], parameter.grad)
                # 1e-5 of its largest value: a gated delta rule has gradients of 10 to 20, and weights rounded
                # otherwise, by 1e-7, change them by more than that
                atol = 1e-5 * max(1.0, float(wanted.abs().max()))
                torch.testing.assert_close(
                    parameter.grad, wanted, rtol=1e-4, atol=atol, msg=lambda m, n=name: f"{n}: {m}"
                )


def kept(rows: tuple[LayerRow, ...], name: str, gradient: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """Of the reference's gradient, what belongs to a parameter of the converted model: merged heads, some of fused."""
    if gradient.shape == like.shape:
        return gradient
    row = rows[layer_of(name)]
    if row.source is not None:
        part = name.split(".")[-2]
        return KEPT_ROWS[part](gradient) if part in KEPT_ROWS else gradient[FUSED_ROWS[row.role]]
    queries, shared = gradient.tensor_split([QUERY_WIDTH]) if "qkv_proj" in name else (gradient[:0], gradient)
    merged = shared.unflatten(0, (-1, SIZES["num_key_value_heads"], SIZES["head_dim"])).sum(1).flatten(0, 1)
    return torch.cat([queries, merged])


@every_cell
@torch.no_grad()
def test_it_is_saved_and_loaded(family: str, role: str, kernel: str, mode: str, tmp_path: Path) -> None:
    model = converted(family, role, kernel, mode)
    assert sum(parameter.numel() for parameter in model.parameters()) == costs.parameters(
        model.layer_plan, shape(family)
    )
    model.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path, attn_implementation=kernel)
    loaded.config.reuse_mode = mode
    assert type(loaded) is type(model)
    assert loaded.layer_plan == model.layer_plan
    weights = loaded.state_dict()
    assert all(torch.equal(weights.pop(name), tensor) for name, tensor in model.state_dict().items())
    assert not weights
    torch.testing.assert_close(loaded(IDS).logits, model(IDS).logits, **CLOSE)


def test_the_sample_has_every_family_role_and_kernel() -> None:
    assert {cell[0] for cell in CELLS} == set(FAMILIES)
    assert {cell[1] for cell in CELLS} == set(ROLES)
    assert {cell[2] for cell in CELLS} == set(KERNELS)
