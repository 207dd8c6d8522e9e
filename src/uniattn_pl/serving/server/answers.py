"""The answer to a question, in parts: what a client sees of it, and between two parts a turn for other questions."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch

from uniattn_pl.inference.continuation import FilledPrompt, TokenScore, continuation, filled_prompt
from uniattn_pl.inference.text_pieces import TextPieces
from uniattn_pl.inference.token_choice import TokenChooser
from uniattn_pl.modeling.decoding import ends_of
from uniattn_pl.serving.server.questions import Question, Served

STOP, LENGTH = "stop", "length"


@dataclass(frozen=True)
class Part:
    """A piece of one of a question's texts.

    Attributes:
        choice: which of them.
        text: whole characters, often one token's.
        scores: of the tokens since the part before, where they were asked for.
        finish: why the text ends here; None: it goes on.
        new_tokens: of the whole text, where it ends.
    """

    choice: int
    text: str
    scores: tuple[TokenScore, ...] = ()
    finish: str | None = None
    new_tokens: int = 0


def answered(question: Question, served: Served) -> Iterator[Part | None]:
    """Yield the parts of an answer; None where a turn ends and there is nothing to show."""
    score_prompt = question.likeliest if question.echo is not None else None
    prompt = yield from filled_prompt(served.model, question.ids, likeliest=score_prompt)
    for choice in range(question.choices):
        last = choice == question.choices - 1
        yield from _choice(question, prompt if last else _copied(prompt), choice, served)


def _copied(prompt: FilledPrompt) -> FilledPrompt:
    with torch.inference_mode():  # in which it was filled
        return replace(prompt, cache=copy.deepcopy(prompt.cache))


def _choice(question: Question, prompt: FilledPrompt, choice: int, served: Served) -> Iterator[Part | None]:
    pieces, ends = TextPieces(served.tokenizer, question.stop), frozenset(ends_of(served.model, served.tokenizer))
    if question.echo is not None:
        yield Part(choice, question.echo, prompt.scores)
    tokens, finish = 0, LENGTH
    scores: list[TokenScore] = []
    for score in continuation(
        served.model,
        prompt,
        TokenChooser(question.sampling, served.model.device, number=choice),
        ends=ends,
        max_new_tokens=question.new_tokens,
        likeliest=question.likeliest,
    ):
        tokens += 1
        if question.likeliest is not None:
            scores.append(score)
        text = "" if score.id in ends else pieces.push(score.id)
        if score.id in ends or pieces.stopped:
            finish = STOP
            break
        if text:
            yield Part(choice, text, tuple(scores))
            scores = []
        else:
            yield None
    else:
        text = ""
    yield Part(choice, text + pieces.finish(), tuple(scores), finish, tokens)
