"""Two fits in one run folder, and what earlier ones have left in it."""

from __future__ import annotations

import os

from tests.training.faults.conftest import AtPoint
from tests.training.faults.fits import Work, same


def test_the_second_of_two_fits_is_refused_and_the_first_ends_well(at: AtPoint, whole: Work) -> None:
    work = at("stage2 with checkpoints")
    reached, resume = work.folder / "reached", work.folder / "resume"
    os.mkfifo(reached)
    os.mkfifo(resume)
    first = work.start(faults=[[0, ["step", 2, 6], ["hold", str(reached), str(resume)]]])
    reached.read_text(encoding="utf-8")
    second = Work(work.driver, work.folder / "second")
    second.folder.mkdir()
    for name in ("tiny.yaml", "rows.jsonl", "mlruns", "runs"):
        (second.folder / name).symlink_to(work.folder / name)
    refused = second.fit()
    resume.write_text("go on", encoding="utf-8")
    assert refused.codes == [2], refused
    assert "another fit is running in runs/tiny" in refused.message()
    ended = first.wait()
    assert ended.codes == [0], ended
    same(work, whole)


def test_leftovers_of_killed_writes_are_removed(at: AtPoint, whole: Work) -> None:
    work = at("stage2 with checkpoints")
    half = work.run / "checkpoints/stage2/.step-00000003"
    half.mkdir()
    (half / "full.ckpt").write_bytes(b"half of it")
    for name in (".final-abc", ".final-abc.old", "final"):
        (work.run / name).mkdir()
        (work.run / name / "model.safetensors").write_bytes(b"half of it")
    (work.run / "manifest.json.tmp").write_text('{"phase": ', encoding="utf-8")
    ended = work.fit("training.checkpoint_every_steps=5", faults=[[0, ["step", 2, 6], ["send", "SIGKILL"]]])
    assert ended.codes == [-9], ended
    assert not half.exists()
    work.resumes()
    same(work, whole)
    assert sorted(path.name for path in work.run.iterdir() if path.name != ".lock") == sorted(
        path.name for path in whole.run.iterdir() if path.name != ".lock"
    )


def test_a_kill_between_the_files_of_a_checkpoint_and_its_name(at: AtPoint, whole: Work) -> None:
    work = at("stage2 with checkpoints")
    ended = work.fit(faults=[[0, ["renaming", "step-00000006"], ["send", "SIGKILL"]]])
    assert ended.codes == [-9], ended
    assert work.steps(2) == ["step-00000002", "step-00000004"]
    work.resumes()
    same(work, whole)


def test_a_kill_between_the_renames_that_replace_a_model_folder(at: AtPoint, whole: Work) -> None:
    work = at("stage2")
    # stage 1 runs again, because its folder is damaged, and replaces it
    (work.run / "stage1/config.json").write_text("", encoding="utf-8")
    ended = work.fit(faults=[[0, ["renamed", ".stage1-"], ["send", "SIGKILL"]]])
    assert ended.codes == [-9], ended
    assert not (work.run / "stage1").exists()
    work.resumes()
    same(work, whole)
    assert not list(work.run.glob(".stage1-*"))
