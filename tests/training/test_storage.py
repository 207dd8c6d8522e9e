"""Model folders of a run, after a kill in the middle of writing them."""

from __future__ import annotations

from pathlib import Path

from uniattn_pl.resilience.model_folders import phase_folder


def test_what_a_kill_left_of_a_phase_is_removed_and_nothing_else(tmp_path: Path) -> None:
    # killed between the two renames that replace `final`: it is gone, the former and the new one are complete
    for name in (".final-abc", ".final-abc.old", ".initial-abc", "initial"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "model").write_text(name)
    with phase_folder(tmp_path / "final") as temporary:
        (temporary / "model").write_text("again")
    assert sorted(path.name for path in tmp_path.iterdir()) == [".initial-abc", "final", "initial"]
    assert (tmp_path / "final" / "model").read_text() == "again"
