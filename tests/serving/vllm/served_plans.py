"""Tiny models of random weights under every kind of plan, in folders, and what torch says of them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tests.tiny_models import with_random_compensations
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from uniattn_pl.modeling.conversion.convert import apply_plan
from uniattn_pl.plan import LayerPlan

LAYERS, WINDOW, PROMPT, NEW = 6, 24, 200, 64
VOCABULARY = 256
SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "max_position_embeddings": 512,
    "initializer_range": 0.15,
    "tie_word_embeddings": False,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
UNMODIFIED = LayerPlan.unmodified(LAYERS)
DROPPED = UNMODIFIED.drop([0, 4], compensated=False)
UNIATTN = UNMODIFIED.reuse([2, 3], 1, compensated=True).reuse([5], 4, compensated=False)


@dataclass(frozen=True)
class ServedCase:
    """A tiny model and its plan.

    Attributes:
        counted: the plan whose cache the engine is to hold; None: its own.
    """

    plan: LayerPlan
    family: str = "llama"
    options: tuple[tuple[str, Any], ...] = ()
    counted: LayerPlan | None = None

    def model(self) -> PreTrainedModel:
        """With norms, biases and compensations that do something."""
        torch.manual_seed(0)
        config = AutoConfig.for_model(self.family, **SIZES | dict(self.options))
        model = AutoModelForCausalLM.from_config(config, attn_implementation="sdpa").eval()
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.data.add_(torch.randn_like(parameter), alpha=0.2)
        return with_random_compensations(apply_plan(model, self.plan))


CASES = {
    "drop": ServedCase(DROPPED),
    "drop with W_c": ServedCase(UNMODIFIED.drop([0, 4], compensated=True)),
    "skip": ServedCase(UNMODIFIED.skip([2], compensated=False).skip([0, 4], compensated=True)),
    "cla": ServedCase(UNMODIFIED.share_kv([2], 1, compensated=False).share_kv([4, 5], 3, compensated=True)),
    "uniattn": ServedCase(UNIATTN),
    "heads": ServedCase(UNMODIFIED.merge_heads([1, 4], 1, compensated=True)),
    "window": ServedCase(UNMODIFIED.limit_window([1, 3], WINDOW, compensated=True)),
    "window with sinks": ServedCase(UNMODIFIED.limit_window([1, 3], WINDOW, 4, compensated=True), counted=UNMODIFIED),
    "aligned heads": ServedCase(
        UNMODIFIED.reuse([2, 3], 1, compensated=True).align_heads({2: (3, 1, 0, 2), 3: (0, 0, 1, 1)})
    ),
    "map of merged heads": ServedCase(
        UNMODIFIED.merge_heads([1], 1, compensated=True)
        .reuse([2], 1, compensated=True)
        .share_kv([4], 1, compensated=False),
        counted=UNMODIFIED.reuse([2], 1, compensated=True).share_kv([4], 1, compensated=False),
    ),
    "thin W_c with a bias": ServedCase(
        UNMODIFIED.reuse([2, 3], 1, compensated=True).drop([5], compensated=True).limit_rank(5).add_bias()
    ),
    "W_c behind the layer": ServedCase(
        UNIATTN.drop([0], compensated=True).place_compensation(input="attention_input", output="layer_output")
    ),
    "W_c from values to heads": ServedCase(
        UNMODIFIED.reuse([2, 3], 1, compensated=True).place_compensation(input="value", output="heads")
    ),
    "mixed": ServedCase(
        UNMODIFIED.share_kv([1], 0, compensated=True)
        .reuse([2], 1, compensated=True)
        .reuse([3], 0, compensated=False)
        .limit_window([4], WINDOW, compensated=True)
        .drop([5], compensated=False),
        counted=UNMODIFIED.share_kv([1], 0, compensated=True)
        .reuse([2], 1, compensated=True)
        .reuse([3], 0, compensated=False)
        .drop([5], compensated=False),
    ),
    "qwen2": ServedCase(UNIATTN.drop([0], compensated=True), "qwen2"),
    "qwen2, shared": ServedCase(
        UNMODIFIED.share_kv([2, 3], 1, compensated=True).merge_heads([5], 1, compensated=False), "qwen2"
    ),
    "qwen3": ServedCase(UNMODIFIED.share_kv([1], 0, compensated=True).reuse([2, 3], 1, compensated=True), "qwen3"),
    "biases": ServedCase(UNIATTN, options=(("attention_bias", True), ("mlp_bias", True))),
    "sliding mistral": ServedCase(
        UNMODIFIED.share_kv([1], 0, compensated=True).reuse([3, 4], 2, compensated=True),
        "mistral",
        (("sliding_window", WINDOW),),
    ),
}

SHARED_OUT = ServedCase(
    UNMODIFIED.reuse([2, 3], 1, compensated=True)
    .align_heads({2: (1, 0, 3, 3), 3: (0, 0, 3, 2)})
    .share_kv([5], 4, compensated=False)
    .place_compensation(input="value", output="heads"),
    "qwen2",
)
"""What two workers serve: whatever of a layer is made of their heads."""


def prompts(count: int, *, longest: int = PROMPT, seed: int = 0) -> list[list[int]]:
    """Random ids of mixed lengths, the first of them of the longest."""
    generator = torch.Generator().manual_seed(seed)
    lengths = [longest, *torch.randint(1, longest, (count - 1,), generator=generator).tolist()]
    return [torch.randint(3, VOCABULARY, (length,), generator=generator).tolist() for length in lengths]


@torch.no_grad()
def torch_answer(model: PreTrainedModel, prompt: list[int], new: int = NEW) -> dict[str, Any]:
    """The ten likeliest tokens after a prompt with their log-probabilities, and the greedy ones."""
    model.generation_config.eos_token_id = None
    ids = torch.tensor([prompt])
    likeliest = model(ids).logits[0, -1].log_softmax(-1).topk(10)
    tokens = model.generate(ids, max_new_tokens=new, do_sample=False)[0, len(prompt) :].tolist()
    return {"first": dict(zip(likeliest.indices.tolist(), likeliest.values.tolist(), strict=True)), "tokens": tokens}


def save(model: PreTrainedModel, folder: Path) -> str:
    model.save_pretrained(folder)
    return str(folder)
