"""A command collects garbage rarely until it loads a model, and leaves the process as it was."""

from __future__ import annotations

import gc

import pytest

from uniattn_pl.cli import main
from uniattn_pl.modeling.loading.pretrained import load_model


def test_a_command_ends_with_the_thresholds_it_began_with(capsys: pytest.CaptureFixture[str]) -> None:
    before = gc.get_threshold()
    assert main(["list", "architectures"]) == 0
    assert main(["plan", "model.source=nothing-like-it"]) == 2
    assert gc.get_threshold() == before


def test_garbage_is_collected_as_usual_once_a_model_loads(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def run(arguments: object) -> int:
        seen.append(gc.get_threshold())
        load_model("tiny-llama")
        seen.append(gc.get_threshold())
        return 0

    before = gc.get_threshold()
    monkeypatch.setattr("uniattn_pl.commands.list_command.run", run)
    assert main(["list", "architectures"]) == 0
    assert seen[0][0] > before[0], "modules load without being walked again and again"
    assert seen[1] == before
    assert gc.get_freeze_count() > 0, "what was loaded is not walked later either"


def test_a_model_that_a_library_loads_changes_nothing_of_the_process() -> None:
    before = gc.get_threshold(), gc.get_freeze_count()
    load_model("tiny-llama")
    assert (gc.get_threshold(), gc.get_freeze_count()) == before
