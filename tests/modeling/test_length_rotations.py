"""Rotations that depend on the length of a text: every way through the product gives what one stock forward gives."""

from __future__ import annotations

import copy
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.tiny_models import SIZES, UNMODIFIED
from torch.nn.functional import cross_entropy
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from uniattn_pl.calibration.layers import layer_inputs
from uniattn_pl.calibration.streaming import calibrate
from uniattn_pl.errors import UserError
from uniattn_pl.evaluation.compressed import compressed_response_loss
from uniattn_pl.evaluation.likelihood import continuation_likelihoods
from uniattn_pl.evaluation.probes import loss_by_position
from uniattn_pl.inference.prefill import prefill
from uniattn_pl.modeling.caches.h2o_cache import H2OCache
from uniattn_pl.modeling.conversion.aliased_copy import aliased_copy
from uniattn_pl.modeling.conversion.convert import apply_plan, converted_copy, unmodified_copy
from uniattn_pl.modeling.length_rotations import forget_lengths

SWITCH, LONG, SHORT, CHUNK = 90, 150, 60, 32
FACTORS = {"short_factor": [1.0, 1.1, 1.2, 1.3], "long_factor": [2.0, 5.0, 9.0, 16.0]}
ROTATIONS: dict[str, tuple[str, dict[str, Any]]] = {
    "longrope": ("phi3", {"rope_type": "longrope", "original_max_position_embeddings": SWITCH, **FACTORS}),
    "longrope_llama": ("llama", {"rope_type": "longrope", "original_max_position_embeddings": SWITCH, **FACTORS}),
    "dynamic": ("llama", {"rope_type": "dynamic", "factor": 4.0}),
    "yarn": ("llama", {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": SWITCH}),
    "linear": ("llama", {"rope_type": "linear", "factor": 4.0}),
    "llama3": (
        "llama",
        {"rope_type": "llama3", "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
        | {"original_max_position_embeddings": SWITCH},
    ),
}
DEPENDENT = ("longrope", "longrope_llama", "dynamic")


@lru_cache
def _built(name: str) -> PreTrainedModel:
    family, rotation = ROTATIONS[name]
    positions = SWITCH if name in ("dynamic", "linear") else 4 * SWITCH
    sizes = SIZES | {"max_position_embeddings": positions, "rope_parameters": {"rope_theta": 1e4, **rotation}}
    if family == "phi3":
        sizes["original_max_position_embeddings"] = SWITCH
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **sizes), attn_implementation="sdpa").eval()
    model.generation_config.eos_token_id = None
    return model


def fresh(name: str) -> PreTrainedModel:
    """The stock model that has seen no text."""
    return copy.deepcopy(_built(name))


def tokens(length: int, *, rows: int = 1, seed: int = 1) -> torch.Tensor:
    return torch.randint(3, SIZES["vocab_size"], (rows, length), generator=torch.Generator().manual_seed(seed))


def one_forward(name: str, ids: torch.Tensor, **inputs: Any) -> torch.Tensor:
    with torch.no_grad():
        return fresh(name)(input_ids=ids, use_cache=False, **inputs).logits


def operated(name: str) -> PreTrainedModel:
    """A reuse layer, a layer that shares keys, one without attention."""
    plan = UNMODIFIED.reuse([2], 1, compensated=True).share_kv([4], 3, compensated=False).drop([5], compensated=False)
    return apply_plan(fresh(name), plan)


@pytest.mark.parametrize("length", [SHORT, SWITCH, SWITCH + 1, LONG])
@pytest.mark.parametrize("name", ROTATIONS)
def test_a_prompt_in_chunks_is_one_forward(name: str, length: int) -> None:
    ids = tokens(length)
    output = prefill(unmodified_copy(fresh(name)), ids, chunk_size=CHUNK)
    torch.testing.assert_close(output.logits[:, -1], one_forward(name, ids)[:, -1], atol=1e-4, rtol=1e-4)
    model = operated(name)
    with torch.no_grad():
        whole = copy.deepcopy(model)(input_ids=ids).logits[:, -1]
    torch.testing.assert_close(prefill(model, ids, chunk_size=CHUNK).logits[:, -1], whole, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", ROTATIONS)
def test_padded_prompts_in_chunks_are_one_forward(name: str) -> None:
    ids, mask = tokens(LONG, rows=2), torch.ones(2, LONG, dtype=torch.long)
    mask[0, :70], mask[1, : LONG - SWITCH - 5] = 0, 0
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    expected = one_forward(name, ids, attention_mask=mask, position_ids=positions)[:, -1]
    output = prefill(unmodified_copy(fresh(name)), ids, mask, chunk_size=CHUNK)
    torch.testing.assert_close(output.logits[:, -1], expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(("length", "padding"), [(LONG, 0), (SWITCH - 4, 0), (LONG, LONG - SWITCH + 4)])
@pytest.mark.parametrize("name", ROTATIONS)
def test_generate_gives_the_tokens_of_the_stock_model(name: str, length: int, padding: int) -> None:
    """Also where decoding goes past the length at which the rotation changes."""
    ids, mask = tokens(length), torch.ones(1, length, dtype=torch.long)
    mask[:, :padding] = 0
    options: dict[str, Any] = {"max_new_tokens": 12, "attention_mask": mask, "output_logits": True}
    options["return_dict_in_generate"] = True
    expected = fresh(name).generate(ids, **options)
    model = unmodified_copy(fresh(name))
    for chunk in (None, CHUNK, 2048):
        found = model.generate(ids, prefill_chunk_size=chunk, **options)
        assert found.sequences.tolist() == expected.sequences.tolist()
        torch.testing.assert_close(torch.stack(found.logits), torch.stack(expected.logits), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", DEPENDENT)
def test_h2o_that_keeps_all_gives_the_tokens_of_the_stock_model(name: str) -> None:
    ids = tokens(LONG)
    model = unmodified_copy(fresh(name))
    expected = fresh(name).generate(ids, max_new_tokens=8)
    kept = H2OCache(model, 1.0)
    assert model.generate(ids, past_key_values=kept, max_new_tokens=8).tolist() == expected.tolist()
    few = H2OCache(model, 0.4)
    model.generate(ids, past_key_values=few, max_new_tokens=8)
    assert few.budget == round(0.4 * LONG)
    assert few.layers[0].keys.shape[-2] == few.budget + 1


def test_h2o_cannot_compute_a_text_again() -> None:
    """Phi-3 does, at the token where its rotation changes."""
    model = unmodified_copy(fresh("longrope"))
    with pytest.raises(UserError, match=f"at {SWITCH + 1} tokens this model's rotation changes"):
        model.generate(tokens(SWITCH - 3), past_key_values=H2OCache(model, 0.5), max_new_tokens=8)


@pytest.mark.parametrize("name", DEPENDENT)
def test_what_a_longer_text_called_for_is_forgotten(name: str) -> None:
    middle, short = tokens(SWITCH + 20), tokens(SHORT)
    stock = fresh(name)
    forget_lengths(stock)
    for model in (stock, unmodified_copy(fresh(name)), aliased_copy(stock)):
        with torch.no_grad():
            model(input_ids=tokens(LONG))
            for ids in (middle, short):
                torch.testing.assert_close(model(input_ids=ids).logits, one_forward(name, ids), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", DEPENDENT)
def test_models_on_the_same_weights_do_not_rotate_each_other(name: str) -> None:
    original = fresh(name)
    converted = converted_copy(original, UNMODIFIED.reuse([2], 1, compensated=True))
    ids = tokens(SHORT)
    with torch.no_grad():
        before = converted(input_ids=ids).logits
        original(input_ids=tokens(LONG))
        torch.testing.assert_close(converted(input_ids=ids).logits, before)
        converted(input_ids=tokens(LONG, seed=2))
        torch.testing.assert_close(prefill(original, ids).logits[:, -1], one_forward(name, ids)[:, -1])


@pytest.mark.parametrize("name", DEPENDENT)
def test_probes_score_as_one_forward_over_the_whole_text(name: str, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr("uniattn_pl.evaluation.probes.CHUNK", CHUNK)
    ids = tokens(LONG)[0].tolist()
    (tmp_path / "text.txt").write_text("x")
    tokenizer = _Given(ids)
    for model in (fresh(name), unmodified_copy(fresh(name))):
        result = loss_by_position(
            model, tokenizer, tmp_path / "text.txt", LONG, limit=None, seed=0, progress=lambda *_: None
        )
        expected = cross_entropy(one_forward(name, tokens(LONG))[0, :-1], tokens(LONG)[0, 1:])
        assert result.figures["loss"].value == pytest.approx(expected.item(), abs=1e-4)


class _Given:
    """A tokenizer with one text."""

    def __init__(self, ids: list[int]) -> None:
        self.ids = ids

    def __call__(self, texts: Any, **_: Any) -> dict[str, Any]:
        return {"input_ids": [self.ids] if isinstance(texts, list) else [*self.ids]}


@pytest.mark.parametrize("name", DEPENDENT)
def test_answers_are_scored_as_in_one_forward_over_prompt_and_answer(name: str) -> None:
    prompt = tokens(SWITCH - 4)[0].tolist()
    answers = [[5], [7, 8, 9, 10, 11, 12], [20, 21, 22, 23, 24, 25, 26, 27, 28, 29]]
    scores = continuation_likelihoods(unmodified_copy(fresh(name)), prompt, answers)
    for answer, score in zip(answers, scores, strict=True):
        logits = one_forward(name, torch.tensor([prompt + answer]))[0, len(prompt) - 1 : -1].log_softmax(-1)
        assert score.log == pytest.approx(logits.gather(1, torch.tensor(answer)[:, None]).sum().item(), abs=1e-3)
    row = torch.tensor([prompt + answers[2]])
    labels = row.masked_fill(torch.arange(row.shape[1]) < len(prompt), -100)
    batch = {"input_ids": row, "attention_mask": torch.ones_like(row), "labels": labels}
    loss = compressed_response_loss(unmodified_copy(fresh(name)), [batch], 1.0).response_loss
    assert loss == pytest.approx(-scores[2].log / len(answers[2]), abs=1e-4)


@pytest.mark.parametrize("name", DEPENDENT)
def test_a_calibration_rotates_every_batch_for_its_own_length(name: str) -> None:
    def batch(length: int, seed: int) -> dict[str, torch.Tensor]:
        ids = tokens(length, rows=2, seed=seed)
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}

    original = fresh(name)
    layer_inputs(original, batch(LONG, 1))
    for length in (SWITCH + 20, SHORT):
        found = layer_inputs(original, batch(length, 2)).arguments[0]["position_embeddings"]
        expected = layer_inputs(fresh(name), batch(length, 2)).arguments[0]["position_embeddings"]
        torch.testing.assert_close(found, expected)

    # A switch of 90 is no multiple of the lengths that batches are padded to elsewhere.
    plan = UNMODIFIED.reuse([2, 3], 1, compensated=True)
    unstretched = fresh(name)
    for rotary in (unstretched.model.rotary_emb,):
        rotary.rope_type = "default"
    batches = [batch(SWITCH, 1), batch(SWITCH - 7, 2)]
    models = [converted_copy(model, plan) for model in (original, unstretched)]
    for model, stock in zip(models, (original, unstretched), strict=True):
        calibrate(stock, model, batches, batches)
    for found, expected in zip(*(model.parameters() for model in models), strict=True):
        torch.testing.assert_close(found, expected)
