"""A run folder from somebody else: links and names in it make no command write or delete outside of it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.tiny_fit import CONFIG, ROWS

from uniattn_pl.cli import main
from uniattn_pl.files import atomic_file, atomic_folder
from uniattn_pl.plan import LayerPlan
from uniattn_pl.plan.cost_ratio import Cost
from uniattn_pl.resilience.model_folders import phase_folder
from uniattn_pl.run_folder import RUN_ENTRIES, check_run_folder
from uniattn_pl.search.frontier import write_frontier
from uniattn_pl.search.greedy import FrontierPoint

WORDS = [
    "model.source=tiny-llama",
    "architecture=baseline",
    "trainer.default_root_dir=run",
    "bench.lengths=[8]",
    "tracking.uri=sqlite:///mlflow.db",
]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run folder, and beside it something precious."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run").mkdir()
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "thesis").write_text("years")
    (tmp_path / "x.yaml").write_text("name: x\n")
    return tmp_path


@pytest.mark.parametrize("command", ["fit", "bench", "analyze"])
@pytest.mark.parametrize(("link", "target"), [("final", "precious"), (".lock", "precious/thesis"), ("bench", "new")])
def test_a_command_that_writes_refuses_a_run_folder_with_a_link_out_of_it(
    folder: Path, command: str, link: str, target: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "run" / link).symlink_to(folder / target)
    assert main([command, "--config", "x.yaml", *WORDS]) == 2
    error = capsys.readouterr().err
    assert f"'run/{link}' is a link to '{folder / target}', outside of the run folder" in error
    assert [path.name for path in (folder / "run").iterdir()] == [link]
    assert (folder / "precious" / "thesis").read_text() == "years"
    assert not (folder / "new").exists()


def test_links_are_found_below_and_links_inside_are_fine(folder: Path, user_error: Callable[..., None]) -> None:
    (folder / "run" / "final").mkdir()
    (folder / "run" / "latest").symlink_to(folder / "precious")  # the user's: no run writes there
    (folder / "run" / "stage1").symlink_to("final")
    check_run_folder(folder / "run")
    (folder / "elsewhere").symlink_to(folder / "run")  # the run folder itself may be a link
    check_run_folder(folder / "elsewhere")
    (folder / "run" / "final" / "config.json").symlink_to(folder / "precious" / "thesis")
    user_error("/config.json' is a link to", check_run_folder, folder / "run")


def test_links_are_looked_for_in_everything_that_commands_write(folder: Path) -> None:
    (folder / "tiny.yaml").write_text(CONFIG)
    (folder / "rows.jsonl").write_text(ROWS)
    words = ["--config", "tiny.yaml", f"tracking.uri=sqlite:///{folder}/mlflow.db"]
    assert main(["fit", *words]) == 0
    assert main(["bench", *words]) == 0
    assert main(["analyze", *words, "--only", "importance"]) == 0
    assert main(["evaluate", *words, "evaluation.probes=[held_out]"]) == 0
    written = {path.name for path in (folder / "runs" / "tiny").iterdir()}
    assert {"final", "bench", "analysis", "evaluation"} <= written <= set(RUN_ENTRIES)


def test_a_file_is_not_written_through_a_link_in_its_place_or_in_that_of_its_temporary(folder: Path) -> None:
    manifest = folder / "run" / "manifest.json"
    for link in (manifest, manifest.with_name("manifest.json.tmp")):
        link.symlink_to(folder / "precious" / "thesis")
    with atomic_file(manifest) as file:
        file.write(b"{}")
    assert manifest.read_text() == "{}"
    assert not manifest.is_symlink()
    assert (folder / "precious" / "thesis").read_text() == "years"


def test_a_file_over_what_a_kill_left_of_it_is_written(folder: Path) -> None:
    (folder / "run" / "state.tmp").write_text("half")
    with atomic_file(folder / "run" / "state") as file:
        file.write(b"whole")
    assert [path.name for path in (folder / "run").iterdir()] == ["state"]


def test_leftovers_that_are_links_are_not_followed(folder: Path) -> None:
    for name in (".final-abc", ".final-abc.old"):
        (folder / "run" / name).symlink_to(folder / "precious")
    (folder / "run" / ".final-real").mkdir()
    (folder / "run" / ".final-real" / "link").symlink_to(folder / "precious")
    with phase_folder(folder / "run" / "final") as temporary:
        (temporary / "config.json").write_text("{}")
    assert not (folder / "run" / ".final-real").exists()
    assert (folder / "precious" / "thesis").read_text() == "years"


def test_a_replaced_folder_with_links_takes_nothing_along(folder: Path) -> None:
    (folder / "run" / "bench").mkdir()
    (folder / "run" / "bench" / "old").symlink_to(folder / "precious")
    with atomic_folder(folder / "run" / "bench"):
        pass
    assert not list((folder / "run" / "bench").iterdir())
    assert (folder / "precious" / "thesis").read_text() == "years"


def test_names_inside_a_search_record_make_no_file_names(folder: Path) -> None:
    plan = {**LayerPlan.unmodified(4).to_dict(), "file": "../../precious/thesis"}
    written = write_frontier(folder / "run", [FrontierPoint(1.0, 2.0, plan, 0, "drop")], Cost("kv_bytes", 8))
    assert all(path.is_relative_to(written) for path in written.rglob("*"))
    assert json.loads((written / "frontier.json").read_text())["points"][0]["plan"] == "plans/00.json"
