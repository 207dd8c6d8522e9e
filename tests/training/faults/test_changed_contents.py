"""Resuming on other rows, another model or tokenizer under the same names: told by content, whatever else is equal."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.training.faults.conftest import AtPoint
from tests.training.faults.fits import ROWS, Ended, Work, same

from uniattn_pl.families.catalogue import named_model
from uniattn_pl.resilience.identity import HELD_OUT_ROWS, MODEL, TOKENIZER, TRAINING_ROWS

LINES = ROWS.splitlines()
# a letter for a letter: as many rows, and as many tokens in each
EXCHANGED = "\n".join(line.replace('"output": "1', '"output": "7') for line in LINES)


def errors(ended: Ended) -> list[str]:
    assert ended.codes == [2], ended
    assert "Traceback" not in ended.stderr[0]
    return [line.removeprefix("error: ") for line in ended.stderr[0].splitlines() if line.startswith("error: ")]


def write_rows(work: Work, text: str) -> None:
    (work.folder / "rows.jsonl").write_text(text, encoding="utf-8")


def own_model(work: Work) -> Path:
    """The model of the fits in a folder beside the config: the same contents under another name."""
    shutil.copytree(named_model("tiny-llama"), work.folder / "model")
    return work.folder / "model"


def test_exchanged_answers_are_refused_and_the_former_ones_go_on(at: AtPoint, whole: Work) -> None:
    work = at("stage2 with checkpoints")
    before = work.manifest()
    write_rows(work, EXCHANGED)
    trained, held_out, ways_out = errors(work.fit())
    assert trained.startswith(
        "the training rows changed: 12 of the 12 of 'rows.jsonl' are not among the former 12, row"
    )
    assert held_out.startswith("the held-out rows changed: 4 of the 4 of 'rows.jsonl'")
    assert "--allow-changes" in ways_out
    assert replace(work.manifest(), folder=before.folder) == before  # a copy of the folder that was killed
    # what JSON does not mean is no change
    write_rows(work, "\n".join(json.dumps(dict(reversed(json.loads(line).items()))) for line in LINES) + "\n\n")
    work.resumes()
    same(work, whole)
    assert whole.manifest().identity.keys() == {TRAINING_ROWS, HELD_OUT_ROWS, MODEL, TOKENIZER}


@pytest.mark.parametrize(
    ("lines", "sentence"),
    [
        (LINES[::-1], "have another order, row 1 first"),
        ([*LINES[:3], LINES[3].replace("to 3", "to 9"), *LINES[4:]], "1 of the 12 of 'rows.jsonl' is not among the"),
        (LINES[:-1], "rows changed: "),
    ],
    ids=["reversed", "one", "fewer"],
)
def test_what_changed_of_the_rows_is_named(at: AtPoint, lines: list[str], sentence: str) -> None:
    work = at("stage2 with checkpoints")
    write_rows(work, "\n".join(lines))
    assert sentence in " ".join(errors(work.fit()))


def test_changed_rows_are_used_for_the_rest_when_that_is_allowed(at: AtPoint, whole: Work) -> None:
    work = at("stage2 with checkpoints")
    write_rows(work, "\n".join(EXCHANGED.splitlines()[:-2]))
    ended = work.fit("--allow-changes", faults=[[0, ["writing", 2, 6], ["send", "SIGKILL"]]])
    assert ended.codes == [-9], ended
    assert "allowed, for what is still to be done: the training rows changed" in ended.stdout[0]
    assert [one["phase"] for one in work.manifest().accepted] == ["stage2", "stage2"]
    assert any("training rows" in one["change"] for one in work.manifest().accepted)
    work.resumes()  # they are its own now
    history, former = work.history(), whole.history()
    assert history["stage1/loss"] == former["stage1/loss"]
    assert history["stage2/loss"][:4] == former["stage2/loss"][:4]
    assert history["stage2/loss"][4:] != former["stage2/loss"][4:]


def test_a_model_is_told_by_its_weights_not_by_its_name(at: AtPoint, whole: Work) -> None:
    work = at("stage2")
    file = own_model(work) / "model.safetensors"
    weights = load_file(file)
    name = next(name for name in weights if name.endswith("q_proj.weight"))
    changed = {**weights, name: torch.roll(weights[name], 1)}
    save_file(changed, file, {"format": "pt"})
    sentence, _ = errors(work.fit("model.source=model"))
    assert sentence == "the model changed: model.safetensors ('model')."
    save_file(weights, file, {"format": "pt"})
    shutil.copy(named_model("tiny-llama") / file.name, file)
    work.resumes("model.source=model")
    same(work, whole)


def test_a_changed_config_and_tokenizer_are_named(at: AtPoint) -> None:
    work = at("stage2")
    folder = own_model(work)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "rms_norm_eps": 0.1, "transformers_version": "0"}))
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    tokenizer["pre_tokenizer"]["add_prefix_space"] = True
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    model, words, _ = errors(work.fit("model.source=model"))
    assert model == "the model changed: config.json, rms_norm_eps ('model')."
    assert words == "the tokenizer changed: pre_tokenizer ('model')."


def test_a_run_of_a_version_that_recorded_no_contents_goes_on(at: AtPoint, whole: Work) -> None:
    work = at("stage2 with checkpoints")
    manifest = json.loads((work.run / "manifest.json").read_text())
    del manifest["identity"], manifest["accepted"]
    (work.run / "manifest.json").write_text(json.dumps(manifest))
    (work.run / "identity.json").unlink()
    ended = work.fit()
    assert ended.codes == [0], ended
    assert "did not record its rows, model and tokenizer by content" in ended.stdout[0]
    same(work, whole)
    assert work.manifest().identity == whole.manifest().identity


def test_a_finished_fit_looks_at_what_it_rests_on_and_what_it_has_left(whole: Work, tmp_path: Path) -> None:
    work = whole.copy(tmp_path / "work")
    write_rows(work, EXCHANGED)
    assert any("is finished: to see its results put back" in line for line in errors(work.fit()))
    write_rows(work, ROWS)
    shutil.rmtree(work.run / "final")
    ended = work.fit()
    assert ended.codes == [0], ended
    assert "runs/tiny/final is damaged or gone" in ended.stdout[0]
    same(work, whole)
