"""The server's routes: OpenAI's completions and chat completions, models, health and metrics."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.exceptions import HTTPException

from uniattn_pl.errors import did_you_mean
from uniattn_pl.inference.continuation import TokenScore
from uniattn_pl.serving.server.answers import answered
from uniattn_pl.serving.server.api_errors import ApiError
from uniattn_pl.serving.server.gate import Gate
from uniattn_pl.serving.server.openai_shapes import ChatShape, CompletionShape, Envelope, usage_of
from uniattn_pl.serving.server.questions import Question, Served, chat_question, completion_questions
from uniattn_pl.serving.server.request_schema import ChatBody, CompletionBody, GenerationBody, unknown_field
from uniattn_pl.serving.server.token_names import TokenNames
from uniattn_pl.serving.server.turns import Exchange, Turns

CHAT = "/v1/chat/completions"
PATHS = ("/v1/completions", CHAT, "/v1/models", "/health", "/metrics")
SHOWN = 60  # characters of a wrong value


def build_app(served: Served, turns: Turns, *, api_key: str | None = None) -> FastAPI:
    """The application that answers for one model.

    Args:
        turns: by whom the model is asked; it is stopped with the application.
        api_key: what clients must send; None: nothing.
    """

    @asynccontextmanager
    async def until_the_end(_: FastAPI) -> AsyncIterator[None]:
        yield
        turns.stop()
        turns.join()

    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None, lifespan=until_the_end)
    app.add_middleware(Gate, api_key=api_key, body_bytes=served.limits.body_bytes)
    app.add_exception_handler(ApiError, _api_error)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(HTTPException, _of_http)
    app.add_exception_handler(Exception, _unexpected)
    names, begun = TokenNames(served.tokenizer), int(time.time())

    @app.post("/v1/completions")
    async def complete(body: CompletionBody, request: Request) -> Response:
        questions = await asyncio.to_thread(completion_questions, body, served)
        shape = CompletionShape(names, with_logprobs=body.logprobs is not None)
        return await _respond(request, body, turns.begin(questions), Envelope(shape, served.name))

    @app.post(CHAT)
    async def chat(body: ChatBody, request: Request) -> Response:
        question = await asyncio.to_thread(chat_question, body, served)
        shape = ChatShape(names, with_logprobs=body.logprobs)
        return await _respond(request, body, turns.begin([question]), Envelope(shape, served.name))

    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        model = {"id": served.name, "object": "model", "created": begun, "owned_by": "uniattn_pl"}
        model["max_model_len"] = served.limits.tokens
        return {"object": "list", "data": [model]}

    @app.get("/health")
    async def health() -> dict[str, Any]:
        return {"status": "ok", "running": turns.running, "waiting": turns.waiting}

    @app.get("/metrics")
    async def metrics() -> PlainTextResponse:
        lines = (f"uniattn_pl_texts_running {turns.running}", f"uniattn_pl_texts_waiting {turns.waiting}")
        return PlainTextResponse("\n".join(lines) + "\n")

    return app


def start_turns(served: Served) -> Turns:
    """The turns at a model."""
    return Turns(partial(answered, served=served), served.limits)


async def _respond(request: Request, body: GenerationBody, exchange: Exchange, envelope: Envelope) -> Response:
    if body.stream:
        events = _events(request, body, exchange, envelope)
        return StreamingResponse(events, media_type="text/event-stream", headers={"cache-control": "no-cache"})
    texts: dict[int, list[str]] = {}
    scores: dict[int, list[TokenScore]] = {}
    finished: dict[int, str | None] = {}
    new_tokens = 0
    watching = asyncio.create_task(_until_gone(request, exchange))
    try:
        async for number, part in exchange.parts():
            index = number * body.n + part.choice
            texts.setdefault(index, []).append(part.text)
            scores.setdefault(index, []).extend(part.scores)
            finished[index] = part.finish
            new_tokens += part.new_tokens
    finally:
        watching.cancel()
    choices = [
        envelope.shape.whole(index, "".join(texts[index]), scores[index], finished[index]) for index in sorted(texts)
    ]
    return JSONResponse(envelope.whole(choices, usage_of(_prompt_tokens(exchange.questions), new_tokens)))


async def _events(request: Request, body: GenerationBody, exchange: Exchange, envelope: Envelope) -> AsyncIterator[str]:
    """Server-sent events: a piece each, `[DONE]` behind the last one."""
    shape, new_tokens = envelope.shape, 0
    opened: set[int] = set()
    watching = asyncio.create_task(_until_gone(request, exchange))
    try:
        async for number, part in exchange.parts():
            index = number * body.n + part.choice
            opening = None if index in opened else shape.opening(index)
            opened.add(index)
            if opening is not None:
                yield _event(envelope.piece(opening))
            yield _event(envelope.piece(shape.piece(index, part.text, part.scores, part.finish)))
            new_tokens += part.new_tokens
        if body.include_usage:
            yield _event(envelope.usage(usage_of(_prompt_tokens(exchange.questions), new_tokens)))
    except ApiError as error:  # the status is sent already
        yield _event(error.body())
    finally:
        watching.cancel()
        exchange.give_up()
    yield "data: [DONE]\n\n"


def _event(data: dict[str, Any]) -> str:
    return f"data: {json.dumps(data, ensure_ascii=False)}\n\n"


def _prompt_tokens(questions: Sequence[Question]) -> int:
    return sum(len(question.ids) for question in questions)


async def _until_gone(request: Request, exchange: Exchange) -> None:
    """End an answer when the client that asked for it has gone."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
    exchange.give_up()
    exchange.post(0, ApiError(499, "the client has gone."))


async def _api_error(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, ApiError)
    headers = {"retry-after": "1"} if error.status == 429 else None
    return JSONResponse(error.body(), error.status, headers=headers)


async def _invalid(request: Request, error: Exception) -> JSONResponse:
    """A body that is no JSON (400), or is not what the schema says (422): all of it at once."""
    assert isinstance(error, RequestValidationError)
    problems: list[str] = []
    param = None
    body = ChatBody if request.url.path == CHAT else CompletionBody
    for problem in error.errors():
        where = ".".join(str(step) for step in problem["loc"][1:])
        if problem["type"] == "json_invalid":
            return await _api_error(request, ApiError(400, f"the body is no JSON: {problem['ctx']['error']}."))
        if problem["type"] == "extra_forbidden":
            problems.append(unknown_field(str(problem["loc"][-1]), body, str(problem["loc"][1])))
            continue
        said = problem["msg"].removeprefix("Value error, ")
        value = repr(problem.get("input"))
        wrong = problem["type"] not in ("missing", "value_error")
        got = f", got {value[:SHOWN]}{'...' if len(value) > SHOWN else ''}" if wrong else ""
        problems.append(f"{where}: {said}{got}" if where else f"{said}{got}")
        param = param or where or None
    return await _api_error(request, ApiError(422, "; ".join(problems) + ".", param=param))


async def _of_http(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    messages = {
        404: f"there is nothing at '{request.url.path}'.{did_you_mean(request.url.path, PATHS)} "
        f"This server has: {', '.join(PATHS)}.",
        405: f"'{request.url.path}' does not take {request.method}.",
    }
    return await _api_error(request, ApiError(error.status_code, messages.get(error.status_code, str(error.detail))))


async def _unexpected(request: Request, _: Exception) -> JSONResponse:
    return await _api_error(request, ApiError(500, "this request failed here."))
