"""No part of a URL's credentials survives redaction, and a URL without any stays as it is."""

from __future__ import annotations

import os
from collections.abc import Iterator
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from uniattn_pl.redaction import redact

SAFE = "abcdefgh-._~0123456789"
WORD = st.text(SAFE, min_size=1, max_size=12)
SCHEME = st.sampled_from(["http", "https", "postgresql", "mysql+pymysql", "s3"])
HOST = st.sampled_from(["tracker", "tracker.example.org", "127.0.0.1", "[::1]"])
PORT = st.sampled_from(["", ":5000", ":80"])
PATH = st.lists(WORD, max_size=3).map(lambda parts: "".join(f"/{part}" for part in parts))
# In capitals, which nothing else of a generated URL has, so that a part of a secret is found.
SECRET = st.text("QRSTUVWXYZ@:!$,;=+%(", min_size=4, max_size=16).filter(lambda text: any(c.isalpha() for c in text))
SECRET_NAMES = st.sampled_from(
    ["token", "access_token", "api_key", "X-Amz-Signature", "X-Amz-Credential", "password", "pwd", "sig", "auth"]
)
HARMLESS_NAMES = st.sampled_from(["version", "sslmode", "author", "design", "page", "branch", "max"])


@given(SCHEME, SECRET, SECRET, HOST, PORT, PATH)
def test_no_part_of_user_and_password_survives(
    scheme: str, user: str, password: str, host: str, port: str, path: str
) -> None:
    for said in (f"{user}:{password}", user, f":{password}", quote(f"{user}:{password}")):
        for slashes in ("//", "/"):  # pathlib makes one of two
            redacted = redact(f"{scheme}:{slashes}{said}@{host}{port}{path}")
            assert redacted == f"{scheme}:{slashes}***@{host}{port}{path}"


@given(st.text("QRS/?#@:[", min_size=1))
def test_no_part_of_a_database_password_survives_unescaped(password: str) -> None:
    assert redact(f"postgresql://user:{password}@host/db") == "postgresql://***@host/db"


@given(SCHEME, HOST, PORT, PATH, HARMLESS_NAMES, WORD, SECRET_NAMES, SECRET, st.sampled_from(["?", "#"]))
def test_no_part_of_a_secret_parameter_survives_and_others_stay(
    scheme: str, host: str, port: str, path: str, other: str, value: str, name: str, secret: str, mark: str
) -> None:
    base = f"{scheme}://{host}{port}{path}{mark}"
    assert redact(f"{base}{name}={secret}&{other}={value}") == f"{base}{name}=***&{other}={value}"
    assert redact(f"{base}{other}={value}&{name.upper()}={secret}") == f"{base}{other}={value}&{name.upper()}=***"


@given(SCHEME, HOST, PORT, PATH, HARMLESS_NAMES, WORD)
def test_a_url_without_credentials_stays_as_it_is(
    scheme: str, host: str, port: str, path: str, name: str, value: str
) -> None:
    for url in (f"{scheme}://{host}{port}{path}", f"{scheme}://{host}{port}{path}?{name}={value}"):
        assert redact(url) == url


@pytest.mark.parametrize(
    "text",
    [
        "sqlite:///mlruns/mlflow.db",
        "sqlite:////srv/a@b/mlflow.db",
        "http://localhost:5000/models/a@b",
        "s3://bucket/folder@2:x@y",
        "HuggingFaceTB/SmolLM2-135M",
        "a question? Its key = 3, says a@b.org: see http://host/x",
    ],
)
def test_what_only_looks_like_credentials_stays_as_it_is(text: str) -> None:
    assert redact(text) == text


def test_nested_data_and_text_around_a_url_are_redacted() -> None:
    data = {"a": ["override 'x=https://u:p@h'", {"b": ("http://u@h/?token=abc",)}], "n": 3, "none": None}
    clean = {"a": ["override 'x=https://***@h'", {"b": ["http://***@h/?token=***"]}], "n": 3, "none": None}
    assert redact(data) == clean


@pytest.mark.parametrize("name", ["HF_TOKEN", "MLFLOW_TRACKING_PASSWORD", "AWS_SECRET_ACCESS_KEY", "wandb_api_key"])
def test_what_a_secret_variable_holds_is_hidden_wherever_it_stands(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, "abcdefgh1")
    monkeypatch.setenv("OTHER_TOKEN", "abcdefgh12")
    assert redact("said abcdefgh12, abcdefgh1") == "said ***, ***"


@pytest.mark.parametrize("name", ["TOKENIZERS_PARALLELISM", "HF_TOKEN_PATH", "HOME", "KEYBOARD"])
def test_what_another_variable_holds_is_shown(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, "abcdefgh1")
    assert redact("said abcdefgh1") == "said abcdefgh1"


def test_a_variable_that_another_thread_takes_away_meanwhile_does_no_harm(monkeypatch: pytest.MonkeyPatch) -> None:
    # a library's thread between the listing of the names and the reading of the values
    class Fleeting(dict[str, str]):
        def __iter__(self) -> Iterator[str]:
            return iter([*super().__iter__(), "GONE_TOKEN"])

    monkeypatch.setattr(os, "environ", Fleeting({"MY_TOKEN": "hunter2hunter2"}))
    assert redact("say hunter2hunter2") == "say ***"
