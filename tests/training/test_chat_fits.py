"""Fits on chats through the command line: what they learn, save, resume, refuse, and are talked to with."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from tests.chat_templates import template
from tests.once import import_everything
from tests.tiny_fit import BASE

from uniattn_pl.cli import main
from uniattn_pl.data.prompt_file import AskedPrompt, read_prompts
from uniattn_pl.inference.chat_prompt import chat_ids, learned_template
from uniattn_pl.inference.generation import encoded_prompts
from uniattn_pl.modeling.loading.pretrained import load_folder_tokenizer
from uniattn_pl.resilience.manifest import Manifest

CONFIG = (
    BASE.replace("validation_size: 2", "validation_size: 2, template: own.jinja, max_length: 200")
    + """
training: {batch_size: 2, micro_batch_size: 1, stage1: {max_steps: 1}, stage2: {max_steps: 2}}
"""
)
CHATS = [
    [
        {"role": "user", "content": f"Count to {n}."},
        {"role": "assistant", "content": " ".join(map(str, range(1, n)))},
        {"role": "user", "content": "And on?"},
        {"role": "assistant", "content": f"{n + 1} {n + 2}"},
    ]
    for n in range(2, 10)
]
ROWS = "\n".join(json.dumps({"messages": chat}) for chat in CHATS)
TEMPLATE = template("mistral", tagged=False)


def write(folder: Path) -> None:
    (folder / "tiny.yaml").write_text(CONFIG)
    (folder / "rows.jsonl").write_text(ROWS)
    (folder / "own.jinja").write_text(TEMPLATE)


@pytest.fixture(scope="module")
def fitted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a finished fit on chats in runs/tiny."""
    folder = tmp_path_factory.mktemp("chats")
    import_everything()
    write(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert main(["fit", "--config", "tiny.yaml"]) == 0
    return folder


@pytest.fixture
def here(fitted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of it, as the working folder."""
    shutil.copytree(fitted, tmp_path / "copy")
    monkeypatch.chdir(tmp_path / "copy")
    return tmp_path / "copy"


def test_a_fit_says_what_it_learns_from(here, capsys):
    manifest = Manifest.read(here / "runs/tiny")
    assert manifest is not None
    assert manifest.phase == "done"
    assert "template" in manifest.identity
    assert main(["fit", "--config", "tiny.yaml", "name=other", "--dry-run"]) == 0
    assert "data: rows.jsonl (chat, template own.jinja), 8 rows read, 6 train, 2 validation" in capsys.readouterr().out
    assert (here / "runs/tiny/final/chat_template.jinja").read_text() == TEMPLATE


def test_a_run_is_talked_to_and_evaluated_with_the_template_it_learned(here, capsys):
    (here / "own.jinja").unlink()  # the run has it
    folder = here / "runs/tiny/final"
    tokenizer = load_folder_tokenizer(folder)
    expected = tokenizer.apply_chat_template(CHATS[0][:1], add_generation_prompt=True, return_dict=False)
    assert tokenizer.decode(expected) == "<s>[INST] Count to 2. [/INST]"
    (here / "asked.jsonl").write_text(json.dumps({"messages": CHATS[0][:1]}) + '\n{"prompt": "Count"}')
    asked = [AskedPrompt.of("Count to 2.", instruction=True), *read_prompts(here / "asked.jsonl")]
    assert learned_template(folder) == "own.jinja"
    ids = encoded_prompts(tokenizer, asked, in_chat=True)
    assert ids[:2] == [expected, expected]
    assert tokenizer.decode(ids[2]) == "Count", "a prompt is text"
    assert chat_ids(tokenizer, CHATS[0][:1]) == expected, "as `serve` and `--chat` ask"
    begin = ["generate", "--from", "runs/tiny", "--max-new-tokens", "8"]
    assert main([*begin, "--instruction", "--prompt", "Count to 2."]) == 0
    said = capsys.readouterr().out
    assert main([*begin, "--prompts", "asked.jsonl"]) == 0
    assert capsys.readouterr().out.startswith(said)
    assert main(["evaluate", "--from", "runs/tiny", "evaluation.probes=[held_out]"]) == 0
    (result,) = json.loads((here / "runs/tiny/evaluation/results.json").read_text())["results"]
    manifest = Manifest.read(here / "runs/tiny")
    assert manifest is not None
    own = manifest.results["stage2"]["milestones"]["stage2"]["response_loss"]
    assert result["figures"]["response_loss"]["value"] == pytest.approx(own, abs=1e-4)


def test_the_same_template_elsewhere_is_the_same_run_and_another_is_not(here, capsys):
    fit = ["fit", "--config", "tiny.yaml"]
    (here / "own.jinja").rename(here / "moved.jinja")
    assert main([*fit, "data.template=moved.jinja"]) == 0
    assert "finished" in capsys.readouterr().out
    (here / "moved.jinja").write_text(TEMPLATE.replace("[INST] ", "[INST]"))
    assert main([*fit, "data.template=moved.jinja"]) == 2
    assert "the chat template changed: default (the chat template 'moved.jinja')" in capsys.readouterr().err
    for setting, words in (
        ("data.template=paper", "data.template was 'moved.jinja' when runs/tiny was started and is now 'paper'"),
        ("data.template=moved.jinja data.loss_turns=last", "data.loss_turns was 'all'"),
    ):
        assert main([*fit, *setting.split()]) == 2
        assert words in capsys.readouterr().err


def test_a_row_that_the_template_does_not_take_is_named_before_anything_starts(here, capsys):
    wrong = [CHATS[0][0], *CHATS[0]]
    (here / "rows.jsonl").write_text(f"{ROWS}\n\n{json.dumps({'messages': wrong})}")
    fit = ["fit", "--config", "tiny.yaml", "name=other", "--dry-run"]
    assert main(fit) == 2
    said = capsys.readouterr().err
    assert "rows.jsonl, line 10: the chat template 'own.jinja' refuses this conversation" in said
    assert "roles must alternate" in said
    assert main([*fit, "data.on_bad_row=skip"]) == 0
    for setting, words in (
        (
            "data.template=own.jinjja",
            "must be paper, chat or a file with a Jinja template; 'own.jinjja' does not exist",
        ),
        ("data.template=chta", "Did you mean 'chat'?"),
        ("data.template=chat", "the model has no chat template; give one as a Jinja file"),
        ("data.roles=[a=b]", "expected NAME=ROLE, the role being one of user, assistant, system, tool; got 'a=b'"),
        ("data.source=embedded_chats data.template=paper", "are conversations of several rounds"),
    ):
        assert main([*fit, *setting.split()]) == 2
        assert words in capsys.readouterr().err
