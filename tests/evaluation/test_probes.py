"""Held-out perplexity, loss by position and retrieval, against direct computations and models with a known answer."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import processors
from torch.nn.functional import cross_entropy
from transformers import PreTrainedModel

from uniattn_pl.errors import UserError
from uniattn_pl.evaluation import retrieval as needles
from uniattn_pl.evaluation.held_out import held_out_metrics
from uniattn_pl.evaluation.likelihood import Likelihood, continuation_likelihoods
from uniattn_pl.evaluation.probes import CHUNK, held_out, loss_by_position
from uniattn_pl.evaluation.retrieval import DEPTHS, retrieval
from uniattn_pl.modeling.conversion.convert import unmodified_copy
from uniattn_pl.modeling.loading.pretrained import load_model, load_tokenizer


@pytest.fixture(scope="module")
def model() -> PreTrainedModel:
    return load_model("tiny-llama", dtype="float32")


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return load_tokenizer("tiny-llama")


def ignore(done: int, total: int) -> None:
    """Progress nobody watches."""


def test_perplexity_is_that_of_all_response_tokens(model: PreTrainedModel) -> None:
    ids = torch.randint(3, 200, (3, 12), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    mask[1, 8:] = 0
    labels = ids.masked_fill(mask == 0, -100)
    labels[:, :4] = -100
    batch = {"input_ids": ids, "attention_mask": mask, "labels": labels}
    result = held_out(model, [batch], ignore)
    expected = held_out_metrics(model, [batch]).response_loss
    figures = result.figures
    assert figures["response_loss"].value == pytest.approx(expected, rel=1e-5)
    assert figures["perplexity"].value == pytest.approx(math.exp(expected), rel=1e-5)
    assert [row["tokens"] for row in result.details] == [8, 4, 8]
    assert figures["perplexity"].low == pytest.approx(math.exp(float(figures["response_loss"].low or 0)))


def test_loss_by_position_is_that_of_each_window_by_itself(
    model: PreTrainedModel, tokenizer: Any, tmp_path: Path
) -> None:
    window = CHUNK + 88  # more than one chunk
    text = "".join(chr(97 + (n * n + n // 7) % 26) for n in range(3 * window + 5))
    (tmp_path / "text.txt").write_text(text)
    options: dict[str, Any] = {"limit": 2, "seed": 0, "progress": ignore}
    result = loss_by_position(model, tokenizer, tmp_path / "text.txt", window, **options)
    assert result.rows == 2
    ids = torch.tensor(tokenizer(text)["input_ids"])
    losses = []
    for row in result.details:
        part = ids[row["window"] * window :][:window]
        with torch.no_grad():
            logits = model(part[None]).logits[0, :-1]
        losses.append(cross_entropy(logits, part[1:], reduction="none"))
    expected = torch.stack(losses).mean(0)
    buckets = {"loss_1-63": (1, 64), "loss_256-511": (256, 512), f"loss_512-{window - 1}": (512, window)}
    for name, (start, stop) in buckets.items():
        assert result.figures[name].value == pytest.approx(expected[start - 1 : stop - 1].mean().item(), abs=1e-4)
    with pytest.raises(UserError, match="fewer than one window of 5000"):
        loss_by_position(model, tokenizer, tmp_path / "text.txt", 5000, **options)


def tokenizer_that_adds(template: str) -> Any:
    tokenizer = load_tokenizer("tiny-llama")
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single=template, special_tokens=[("<s>", 0), ("</s>", 1)]
    )
    return tokenizer


def test_every_window_begins_with_bos_where_the_model_wants_one(model: PreTrainedModel, tmp_path: Path) -> None:
    window, text = 100, "".join(chr(97 + n * n % 26) for n in range(250))
    (tmp_path / "text.txt").write_text(text)
    adding = tokenizer_that_adds("<s> $A </s>")
    options: dict[str, Any] = {"limit": None, "seed": 0, "progress": ignore}
    result = loss_by_position(model, adding, tmp_path / "text.txt", window, **options)
    ids = torch.tensor(adding(text, add_special_tokens=False)["input_ids"])
    losses = []
    for index in range(result.rows):
        part = torch.cat([torch.tensor([0]), ids[index * (window - 1) :][: window - 1]])
        with torch.no_grad():
            losses.append(cross_entropy(model(part[None]).logits[0, :-1], part[1:], reduction="none"))
    expected = torch.stack(losses).mean(0)
    assert result.rows == len(ids) // (window - 1)
    assert result.figures["loss"].value == pytest.approx(expected.mean().item(), abs=1e-4)
    assert result.figures["loss_1-63"].value == pytest.approx(expected[:63].mean().item(), abs=1e-4)
    assert result.figures["loss_64-99"].value == pytest.approx(expected[63:].mean().item(), abs=1e-4)


@pytest.mark.parametrize(("template", "begins"), [("$A </s>", []), ("<s> $A", [0]), ("<s> $A </s>", [0])])
def test_needles_are_asked_for_behind_the_question_whatever_a_tokenizer_appends(
    model: PreTrainedModel, tokenizer: Any, template: str, begins: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[list[int], list[list[int]]]] = []

    def likelihoods(_: Any, prompt: list[int], answers: list[list[int]], **__: Any) -> list[Likelihood]:
        seen.append((prompt, answers))
        return [Likelihood(0.0, True)] * len(answers)

    monkeypatch.setattr(needles, "continuation_likelihoods", likelihoods)
    options: dict[str, Any] = {"trials": 1, "seed": 0, "retain_rate": None, "progress": ignore}
    retrieval(model, tokenizer_that_adds(template), [512], **options)
    for prompt, answers in seen:
        assert prompt[:1] == (begins or prompt[:1])
        text = tokenizer.decode(prompt[len(begins) :])
        assert text.endswith(" is")
        assert [tokenizer(text + tokenizer.decode(answer)).input_ids for answer in answers] == [
            prompt[len(begins) :] + answer for answer in answers
        ]


def test_likelihoods_of_answers_after_one_prefill_are_those_of_whole_texts(model: PreTrainedModel) -> None:
    prompt, answers = list(range(5, 30)), [[40], [41, 42, 43]]
    scores = continuation_likelihoods(model, prompt, answers)
    for answer, score in zip(answers, scores, strict=True):
        with torch.no_grad():
            logits = model(torch.tensor([prompt + answer])).logits[0, len(prompt) - 1 : -1]
        wanted = torch.tensor(answer)
        assert score.log == pytest.approx(logits.log_softmax(-1).gather(1, wanted[:, None]).sum().item(), abs=1e-4)
        assert score.greedy == bool((logits.argmax(-1) == wanted).all())
    best = model(torch.tensor([prompt])).logits[0, -1].argmax().item()
    assert continuation_likelihoods(model, prompt, [[best]])[0].greedy
    few = continuation_likelihoods(unmodified_copy(model), prompt, answers, retain_rate=0.2)
    assert abs(few[0].log - scores[0].log) > 1e-3, "an answer of one token is read from the compressed cache too"


def reader(window: int | None, tokenizer: Any) -> Any:
    """Stands in for a model: finds the answer that occurs among the last `window` tokens, None: anywhere."""

    def likelihoods(_: Any, prompt: list[int], answers: list[list[int]], **__: Any) -> list[Likelihood]:
        seen = tokenizer.decode(prompt if window is None else prompt[-window:])
        asked = seen.rsplit("\n", 1)[-1]  # the line that the answer completes
        told = [
            asked + tokenizer.decode(answer) in seen or f"pass key is{tokenizer.decode(answer)}." in seen
            for answer in answers
        ]
        return [Likelihood(0.0 if right else -1.0, right) for right in told]

    return likelihoods


@pytest.mark.parametrize("window", [None, 300])
def test_retrieval_shows_how_far_a_model_reads(
    model: PreTrainedModel, tokenizer: Any, window: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(needles, "continuation_likelihoods", reader(window, tokenizer))
    options: dict[str, Any] = {"trials": 3, "seed": 0, "retain_rate": None, "progress": ignore}
    results = {result.name: result for result in retrieval(model, tokenizer, [1024], **options)}
    assert set(results) == {"retrieval_passkey_1024", "retrieval_keyvalue_1024"}
    for result in results.values():
        assert result.rows == 3 * len(DEPTHS)
        assert all(900 < row["tokens"] <= 1024 for row in result.details)
        by_depth = [result.figures[f"accuracy_depth_{round(100 * depth):03d}"].value for depth in DEPTHS]
        near = [row["right"] for row in result.details if row["distance"] < 250]
        assert near and all(near)  # noqa: PT018
        if window is None:
            assert by_depth == [1.0] * len(DEPTHS)
            assert result.figures["exact"].value == 1.0
        else:
            assert by_depth[-1] == 1.0
            assert result.figures["exact"].value < 0.5


def test_retrieval_of_a_real_model_is_seeded(model: PreTrainedModel, tokenizer: Any) -> None:
    options: dict[str, Any] = {"trials": 1, "retain_rate": 0.5, "progress": ignore}
    ready = unmodified_copy(model)
    first, again, other = (retrieval(ready, tokenizer, [512], seed=seed, **options) for seed in (0, 0, 1))
    assert first == again
    assert [r.details for r in first] != [r.details for r in other]
