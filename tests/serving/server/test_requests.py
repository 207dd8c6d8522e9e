"""Requests that cannot be answered: a status, and a message that says what is wrong, where and what is allowed."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
from fastapi.testclient import TestClient

from uniattn_pl.serving.server.app import build_app, start_turns
from uniattn_pl.serving.server.questions import Served

COMPLETIONS, CHAT = "/v1/completions", "/v1/chat/completions"
HELLO = [{"role": "user", "content": "Hi"}]
DEEP = "[" * 9_000


@pytest.mark.parametrize(
    ("path", "body", "status", "says"),
    [
        (COMPLETIONS, {"promt": "a"}, 422, ["unknown field 'promt'. Did you mean 'prompt'?", "prompt: Field required"]),
        (
            COMPLETIONS,
            {"prompt": "a", "temprature": 1, "n": "2"},
            422,
            ["'temperature'?", "n: Input should be a valid"],
        ),
        (
            COMPLETIONS,
            {"prompt": "a", "max_tokens": 1.5},
            422,
            ["max_tokens: Input should be a valid integer, got 1.5"],
        ),
        (
            COMPLETIONS,
            {"prompt": "a", "max_tokens": -1},
            422,
            ["max_tokens: Input should be greater than or equal to 0"],
        ),
        (COMPLETIONS, {"prompt": "a", "max_tokens": 0}, 422, ["without echo=true"]),
        (COMPLETIONS, {"prompt": "a", "n": 0}, 422, ["n: Input should be greater than or equal to 1"]),
        (COMPLETIONS, {"prompt": "a", "n": 1000}, 422, ["n: Input should be less than or equal to 128"]),
        (COMPLETIONS, {"prompt": "a", "top_p": 0}, 422, ["top_p: Input should be greater than 0"]),
        (COMPLETIONS, {"prompt": "a", "temperature": -1}, 422, ["temperature"]),
        (COMPLETIONS, {"prompt": "a", "temperature": 1e-9}, 422, ["temperature is 0, or a number of at least 1e-06"]),
        (COMPLETIONS, {"prompt": "a", "logprobs": 21}, 422, ["logprobs: Input should be less than or equal to 20"]),
        (COMPLETIONS, {"prompt": "a", "logprobs": True}, 422, ["logprobs: Input should be a valid integer, got True"]),
        (COMPLETIONS, {"prompt": "a", "stop": [1]}, 422, ["stop is a text or a list of texts"]),
        (COMPLETIONS, {"prompt": "a", "stop": ""}, 422, ["none of them empty"]),
        (COMPLETIONS, {"prompt": "a", "best_of": 3}, 422, ["best_of other than n is not built"]),
        (
            COMPLETIONS,
            {"prompt": "a", "frequency_penalty": 1},
            422,
            ["'frequency_penalty' is not built into this server"],
        ),
        (COMPLETIONS, {"prompt": "a", "stream_options": {"include_usages": True}}, 422, ["'include_usage'?"]),
        (COMPLETIONS, {"prompt": []}, 422, ["prompt: a prompt is a text, a list of texts"]),
        (COMPLETIONS, {"prompt": [[]]}, 422, ["none is empty"]),
        (COMPLETIONS, {"prompt": ["a", 1]}, 422, ["a prompt is a text"]),
        (COMPLETIONS, {"prompt": [-1]}, 422, ["a prompt is a text"]),
        (COMPLETIONS, {"prompt": "\ud83d"}, 422, ["it has half a character"]),
        (
            COMPLETIONS,
            {"prompt": ""},
            400,
            ["prompt has no token, and this model's tokenizer begins a text with none."],
        ),
        (COMPLETIONS, {"prompt": ["a", ""]}, 400, ["prompt 1 has no token"]),
        (COMPLETIONS, {"prompt": [5, 10**9]}, 400, ["prompt has token 1000000000; this model has tokens 0 to 258."]),
        (COMPLETIONS, {"prompt": ["a"] * 65}, 400, ["at most 64 prompts here, got 65"]),
        (COMPLETIONS, {"prompt": "a" * 600}, 400, ["prompt has 600 tokens", "more than the 512 that a text may have"]),
        (COMPLETIONS, {"prompt": "a" * 500, "max_tokens": 20}, 400, ["or ask for at most 12."]),
        (COMPLETIONS, {"prompt": "a", "model": "tinny"}, 404, ["no model 'tinny' here. Did you mean 'tiny'?"]),
        (COMPLETIONS, [1], 422, ["expected a JSON object"]),
        (CHAT, {"messages": []}, 422, ["messages: List should have at least 1 item"]),
        (
            CHAT,
            {"messages": [{"role": "usr", "content": "a"}]},
            422,
            ["messages.0.role: Input should be 'system', 'user'"],
        ),
        (CHAT, {"messages": [{"rol": "user", "content": "a"}]}, 422, ["unknown field 'rol'. Did you mean 'role'?"]),
        (
            CHAT,
            {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]},
            422,
            ["this model reads text only"],
        ),
        (CHAT, {"messages": HELLO, "tools": [{"type": "function"}]}, 422, ["'tools' is not built into this server"]),
        (CHAT, {"messages": HELLO, "top_logprobs": 2}, 400, ["top_logprobs needs logprobs=true."]),
        (CHAT, {"messages": [*HELLO, {"role": "system", "content": "x"}]}, 400, ["refuses this", "system comes first"]),
        (CHAT, {"messages": [{"role": "user", "content": "a" * 512}]}, 400, ["more than the 512"]),
        ("/v1/completion", {}, 404, ["nothing at '/v1/completion'. Did you mean '/v1/completions'?"]),
        ("/health", {}, 405, ["'/health' does not take POST."]),
    ],
)
def test_a_wrong_request_is_told_what_is_wrong(
    client: TestClient, path: str, body: Any, status: int, says: list[str]
) -> None:
    answer = client.post(path, content=json.dumps(body), headers={"content-type": "application/json"})
    error = answer.json()["error"]
    assert answer.status_code == status, error
    assert all(words in error["message"] for words in says), error
    assert error["type"] == "invalid_request_error"
    assert "Traceback" not in answer.text


@pytest.mark.parametrize(
    ("content", "status", "says"),
    [
        (b'{"prompt": "a"', 400, "the body is no JSON: Expecting ',' delimiter."),
        (b"\xff\xfe", 400, ""),
        (DEEP.encode(), 400, ""),
        (b'{"prompt": "a", "seed": ' + b"9" * 5000 + b"}", 400, ""),
        (b'{"prompt": "a", "temperature": NaN}', 422, "temperature: Input should be"),
        (b"", 422, "Field required"),
    ],
    ids=["cut", "no text", "deep", "long number", "nan", "empty"],
)
def test_a_body_that_is_no_json_is_told_so(client: TestClient, content: bytes, status: int, says: str) -> None:
    answer = client.post(COMPLETIONS, content=content, headers={"content-type": "application/json"})
    assert answer.status_code == status, answer.text
    assert says in answer.json()["error"]["message"]


def test_a_page_of_another_site_cannot_send_a_simple_form(client: TestClient) -> None:
    answer = client.post(COMPLETIONS, content=b'{"prompt": "a"}', headers={"content-type": "text/plain"})
    assert answer.status_code == 422


def test_a_body_is_bounded_whether_it_says_its_size_or_not(client: TestClient) -> None:
    def in_pieces() -> Iterator[bytes]:
        for _ in range(30):
            yield b" " * 1000

    large = client.post(COMPLETIONS, json={"prompt": "a" * 20_000})
    unsaid = client.post(COMPLETIONS, content=in_pieces(), headers={"content-type": "application/json"})
    for answer in (large, unsaid):
        assert answer.status_code == 413
        assert "at most 20000 bytes" in answer.json()["error"]["message"]
    assert client.post(COMPLETIONS, json={"prompt": "a"}).status_code == 200


def test_what_openais_clients_send_besides_changes_nothing(client: TestClient) -> None:
    besides = {"user": "me", "presence_penalty": 0, "logit_bias": {}, "suffix": None, "best_of": 1, "top_k": -1}
    body = {"prompt": "a", "temperature": 0}
    assert (
        client.post(COMPLETIONS, json={**body, **besides}).json()["choices"]
        == (client.post(COMPLETIONS, json=body).json()["choices"])
    )


def test_a_model_without_a_chat_template_says_what_to_use(served: Served) -> None:
    tokenizer = copy.deepcopy(served.tokenizer)
    tokenizer.chat_template = None
    plain = replace(served, tokenizer=tokenizer)
    with TestClient(build_app(plain, start_turns(plain))) as client:
        answer = client.post(CHAT, json={"messages": HELLO})
    assert answer.status_code == 400
    message = answer.json()["error"]["message"]
    assert "'tiny' has no chat template" in message
    assert "/v1/completions takes text." in message


def test_a_key_is_asked_for(served: Served) -> None:
    with TestClient(build_app(served, start_turns(served), api_key="secret")) as client:
        assert client.get("/health").status_code == 200
        assert client.get("/v1/models").status_code == 401
        wrong = client.post(COMPLETIONS, json={"prompt": "a"}, headers={"authorization": "Bearer secre"})
        assert wrong.status_code == 401
        assert "Authorization: Bearer KEY" in wrong.json()["error"]["message"]
        right = client.get("/v1/models", headers={"authorization": "Bearer secret"}).json()
    assert [(model["id"], model["max_model_len"]) for model in right["data"]] == [("tiny", 512)]
