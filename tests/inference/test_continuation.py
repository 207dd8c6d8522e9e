"""One text, token by token over its cache, is what a model says without any: every plan, family and rotation."""

from __future__ import annotations

import copy
from collections.abc import Generator, Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.conftest import FAST_FAMILIES
from tests.modeling.test_length_rotations import DEPENDENT, SWITCH, fresh, operated
from tests.modeling.test_length_rotations import tokens as long_tokens
from tests.tiny_models import ARCHITECTURES, WINDOW, converted, stock, tokens
from transformers import PreTrainedModel

from uniattn_pl.inference.continuation import FilledPrompt, continuation, filled_at_once, filled_prompt, scored
from uniattn_pl.inference.token_choice import Sampling, TokenChooser
from uniattn_pl.modeling.conversion.convert import apply_plan
from uniattn_pl.plan import LayerPlan

NEW = 10


def following(model: PreTrainedModel, prompt: FilledPrompt, tokens: int = NEW) -> list[int]:
    chooser = TokenChooser(Sampling(), torch.device("cpu"))
    return [score.id for score in continuation(model, prompt, chooser, ends=frozenset(), max_new_tokens=tokens)]


def drained(filling: Generator[None, None, FilledPrompt], *, turns: int | None = None) -> FilledPrompt:
    """What filling a cache ends with, after so many turns."""
    filled: list[FilledPrompt] = []

    def taken() -> Iterator[None]:
        filled.append((yield from filling))

    number = len(list(taken()))
    assert turns in (None, number)
    return filled[0]


def generated(model: PreTrainedModel, ids: list[int], tokens: int = NEW, **options: Any) -> list[int]:
    greedy = {"do_sample": False, "max_new_tokens": tokens, "eos_token_id": None, "pad_token_id": 0, **options}
    return [int(token) for token in model.generate(torch.tensor([ids]), **greedy)[0, len(ids) :]]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("family", FAST_FAMILIES)
def test_tokens_are_those_of_the_model_without_a_cache(family: str, architecture: str) -> None:
    """Also of a prompt that comes in parts, and from a copy of its cache, as for a second answer to it."""
    model, ids = converted(family, architecture), tokens(1, 3 * WINDOW)[0].tolist()
    expected = generated(model, ids, use_cache=False)
    prompt = drained(filled_prompt(model, ids, part=7))
    copied = replace(prompt, cache=copy.deepcopy(prompt.cache))
    assert following(model, prompt) == expected
    assert following(model, copied) == expected


def test_a_window_with_sinks_is_copied_with_its_tokens() -> None:
    plan = LayerPlan.unmodified(6).limit_window([1, 3], 5, 2, compensated=False)
    model, ids = apply_plan(stock("llama"), plan), tokens(1, 20)[0].tolist()
    prompt = filled_at_once(model, ids)
    copied = replace(prompt, cache=copy.deepcopy(prompt.cache))
    assert following(model, prompt) == following(model, copied) == generated(model, ids, use_cache=False)


@pytest.mark.parametrize("name", DEPENDENT)
@pytest.mark.parametrize("length", [SWITCH - 4, SWITCH + 9])
@pytest.mark.parametrize("build", [fresh, operated], ids=["stock", "converted"])
def test_where_the_rotation_changes_it_is_generates_own_text(name: str, length: int, build: Any) -> None:
    """Over the switch in the middle of an answer (Phi-3 runs the text again there), and in a prompt in parts."""
    ids = long_tokens(length)[0].tolist()
    for part in (length, 20):
        model = build(name)
        assert following(model, drained(filled_prompt(model, ids, part=part))) == generated(build(name), ids)


@pytest.mark.parametrize("part", [3, None])
def test_scores_are_those_of_one_forward(part: int | None) -> None:
    model, ids = converted("llama", "mixed"), tokens(1, 17)[0].tolist()
    prompt = drained(filled_prompt(model, ids, likeliest=2, part=part), turns=1 if part is None else 6)
    with torch.no_grad():
        logs = model(torch.tensor([ids])).logits[0].log_softmax(-1)
    expected = scored(logs[:-1], ids[1:], 2)
    first, *scores = prompt.scores
    assert (first.id, first.log) == (ids[0], None)
    for score, other in zip(scores, expected, strict=True):
        assert score.id == other.id
        assert score.log == pytest.approx(other.log, abs=1e-5)
        assert [token for token, _ in score.likeliest] == [token for token, _ in other.likeliest]


@settings(max_examples=40, deadline=None)
@given(
    quarters=st.lists(st.integers(-20, 20), min_size=2, max_size=9, unique=True),
    temperature=st.floats(0.1, 3),
    top_k=st.integers(0, 9),
    top_p=st.floats(0.05, 1),
    seed=st.integers(0, 99),
)
def test_only_tokens_of_the_share_are_drawn_and_a_seed_repeats_them(
    quarters: list[int], temperature: float, top_k: int, top_p: float, seed: int
) -> None:
    sampling, logits = Sampling(temperature, top_k, top_p, seed), [quarter / 4 for quarter in quarters]

    def drawn(number: int = 0) -> list[int]:
        chooser = TokenChooser(sampling, torch.device("cpu"), number=number)
        return [chooser.choose(torch.tensor(logits)) for _ in range(20)]

    assert drawn() == drawn()
    probabilities = (torch.tensor(logits) / temperature).softmax(-1).tolist()
    ranked = sorted(range(len(logits)), key=lambda token: -probabilities[token])
    kept = ranked[:top_k] if top_k else ranked
    whole = sum(probabilities[token] for token in kept)
    before = 0.0
    share = set()
    for token in kept:  # those in front of which less than top_p lies
        if before < top_p * whole + 1e-3:
            share.add(token)
        before += probabilities[token]
    assert set(drawn()) <= share
