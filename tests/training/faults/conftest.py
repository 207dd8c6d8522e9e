"""One driver, one uninterrupted fit, and working folders as they were at points of that fit."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tests.driver_environment import driver_environment
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
def driver(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Driver]:
    # threads of several processes that wait for each other are many times slower than one
    environment = driver_environment()
    namespace = _mount_namespace()
    if namespace:
        environment["PRIVATE_MOUNTS"] = "yes"
    command = [*namespace, sys.executable, "-m", "tests.training.faults.driver", str(tmp_path_factory.mktemp("disk"))]
    driver = Driver(command, environment)
    yield driver
    driver.close()


def _mount_namespace() -> list[str]:
    """The command that starts another one where it may mount disks of its own; empty when none works."""
    for options in (["--mount"], ["--user", "--map-root-user", "--mount"]):
        command = ["unshare", *options]
        if shutil.which("unshare") and subprocess.run([*command, "true"], capture_output=True).returncode == 0:
            return command
    return []


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
def two_ranks(
    snapshots: tuple[Work, Path], driver: Driver, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Work]:
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


@pytest.fixture
def on_small_disk(at: AtPoint, driver: Driver) -> Iterator[AtPoint]:
    """As `at`, with the run folder on a disk of a few MiB."""
    if driver.small_disk is None:
        pytest.skip("neither root nor a user namespace may mount a small disk here")
    disk = Path(driver.small_disk)

    def copied(point: str) -> Work:
        work = at(point)
        shutil.copytree(work.folder / "runs", driver.seen(disk), dirs_exist_ok=True)
        shutil.rmtree(work.folder / "runs")
        (work.folder / "runs").symlink_to(disk)
        return Work(driver, work.folder, driver.seen(disk / "tiny"))

    yield copied
    for path in driver.seen(disk).iterdir():
        shutil.rmtree(path) if path.is_dir() else path.unlink()
