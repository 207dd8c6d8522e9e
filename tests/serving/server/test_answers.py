"""What the server answers is what the model itself says: texts, log-probabilities, choices, streams."""

from __future__ import annotations

import json
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from fastapi.testclient import TestClient
from hypothesis import given, settings
from hypothesis import strategies as st

from uniattn_pl.families.catalogue import byte_tokenizer
from uniattn_pl.inference.continuation import TokenScore
from uniattn_pl.inference.text_pieces import TextPieces
from uniattn_pl.serving.server import answers
from uniattn_pl.serving.server.questions import Served

COMPLETIONS, CHAT = "/v1/completions", "/v1/chat/completions"
PROMPT = "The heart pumps blood through the body."
GREEDY = {"temperature": 0, "max_tokens": 12}


def ask(client: TestClient, path: str = COMPLETIONS, **body: Any) -> dict[str, Any]:
    answer = client.post(path, json=body)
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


def events(client: TestClient, path: str = COMPLETIONS, **body: Any) -> list[dict[str, Any]]:
    """The events of a stream, which ends as OpenAI's do."""
    answer = client.post(path, json={**body, "stream": True})
    assert answer.headers["content-type"].startswith("text/event-stream")
    *lines, last = [line.removeprefix("data: ") for line in answer.text.split("\n\n") if line]
    assert last == "[DONE]"
    return [json.loads(line) for line in lines]


def likeliest(served: Served, ids: list[int], tokens: int) -> list[int]:
    """An argmax loop without a cache."""
    text = list(ids)
    for _ in range(tokens):
        with torch.no_grad():
            text.append(int(served.model(torch.tensor([text])).logits[0, -1].argmax()))
        if text[-1] == served.tokenizer.eos_token_id:
            break
    return text[len(ids) :]


@pytest.fixture
def ids(served: Served) -> list[int]:
    return list(served.tokenizer(PROMPT, add_special_tokens=False).input_ids)


def test_temperature_zero_gives_the_likeliest_tokens(client: TestClient, served: Served, ids: list[int]) -> None:
    text = served.tokenizer.decode(likeliest(served, ids, 12), skip_special_tokens=True)
    for prompt in (PROMPT, [PROMPT], ids, [ids]):
        answer = ask(client, prompt=prompt, **GREEDY)
        assert [choice["text"] for choice in answer["choices"]] == [text]
        assert answer["usage"] == {
            "prompt_tokens": len(ids),
            "completion_tokens": 12,
            "total_tokens": len(ids) + 12,
        }
        assert answer["choices"][0]["finish_reason"] == "length"


@pytest.mark.parametrize("length", [1, 7, 300])
def test_log_probabilities_of_prompt_and_answer_are_torchs(client: TestClient, served: Served, length: int) -> None:
    """As lm-evaluation-harness asks for them, across the parts that a long prompt comes in."""
    ids = torch.randint(3, 200, (length,), generator=torch.Generator().manual_seed(length)).tolist()
    found = ask(client, prompt=ids, echo=True, logprobs=3, **(GREEDY | {"max_tokens": 1}))["choices"][0]["logprobs"]
    text = ids + likeliest(served, ids, 1)
    with torch.no_grad():
        logs = served.model(torch.tensor([text])).logits[0].log_softmax(-1)
    expected = logs[:-1].gather(1, torch.tensor(text[1:])[:, None])[:, 0]
    assert found["token_logprobs"][0] is None
    assert found["top_logprobs"][0] is None
    assert len(found["tokens"]) == length + 1
    assert torch.allclose(torch.tensor(found["token_logprobs"][1:]), expected, atol=1e-5)
    for place, top in enumerate(found["top_logprobs"][1:]):
        assert max(top.values()) == pytest.approx(float(logs[place].max()), abs=1e-5)
        assert found["token_logprobs"][place + 1] in top.values()
    assert max(found["top_logprobs"][-1].values()) == found["token_logprobs"][-1], "the answer is the likeliest token"


def test_echo_alone_scores_without_an_answer(client: TestClient, ids: list[int]) -> None:
    body = {"prompt": [ids, ids[:5]], "echo": True, "logprobs": 0, "max_tokens": 0}
    first, second = ask(client, **body)["choices"]
    assert first["text"] == PROMPT
    assert second["text"] == PROMPT[:5]
    assert [len(choice["logprobs"]["tokens"]) for choice in (first, second)] == [len(ids), 5]
    scores = [choice["logprobs"]["token_logprobs"][1:5] for choice in (first, second)]
    assert scores[1] == pytest.approx(scores[0], abs=1e-5)
    assert second["logprobs"]["text_offset"] == [0, 1, 2, 3, 4]


def test_lm_evaluation_harness_reads_the_answer(client: TestClient, served: Served, ids: list[int]) -> None:
    api = pytest.importorskip("lm_eval.models.openai_completions").LocalCompletionsAPI
    continued = [ids[:9] + likeliest(served, ids[:9], 3), ids]
    answer = ask(client, **api._create_payload(SimpleNamespace(model="tiny"), continued))
    (_, greedy), (log, other) = api.parse_logprobs(answer, ctxlens=[9, 9])
    assert greedy
    assert not other
    with torch.no_grad():
        logs = served.model(torch.tensor([ids])).logits[0].log_softmax(-1)
    assert log == pytest.approx(sum(float(logs[place - 1, ids[place]]) for place in range(9, len(ids))), abs=1e-4)


def test_a_seed_repeats_every_choice_and_choices_differ(client: TestClient) -> None:
    body = {"prompt": PROMPT, "n": 3, "seed": 7, "temperature": 1.0, "max_tokens": 8}
    texts = [choice["text"] for choice in ask(client, **body)["choices"]]
    assert len(set(texts)) == 3
    assert [choice["text"] for choice in ask(client, **body)["choices"]] == texts
    assert [choice["text"] for choice in ask(client, **{**body, "n": 1})["choices"]] == texts[:1]
    assert ask(client, **{**body, "seed": 8})["choices"][0]["text"] != texts[0]
    unseeded = {key: value for key, value in body.items() if key != "seed"}
    assert ask(client, **unseeded)["choices"] != ask(client, **unseeded)["choices"]


def test_every_prompt_has_all_its_choices_in_order(client: TestClient) -> None:
    choices = ask(client, prompt=["a", "b"], n=2, echo=True, **GREEDY)["choices"]
    assert [choice["index"] for choice in choices] == [0, 1, 2, 3]
    assert [choice["text"][0] for choice in choices] == ["a", "a", "b", "b"]


@pytest.mark.parametrize("narrow", [{"top_k": 1}, {"top_p": 1e-6}])
def test_a_share_of_one_token_is_the_likeliest_one(client: TestClient, narrow: dict[str, float]) -> None:
    drawn = ask(client, prompt=PROMPT, temperature=5.0, max_tokens=12, **narrow)
    assert drawn["choices"] == ask(client, prompt=PROMPT, **GREEDY)["choices"]


def test_a_stream_is_the_answer_in_pieces(client: TestClient, ids: list[int]) -> None:
    body = {"prompt": [PROMPT, "b"], "n": 2, "echo": True, "logprobs": 1, **GREEDY}
    whole = ask(client, **body)
    pieces = events(client, **body, stream_options={"include_usage": True})
    assert pieces.pop()["usage"] == whole["usage"]
    assert len({piece["id"] for piece in pieces}) == 1
    choices = [piece["choices"][0] for piece in pieces]
    assert len(choices) > 8
    for expected in whole["choices"]:
        own = [choice for choice in choices if choice["index"] == expected["index"]]
        assert "".join(choice["text"] for choice in own) == expected["text"]
        for part in ("tokens", "token_logprobs", "top_logprobs", "text_offset"):
            assert [entry for choice in own for entry in choice["logprobs"][part]] == expected["logprobs"][part]
        assert [choice["finish_reason"] for choice in own] == [None] * (len(own) - 1) + [expected["finish_reason"]]


def says(monkeypatch: pytest.MonkeyPatch, served: Served, text: str, *, end: bool = True) -> None:
    """Have the model say a text, a byte a token."""
    tokens = list(served.tokenizer(text, add_special_tokens=False).input_ids)

    def scripted(*_: Any, **__: Any) -> Iterator[TokenScore]:
        yield from (TokenScore(token) for token in [*tokens, *([served.tokenizer.eos_token_id] if end else [])])

    monkeypatch.setattr(answers, "continuation", scripted)


def test_characters_of_several_tokens_come_whole(
    client: TestClient, served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = "é 🫀 心 a\u0301 👨‍👩‍👧"
    says(monkeypatch, served, text)
    pieces = [event["choices"][0]["text"] for event in events(client, prompt="a", max_tokens=99)]
    assert "".join(pieces) == text
    assert [piece for piece in pieces if piece] == list(text)


def test_a_text_that_is_cut_inside_a_character_ends_all_the_same(
    client: TestClient, served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokens = list(served.tokenizer("a🫀", add_special_tokens=False).input_ids)[:3]
    monkeypatch.setattr(answers, "continuation", lambda *_, **__: map(TokenScore, tokens))
    pieces = [event["choices"][0]["text"] for event in events(client, prompt="a", max_tokens=3)]
    assert pieces == ["a", served.tokenizer.decode(tokens)[1:]]


@pytest.mark.parametrize(
    ("stop", "text", "finish"),
    [
        ("stop", "one st op, ", "stop"),
        (["never", "op, s"], "one st ", "stop"),
        ([" stop here", "stop h"], "one st op, ", "stop"),
        ("🫀", "one st op, stop here ", "stop"),
        ("stop. ", "one st op, stop here 🫀 stop", "stop"),
    ],
)
def test_a_text_ends_in_front_of_the_first_stop_string(
    client: TestClient, served: Served, monkeypatch: pytest.MonkeyPatch, stop: Any, text: str, finish: str
) -> None:
    says(monkeypatch, served, "one st op, stop here 🫀 stop")
    choice = ask(client, prompt="a", max_tokens=99, stop=stop)["choices"][0]
    assert (choice["text"], choice["finish_reason"]) == (text, finish)
    pieces = [event["choices"][0]["text"] for event in events(client, prompt="a", max_tokens=99, stop=stop)]
    assert "".join(pieces) == text


BYTES = byte_tokenizer()


@settings(max_examples=80, deadline=None)
@given(text=st.text(max_size=30), stops=st.lists(st.text(min_size=1, max_size=4), max_size=2))
def test_pieces_are_the_text_up_to_the_first_stop_string(text: str, stops: list[str]) -> None:
    pieces = TextPieces(BYTES, stops)
    shown = []
    for token in BYTES(text, add_special_tokens=False).input_ids:
        shown.append(pieces.push(token))
        if pieces.stopped:
            break
    shown.append(pieces.finish())
    ends = [place for stop in stops if (place := text.find(stop)) >= 0]
    # Of two stop strings that overlap, the one that is complete first ends the text.
    expected = {text[:end] for end in ends} if ends else {text}
    assert "".join(shown) in expected
    assert pieces.stopped == bool(ends)
    assert all("\ufffd" not in piece for piece in shown) or "\ufffd" in text


@settings(max_examples=60, deadline=None)
@given(tokens=st.lists(st.integers(0, len(BYTES) - 1), max_size=40))
def test_pieces_of_any_tokens_are_what_the_tokenizer_makes_of_all(tokens: list[int]) -> None:
    pieces = TextPieces(BYTES)
    assert "".join([*map(pieces.push, tokens), pieces.finish()]) == BYTES.decode(tokens, skip_special_tokens=True)


def test_a_conversation_goes_through_the_models_template(client: TestClient, served: Served) -> None:
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": [{"type": "text", "text": "Hi"}, {"type": "text", "text": "!"}]},
    ]
    prompt = "[system] Be brief.\n[user] Hi!\n[assistant] "
    ids = list(served.tokenizer(prompt, add_special_tokens=False).input_ids)
    answer = ask(client, CHAT, messages=messages, logprobs=True, top_logprobs=2, **GREEDY)
    expected = likeliest(served, ids, 12)
    (choice,) = answer["choices"]
    assert choice["message"] == {
        "role": "assistant",
        "content": served.tokenizer.decode(expected, skip_special_tokens=True),
    }
    assert answer["usage"]["prompt_tokens"] == len(ids)
    first = choice["logprobs"]["content"][0]
    assert bytes(first["bytes"]) == bytes([served.tokenizer.decode([expected[0]]).encode()[0]]) or "bytes:" in str(
        first
    )
    assert [entry["logprob"] for entry in first["top_logprobs"]] == sorted(
        (entry["logprob"] for entry in first["top_logprobs"]), reverse=True
    )
    assert first["top_logprobs"][0]["token"] == first["token"]
    opening, *pieces = [e["choices"][0]["delta"] for e in events(client, CHAT, messages=messages, **GREEDY)]
    assert opening == {"role": "assistant", "content": ""}
    assert "".join(piece.get("content", "") for piece in pieces) == choice["message"]["content"]


def test_a_chat_may_use_all_the_room_there_is(
    client: TestClient, served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    says(monkeypatch, served, "yes")
    answer = ask(client, CHAT, messages=[{"role": "user", "content": "?"}])
    assert answer["choices"][0]["message"]["content"] == "yes"
    assert answer["choices"][0]["finish_reason"] == "stop"
    assert answer["usage"]["completion_tokens"] == 4, "the token that ends it counts"
