"""Many clients at once: nobody's answer depends on the others, what waits is bounded, and nothing is left behind."""

from __future__ import annotations

import gc
import json
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import pytest
import torch
from fastapi.testclient import TestClient
from transformers import DynamicCache

from uniattn_pl.serving.server.answers import Part, answered
from uniattn_pl.serving.server.app import build_app, start_turns
from uniattn_pl.serving.server.questions import Question, Served
from uniattn_pl.serving.server.server_limits import ServerLimits
from uniattn_pl.serving.server.turns import Turns

COMPLETIONS = "/v1/completions"


def body(number: int) -> dict[str, Any]:
    """One of many requests of mixed lengths and kinds."""
    kinds: list[dict[str, Any]] = [{}, {"seed": 1}, {"n": 2, "seed": 1}, {"seed": 3, "echo": True, "logprobs": 2}]
    prompt = "".join(chr(97 + (number * place) % 26) for place in range(1 + 9 * number))
    return {"prompt": prompt, "max_tokens": 1 + number % 7, "temperature": number % 2, **kinds[number % 4]}


def test_32_requests_at_once_are_answered_as_one_at_a_time(client: TestClient) -> None:
    alone = [client.post(COMPLETIONS, json=body(number)).json()["choices"] for number in range(32)]
    with ThreadPoolExecutor(32) as pool:
        together = list(pool.map(lambda number: client.post(COMPLETIONS, json=body(number)).json(), range(32)))
    assert [answer["choices"] for answer in together] == alone
    assert client.get("/health").json() == {"status": "ok", "running": 0, "waiting": 0}


def test_dozens_of_requests_leave_nothing_behind(client: TestClient) -> None:
    def held() -> tuple[int, int, int]:
        gc.collect()
        objects = gc.get_objects()
        tensors = [thing for thing in objects if issubclass(type(thing), torch.Tensor)]
        return len(tensors), sum(t.numel() for t in tensors), sum(type(thing) is DynamicCache for thing in objects)

    def round_of(count: int) -> None:
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(lambda n: client.post(COMPLETIONS, json=body(n % 8) | {"stream": n % 3 == 0}), range(count)))

    round_of(16)
    before = held()
    round_of(60)
    assert held() == before
    assert before[2] == 0


class Held:
    """Answers that wait to be let go, a turn at a time; which of them have ended is known."""

    def __init__(self) -> None:
        self.go, self.started = threading.Event(), threading.Semaphore(0)
        self.ended: list[int] = []

    def answer(self, question: Question) -> Iterator[Part | None]:
        self.started.release()
        try:
            yield Part(0, "begun")
            while not self.go.is_set():
                self.go.wait(0.01)
                yield None
            yield Part(0, ".", finish="stop", new_tokens=1)
        finally:
            self.ended.append(len(question.ids))


@pytest.fixture
def held() -> Iterator[Held]:
    held = Held()
    yield held
    held.go.set()


def test_a_full_queue_refuses_and_recovers(served: Served, held: Held) -> None:
    small = replace(served, limits=ServerLimits(tokens=64, parallel=1, waiting=2))
    turns = Turns(held.answer, small.limits)
    with TestClient(build_app(small, turns)) as client, ThreadPoolExecutor(3) as pool:
        waiting = [pool.submit(client.post, COMPLETIONS, json={"prompt": "a"}) for _ in range(3)]
        held.started.acquire()
        while turns.waiting < 2:
            pass
        refused = client.post(COMPLETIONS, json={"prompt": "a"})
        assert refused.status_code == 429
        assert refused.json()["error"]["code"] == "queue_full"
        assert "1 texts are being made and 2 wait, of at most 3" in refused.json()["error"]["message"]
        assert client.get("/metrics").text == "uniattn_pl_texts_running 1\nuniattn_pl_texts_waiting 2\n"
        held.go.set()
        assert [answer.result().json()["choices"][0]["text"] for answer in waiting] == ["begun."] * 3
        assert client.post(COMPLETIONS, json={"prompt": "a"}).status_code == 200


def test_the_end_of_the_server_is_told_to_all_who_wait(served: Served, held: Held) -> None:
    turns = Turns(held.answer, ServerLimits(tokens=64, parallel=1, waiting=2))
    with TestClient(build_app(served, turns)) as client, ThreadPoolExecutor(2) as pool:
        waiting = pool.submit(client.post, COMPLETIONS, json={"prompt": "a"})
        streamed = pool.submit(client.post, COMPLETIONS, json={"prompt": "a", "stream": True})
        held.started.acquire()
        while turns.waiting < 1:
            pass
        turns.stop()
        assert waiting.result().status_code == 503
        *_, told, done = [line for line in streamed.result().text.split("\n\n") if line]
        assert "the server is shutting down" in json.loads(told.removeprefix("data: "))["error"]["message"]
        assert done == "data: [DONE]"
        assert client.post(COMPLETIONS, json={"prompt": "a"}).status_code == 503


def test_a_request_that_fails_fails_alone(served: Served, capsys: pytest.CaptureFixture[str]) -> None:
    def breaks(question: Question) -> Iterator[Part | None]:
        yield Part(0, "a")
        if len(question.ids) == 2:
            raise MemoryError
        if len(question.ids) == 3:
            raise RuntimeError("a bug")
        yield from answered(question, served)

    with TestClient(build_app(served, Turns(breaks, served.limits))) as client:
        first, full, bug, last = (client.post(COMPLETIONS, json={"prompt": "x" * n}) for n in (1, 2, 3, 4))
    assert [answer.status_code for answer in (first, full, bug, last)] == [200, 503, 500, 200]
    assert "ask for a shorter text" in full.json()["error"]["message"]
    assert bug.json()["error"]["message"] == "this request failed here."
    assert "RuntimeError: a bug" in capsys.readouterr().err, "whoever runs the server sees what it was"


def test_turns_are_taken_in_order(served: Served) -> None:
    """A short text does not wait for a long one that came before."""
    turns, order = start_turns(served), []
    with TestClient(build_app(served, turns)) as client, ThreadPoolExecutor(2) as pool:

        def ask(tokens: int) -> None:
            client.post(COMPLETIONS, json={"prompt": "ab", "max_tokens": tokens, "temperature": 0})
            order.append(tokens)

        long = pool.submit(ask, 300)
        while not turns.running:
            pass
        pool.submit(ask, 2).result()
        long.result()
    assert order == [2, 300]
