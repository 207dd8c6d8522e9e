"""`generate` as people use it: text as it comes, many prompts, conversations, and the original beside it."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.serving.server.conftest import TEMPLATE
from tests.tiny_chat import save_tiny_chat

from uniattn_pl.cli import main
from uniattn_pl.data.prompts import format_prompt
from uniattn_pl.inference import continuation as continuing
from uniattn_pl.inference.generation import generate
from uniattn_pl.modeling.loading.pretrained import load_folder, load_folder_tokenizer, load_model, load_tokenizer

WORDS = ("--max-new-tokens", "8")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A converted model folder with a chat template."""
    return save_tiny_chat(tmp_path_factory.mktemp("generate") / "tiny", TEMPLATE)


def printed(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    assert main(["generate", *words]) == 0
    return capsys.readouterr().out


def test_text_is_shown_as_it_is_made(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    tokens, shown = load_folder_tokenizer(folder)("héart", add_special_tokens=False).input_ids, []

    def watched(*_: Any, **__: Any) -> Iterator[continuing.TokenScore]:
        for token in tokens:
            shown.append(capsys.readouterr().out)
            yield continuing.TokenScore(token)

    monkeypatch.setattr(continuing, "continuation", watched)
    rest = printed(capsys, "--from", str(folder), "--prompt", "a")
    assert shown == ["", "h", "", "é", "a", "r"]
    assert rest == "t\n"


@pytest.mark.parametrize("further", [(), ("--instruction",)], ids=["as it is", "in its template"])
def test_a_text_that_ends_at_once_is_told(
    further: tuple[str, ...], folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(continuing, "continuation", lambda *_, **__: iter(()))
    assert main(["generate", "--from", str(folder), "--prompt", "a", *further]) == 0
    told = capsys.readouterr()
    assert told.out == "\n"
    assert "the model ended its text at once." in told.err
    assert ("--instruction puts it into the template" in told.err) == (not further)


def test_prompts_of_a_file_and_of_the_command_line_are_continued_in_order(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "p.txt").write_text("The heart\n\nLungs é\n", encoding="utf-8")
    rows = [
        {"prompt": "Say"},
        {"instruction": "Name one.", "input": ""},
        {"instruction": "Sum", "input": "1 2", "x": 3},
    ]
    (tmp_path / "p.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    lines = ["Blood", "The heart", "Lungs é"]
    texts = generate(folder, lines, max_new_tokens=8)
    source = ("--from", str(folder), *WORDS)
    assert printed(capsys, *source, "--prompt", "Blood", "--prompts", str(tmp_path / "p.txt")) == "\n".join(
        [*texts, ""]
    )
    wrapped = generate(folder, lines[1:], max_new_tokens=8, instruction=True)
    assert printed(capsys, *source, "--instruction", "--prompts", str(tmp_path / "p.txt")) == "\n".join([*wrapped, ""])
    prompts = ["Say", format_prompt("Name one."), format_prompt("Sum", "1 2")]
    rows_texts = generate(folder, prompts, max_new_tokens=8)
    assert printed(capsys, *source, "--prompts", str(tmp_path / "p.jsonl")) == "\n".join([*rows_texts, ""])


def test_an_instruction_has_its_input(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (text,) = generate(folder, [format_prompt("Sum", "1 2")], max_new_tokens=8)
    words = ("--from", str(folder), *WORDS, "--instruction", "--prompt", "Sum", "--input", "1 2")
    assert printed(capsys, *words) == f"{text}\n"


def test_a_card_is_taken_where_there_is_one(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    placed: list[torch.device | None] = []

    def loaded(folder: Path, *, device: torch.device | None = None, **_: Any) -> Any:
        placed.append(device)
        return load_folder(folder)

    monkeypatch.setattr("uniattn_pl.modeling.loading.pretrained.load_folder", loaded)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert main(["generate", "--from", str(folder), "--prompt", "a", *WORDS]) == 0
    assert placed == [torch.device("cuda")]


def test_a_file_of_prompts_that_is_none_says_every_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bad = tmp_path / "bad.jsonl"
    bad.write_text('{"promt": "x"}\n[1]\n{"prompt": 3}\n{"prompt": "fine"}\n{"instruction"', encoding="utf-8")
    (tmp_path / "empty.txt").write_text("\n\n")
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9")

    def told(name: str) -> str:
        assert main(["generate", "--from", "nowhere", "--prompts", str(tmp_path / name)]) == 2
        return capsys.readouterr().err

    said = told("bad.jsonl")
    assert f"{bad}, line 1: a row has 'prompt', 'instruction' and 'input', or 'messages'; this one has none" in said
    assert "none of them. Did you mean 'prompt'?" in said
    assert f"{bad}, line 2: expected an object" in said
    assert f"{bad}, line 3: 'prompt' is a text, got 3." in said
    assert f"{bad}, line 5: no JSON" in said
    assert "line 4" not in said
    assert "holds no prompt." in told("empty.txt")
    assert "is no UTF-8 text: byte 3 is not." in told("latin.txt")
    assert "Did you mean 'empty.txt'?" in told("emptty.txt")
    assert "ends in '.csv'; allowed are .txt, .jsonl." in told("p.csv")


def test_a_text_ends_in_front_of_a_stop_string(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (whole,) = generate(folder, ["The heart"], max_new_tokens=30)
    found = re.search(r"(?<=.)[!-~]{2}", whole)  # two characters are two tokens
    assert found is not None
    stop = found[0]
    cut = printed(capsys, "--from", str(folder), "--prompt", "The heart", "--max-new-tokens", "30", "--stop", stop)
    assert cut == whole[: whole.index(stop)] + "\n"


@pytest.mark.parametrize("narrow", [["--top-k", "1"], ["--top-p", "1e-6"]])
def test_a_share_of_one_token_is_the_likeliest_one(
    narrow: list[str], folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = ("--from", str(folder), "--prompt", "The heart", *WORDS)
    assert printed(capsys, *source, "--temperature", "5", *narrow) == printed(capsys, *source)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ([], "generate needs at least one --prompt TEXT, or --prompts FILE, or --row N, or --chat."),
        (["--chat", "--prompt", "x"], "--chat asks you for what to say"),
        (["--prompt", "x", "--system", "y"], "--system is of --chat"),
        (["--prompt", "x", "--top-p", "0", "--top-k", "-1"], "--top-p is a probability"),
        (["--prompt", "x", "--top-k", "-1"], "--top-k must be at least 0, got -1."),
        (["--prompt", "x", "--top-p", "0.5"], "they need --temperature T above 0."),
        (["--prompt", "x", "--input", "y"], "--input is that of an instruction; it needs --instruction"),
        (["--row", "-1"], "--row is a number from 0; got -1."),
        (["--prompt", "x", "--stop", ""], "--stop needs a text that is not empty."),
        (["--prompt", "x", "--beside", "original", "--h2o", "0.5"], "--beside runs both models as they are"),
        (["--prompt", "x", "--beside", "original"], "--beside original needs a run, or its --config"),
    ],
)
def test_what_does_not_go_together_is_told(
    words: list[str], says: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["generate", "--from", str(folder), *words]) == 2
    assert says in capsys.readouterr().err


def likeliest(folder: Path, prompt: str, tokens: int) -> str:
    """The text of an argmax loop without a cache."""
    model, tokenizer = load_folder(folder), load_folder_tokenizer(folder)
    ids = list(tokenizer(prompt, add_special_tokens=False).input_ids)
    start = len(ids)
    with torch.no_grad():
        for _ in range(tokens):
            ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
    return str(tokenizer.decode(ids[start:], skip_special_tokens=True))


def test_a_conversation_is_kept_until_another_begins(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("Hi\n\nAnd?\n/new\nHi\n/exit\nnever\n"))
    out = printed(capsys, "--from", str(folder), "--chat", "--system", "Be brief.", *WORDS)
    start = "[system] Be brief.\n[user] Hi\n[assistant] "
    first = likeliest(folder, start, 8)
    second = likeliest(folder, f"{start}{first}\n[user] And?\n[assistant] ", 8)
    assert out == f"{first}\n{second}\n{first}\n"


def test_ctrl_c_ends_an_answer_and_the_conversation_goes_on(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    said: list[int] = []

    def interrupted(model: Any, prompt: continuing.FilledPrompt, *_: Any, **__: Any) -> Iterator[continuing.TokenScore]:
        said.append(len(prompt.ids))
        yield from map(continuing.TokenScore, load_folder_tokenizer(folder)("ok", add_special_tokens=False).input_ids)
        raise KeyboardInterrupt

    monkeypatch.setattr(continuing, "continuation", interrupted)
    monkeypatch.setattr("sys.stdin", io.StringIO("a\nb\n"))
    assert printed(capsys, "--from", str(folder), "--chat") == "ok\nok\n\n"
    assert said == [len("[user] a\n[assistant] "), len("[user] a\n[assistant] ok\n[user] b\n[assistant] ")]


def test_a_conversation_that_fills_the_positions_says_so(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("a" * 2048 + "\nHi\n/exit\n"))
    out = printed(capsys, "--from", str(folder), "--chat", *WORDS)
    assert "tokens are all that this model has positions for; /new begins another chat." in out
    assert out.endswith(likeliest(folder, "[user] Hi\n[assistant] ", 8) + "\n")


def test_a_model_without_a_chat_template_is_not_talked_to(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    load_model("tiny-llama", dtype="float32").save_pretrained(tmp_path)
    load_tokenizer("tiny-llama").save_pretrained(tmp_path)
    assert main(["generate", "--from", str(tmp_path), "--chat"]) == 2
    assert "has no chat template, so nothing says how a conversation is written for it" in capsys.readouterr().err
