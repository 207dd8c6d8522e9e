"""From what a client sent to what is asked of the model: token ids and how they go on, within the limits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from uniattn_pl.data.prompt_ids import prompt_ids
from uniattn_pl.errors import UserError, did_you_mean
from uniattn_pl.inference.chat_prompt import chat_ids, check_chat
from uniattn_pl.inference.token_choice import Sampling
from uniattn_pl.serving.server.api_errors import ApiError
from uniattn_pl.serving.server.request_schema import ChatBody, CompletionBody, GenerationBody
from uniattn_pl.serving.server.server_limits import ServerLimits


@dataclass(frozen=True)
class Served:
    """The one model of a server, under the name that clients call it by."""

    name: str
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    limits: ServerLimits


@dataclass(frozen=True)
class Question:
    """One prompt and what is to follow it.

    Attributes:
        ids: of the prompt.
        new_tokens: at most.
        choices: how many texts follow, each by itself.
        echo: the prompt's text, which is given back in front of each; None: it is not.
        likeliest: score tokens, with so many likeliest ones beside each; None: do not.
    """

    ids: Sequence[int]
    sampling: Sampling
    new_tokens: int
    stop: Sequence[str]
    choices: int = 1
    echo: str | None = None
    likeliest: int | None = None


def completion_questions(body: CompletionBody, served: Served) -> list[Question]:
    """One question per prompt. Raises ApiError."""
    _check_model(body, served)
    questions = []
    for number, prompt in enumerate(body.prompt):
        where = "prompt" if len(body.prompt) == 1 else f"prompt {number}"
        ids = prompt_ids(served.tokenizer, prompt) if isinstance(prompt, str) else list(prompt)
        _check_ids(ids, where, served)
        echo = None
        if body.echo:
            echo = prompt if isinstance(prompt, str) else str(served.tokenizer.decode(ids, skip_special_tokens=True))
        new_tokens = _room(ids, body.max_tokens, where, served)
        questions.append(
            Question(ids, body.sampling, new_tokens, body.stop, choices=body.n, echo=echo, likeliest=body.logprobs)
        )
    return questions


def chat_question(body: ChatBody, served: Served) -> Question:
    """The question of a conversation. Raises ApiError."""
    _check_model(body, served)
    if body.top_logprobs and not body.logprobs:
        raise ApiError(400, "top_logprobs needs logprobs=true.", param="top_logprobs")
    try:
        check_chat(served.tokenizer, served.name)
        ids = chat_ids(served.tokenizer, [message.model_dump() for message in body.messages])
    except UserError as error:
        raise ApiError(400, f"{error} /v1/completions takes text.", param="messages") from error
    _check_ids(ids, "messages", served)
    asked = body.max_completion_tokens if body.max_tokens is None else body.max_tokens
    new_tokens = _room(ids, served.limits.tokens - len(ids) if asked is None else asked, "messages", served)
    likeliest = body.top_logprobs if body.logprobs else None
    return Question(ids, body.sampling, new_tokens, body.stop, choices=body.n, likeliest=likeliest)


def _check_model(body: GenerationBody, served: Served) -> None:
    if body.model not in (None, served.name):
        near = did_you_mean(body.model, [served.name])
        raise ApiError(
            404,
            f"there is no model '{body.model}' here.{near} This server has: {served.name}.",
            param="model",
            code="model_not_found",
        )


def _check_ids(ids: Sequence[int], where: str, served: Served) -> None:
    if not ids:
        raise ApiError(
            400, f"{where} has no token, and this model's tokenizer begins a text with none.", param="prompt"
        )
    embedding: Any = served.model.get_input_embeddings()
    rows = int(embedding.weight.shape[0])
    beyond = next((token for token in ids if token >= rows), None)
    if beyond is not None:
        raise ApiError(400, f"{where} has token {beyond}; this model has tokens 0 to {rows - 1}.", param="prompt")


def _room(ids: Sequence[int], new_tokens: int, where: str, served: Served) -> int:
    """The new tokens that are asked for, if they fit behind the prompt."""
    most = served.limits.tokens
    if len(ids) + max(new_tokens, 1) > most and not (new_tokens == 0 and len(ids) <= most):
        raise ApiError(
            400,
            f"{where} has {len(ids)} tokens, and with max_tokens={max(new_tokens, 0)} new ones that is more than the "
            f"{most} that a text may have here; shorten it, or ask for at most {max(most - len(ids), 0)}.",
            param="max_tokens" if len(ids) < most else "prompt",
            code="context_length_exceeded",
        )
    return new_tokens
