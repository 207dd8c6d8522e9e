"""The harness's requests with tokenizers that add BOS, EOS or nothing, and a checkpoint full of generation defaults."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import processors
from transformers import GenerationConfig

pytest.importorskip("lm_eval", reason="the package lm_eval is not installed")

from lm_eval.api.instance import Instance

from uniattn_pl.data.prompt_ids import prompt_ids
from uniattn_pl.errors import UserError
from uniattn_pl.evaluation.harness import harness_model
from uniattn_pl.evaluation.tasks import open_task
from uniattn_pl.modeling.conversion.convert import unmodified_copy
from uniattn_pl.modeling.loading.pretrained import load_model, load_tokenizer

CONTEXT, ANSWERS = "The heart pumps", [" blood", " air through the body"]
TEMPLATES = {"neither": "$A", "bos": "<s> $A", "eos": "$A </s>", "both": "<s> $A </s>"}
RATES = [None, 1.0]


@pytest.fixture(scope="module")
def model() -> Any:
    return load_model("tiny-llama", dtype="float32")


def tokenizer_that_adds(what: str) -> Any:
    tokenizer = load_tokenizer("tiny-llama")
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single=TEMPLATES[what], special_tokens=[("<s>", 0), ("</s>", 1)]
    )
    return tokenizer


def wrapped(model: Any, tokenizer: Any, rate: float | None) -> Any:
    ready = model if rate is None else unmodified_copy(model)
    return harness_model(ready, tokenizer, batch_size=2, retain_rate=rate)


def requests(kind: str, arguments: list[tuple[Any, ...]]) -> list[Instance]:
    return [Instance(request_type=kind, doc={}, arguments=a, idx=i) for i, a in enumerate(arguments)]


def log_likelihood(model: Any, ids: list[int], start: int) -> float:
    """Of the tokens from `start` on, in one forward."""
    with torch.no_grad():
        logits = model(torch.tensor([ids])).logits[0, start - 1 : -1].log_softmax(-1)
    return float(logits.gather(1, torch.tensor(ids[start:])[:, None]).sum())


@pytest.mark.parametrize("rate", RATES)
@pytest.mark.parametrize("what", TEMPLATES)
def test_an_answer_counts_with_all_its_tokens_and_no_eos(model: Any, what: str, rate: float | None) -> None:
    tokenizer = tokenizer_that_adds(what)
    asked = requests("loglikelihood", [(CONTEXT, answer) for answer in ANSWERS])
    prompt = prompt_ids(tokenizer, CONTEXT)
    expected = [log_likelihood(model, prompt_ids(tokenizer, CONTEXT + answer), len(prompt)) for answer in ANSWERS]
    scores = [score for score, _ in wrapped(model, tokenizer, rate).loglikelihood(asked)]
    assert scores == pytest.approx(expected, abs=1e-3)


@pytest.mark.parametrize("what", TEMPLATES)
def test_a_whole_text_begins_once(model: Any, what: str) -> None:
    tokenizer = tokenizer_that_adds(what)
    ids = prompt_ids(tokenizer_that_adds("bos"), CONTEXT)
    (score,) = wrapped(model, tokenizer, None).loglikelihood_rolling(requests("loglikelihood_rolling", [(CONTEXT,)]))
    assert score == pytest.approx(log_likelihood(model, ids, 1), abs=1e-3)


@pytest.mark.parametrize("rate", RATES)
@pytest.mark.parametrize("what", ["bos", "eos"])
def test_generated_answers_are_the_likeliest_tokens(model: Any, what: str, rate: float | None) -> None:
    tokenizer = tokenizer_that_adds(what)
    expected = []
    for text in (CONTEXT, ANSWERS[1]):
        ids = prompt_ids(tokenizer, text)
        start = len(ids)
        for _ in range(6):
            with torch.no_grad():
                ids = [*ids, int(model(torch.tensor([ids])).logits[0, -1].argmax())]
        expected.append(tokenizer.decode(ids[start:], skip_special_tokens=True))
    former = model.generation_config
    model.generation_config = GenerationConfig(repetition_penalty=1.5, num_beams=3, suppress_tokens=list(range(9, 200)))
    try:
        asked = requests("generate_until", [(text, {"max_gen_toks": 6}) for text in (CONTEXT, ANSWERS[1])])
        texts = wrapped(model, tokenizer, rate).generate_until(asked)
    finally:
        model.generation_config = former
    assert texts == expected


def test_a_prompt_that_is_cut_is_counted_and_no_room_is_said(model: Any) -> None:
    tokenizer = tokenizer_that_adds("neither")
    subject = wrapped(model, tokenizer, None)
    subject._max_length = 8
    subject.loglikelihood(requests("loglikelihood", [(CONTEXT, " blood"), ("a", "b")]))
    subject.generate_until(requests("generate_until", [(CONTEXT, {"max_gen_toks": 2}), ("a", {"max_gen_toks": 2})]))
    assert subject.cut == 2
    with pytest.raises(UserError, match="8 tokens generated, which leaves no room for a prompt in the 8 positions"):
        subject.generate_until(requests("generate_until", [("a", {"max_gen_toks": 8})]))


def test_a_row_with_half_a_character_is_named(tmp_path: Path) -> None:
    (tmp_path / "pubmedqa").mkdir()
    row = '{"QUESTION": "smile \\ud83d", "CONTEXTS": ["a"], "final_decision": "yes"}\n'
    file = tmp_path / "pubmedqa" / "test.jsonl"
    file.write_text(row.replace("\\ud83d", "") + row)
    with pytest.raises(UserError, match=r"test.jsonl.*2.*surrogates not allowed"):
        open_task("pubmedqa", data_dir=str(tmp_path), num_fewshot=0)
