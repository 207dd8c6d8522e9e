"""What was damaged on the disk is noticed, told, and computed again."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.training.faults.conftest import AtPoint
from tests.training.faults.fits import Work, same

KILL = ["send", "SIGKILL"]


def truncate(file: Path) -> None:
    with file.open("r+b") as handle:
        handle.truncate(file.stat().st_size // 2)


def flip_a_bit(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


DAMAGE: dict[str, Callable[[Path], None]] = {
    "truncated": lambda folder: truncate(folder / "full.ckpt"),
    "a bit flipped": lambda folder: flip_a_bit(folder / "full.ckpt"),
    "file missing": lambda folder: (folder / "full.ckpt").unlink(),
    "sums missing": lambda folder: (folder / "checksums.json").unlink(),
    "sums not JSON": lambda folder: truncate(folder / "checksums.json"),
    "sums of nothing": lambda folder: (folder / "checksums.json").write_text("{}") and None,
    "sums without meaning": lambda folder: (folder / "checksums.json").write_text('[{"full.ckpt": 1}]') and None,
    "a file in its place": lambda folder: shutil.rmtree(folder) or folder.touch(),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_damaged_checkpoint_is_passed_over(at: AtPoint, kind: str) -> None:
    work = at("stage2 with checkpoints")
    newest = work.run / "checkpoints/stage2/step-00000004"
    DAMAGE[kind](newest)
    # reached only by a fit that goes on from step 2
    ended = work.fit(faults=[[0, ["step", 2, 3], KILL]])
    assert ended.codes == [-9], ended
    said = " ".join(ended.stdout[0].split())
    assert "step-00000004 is damaged" in said
    assert "trying the one before it" in said
    assert "starts over" not in said


def test_a_fit_that_passed_over_a_damaged_checkpoint_ends_the_same(at: AtPoint, whole: Work) -> None:
    work = at("stage2 with checkpoints")
    flip_a_bit(work.run / "checkpoints/stage2/step-00000004/full.ckpt")
    work.resumes()
    same(work, whole)


def test_a_stage_without_a_good_checkpoint_starts_over(at: AtPoint, whole: Work) -> None:
    work = at("stage1 with checkpoints")
    for folder in (work.run / "checkpoints/stage1").iterdir():
        flip_a_bit(folder / "full.ckpt")
    ended = work.fit()
    assert ended.codes == [0], ended
    assert "no checkpoint of this stage is left undamaged; the stage starts over." in ended.stdout[0]
    same(work, whole)


def test_a_damaged_checkpoint_does_not_push_out_a_good_one(at: AtPoint) -> None:
    work = at("stage2 with checkpoints")
    work.fit("training.checkpoint_every_steps=100", faults=[[0, ["step", 2, 5], ["send", "SIGTERM"]]])
    assert work.steps(2) == ["step-00000004", "step-00000005"]
    flip_a_bit(work.run / "checkpoints/stage2/step-00000005/full.ckpt")
    faults = [[0, ["saving_model", "final"], KILL]]
    assert work.fit("training.checkpoint_every_steps=3", faults=faults).codes == [-9]
    assert work.steps(2) == ["step-00000004", "step-00000006"]


@pytest.mark.parametrize(
    ("point", "folder", "file"),
    [
        ("stage1", "initial", "model.safetensors"),
        ("stage2", "stage1", "config.json"),
        ("stage2", "stage1", "tokenizer.json"),
    ],
)
def test_a_damaged_model_folder_is_written_again(at: AtPoint, whole: Work, point: str, folder: str, file: str) -> None:
    work = at(point)
    truncate(work.run / folder / file)
    ended = work.fit(faults=[[0, ["step", 2, 1], KILL]])
    assert ended.codes == [-9], ended
    said = " ".join(ended.stdout[0].split())
    assert f"{folder} is damaged ({file}); writing it again." in said
    assert work.weights(folder) == whole.weights(folder)


def test_a_fit_whose_model_folder_was_lost_ends_the_same(at: AtPoint, whole: Work) -> None:
    work = at("stage2")
    shutil.rmtree(work.run / "stage1")
    work.resumes()
    same(work, whole)


def test_a_bit_flipped_in_one_shard(at: AtPoint, two_ranks: dict[str, Work]) -> None:
    work, options = at("stage1"), ["training.strategy=fsdp", "training.checkpoint_format=sharded"]
    killed = work.fit(*options, ranks=2, faults=[[rank, ["step", 2, 5], KILL] for rank in (0, 1)])
    assert killed.codes == [-9, -9], killed
    shards = sorted((work.run / "checkpoints/stage2/step-00000004").rglob("*.distcp"))
    assert len(shards) == 2
    flip_a_bit(shards[1])
    ended = work.fit(*options, ranks=2, faults=[[rank, ["step", 2, 3], KILL] for rank in (0, 1)])
    assert ended.codes == [-9, -9], ended
    assert "step-00000004 is damaged" in " ".join(ended.stdout[0].split())
    work.resumes(*options, ranks=2)
    same(work, two_ranks["fsdp"])


@pytest.mark.parametrize("content", ["", '{"phase": "stage2"', '{"config": {}, "phase": "nowhere"}', "[]"])
def test_a_damaged_manifest_is_refused(at: AtPoint, content: str) -> None:
    work = at("stage2")
    (work.run / "manifest.json").write_text(content, encoding="utf-8")
    ended = work.fit()
    assert ended.codes == [2], ended
    assert "manifest.json is not a manifest this version understands" in ended.message()
