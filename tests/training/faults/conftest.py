"""One driver, one uninterrupted fit, and working folders as they were at points of that fit."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.training.faults.fits import CONFIG, ROWS, Driver, Work

# before: the calibration's first layer is recorded, a stage's first step is taken, a stage's fifth step is taken
SNAPSHOTS = {
    "calibration": ["calibration"],
    "stage1": ["step", 1, 1],
    "stage1 with checkpoints": ["step", 1, 5],
    "stage2": ["step", 2, 1],
    "stage2 with checkpoints": ["step", 2, 5],
}
AtPoint = Callable[[str], Work]


@pytest.fixture(scope="session")
def driver() -> Iterator[Driver]:
    # threads of several processes that wait for each other are many times slower than one
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    driver = Driver([sys.executable, "-m", "tests.training.faults.driver"], environment)
    yield driver
    driver.close()


@pytest.fixture(scope="session")
def snapshots(driver: Driver, tmp_path_factory: pytest.TempPathFactory) -> tuple[Work, Path]:
    """An uninterrupted fit, and the folder of what it looked like on the way."""
    work, on_the_way = Work(driver, tmp_path_factory.mktemp("whole")), tmp_path_factory.mktemp("snapshots")
    (work.folder / "tiny.yaml").write_text(CONFIG, encoding="utf-8")
    (work.folder / "rows.jsonl").write_text(ROWS, encoding="utf-8")
    faults = [[0, point, ["snapshot", str(work.folder), str(on_the_way / name)]] for name, point in SNAPSHOTS.items()]
    ended = work.fit(faults=faults)
    assert ended.codes == [0], ended
    return work, on_the_way


@pytest.fixture(scope="session")
def whole(snapshots: tuple[Work, Path]) -> Work:
    """A fit that nothing happened to."""
    return snapshots[0]


@pytest.fixture(scope="session")
def two_ranks(snapshots: tuple[Work, Path], driver: Driver, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Work]:
    """Per strategy, the training of two ranks that nothing happened to."""
    works = {}
    for strategy in ("ddp", "fsdp"):
        works[strategy] = Work(driver, snapshots[1] / "stage1").copy(tmp_path_factory.mktemp("two") / strategy)
        works[strategy].resumes(f"training.strategy={strategy}", ranks=2)
    return works


@pytest.fixture
def at(snapshots: tuple[Work, Path], driver: Driver, tmp_path: Path) -> AtPoint:
    """A new working folder as SIGKILL would have left it at a point of `SNAPSHOTS`."""

    def copied(point: str) -> Work:
        shutil.copytree(snapshots[1] / point, tmp_path / "work")
        return Work(driver, tmp_path / "work")

    return copied
