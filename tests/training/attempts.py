"""Fits of several ranks in processes of their own, some of which kill themselves: what tests of ranks share."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.driver_environment import driver_environment


@dataclass(frozen=True)
class Attempt:
    """One start of a fit: its name, ranks, settings, and on which rank it kills itself where."""

    name: str
    ranks: int
    settings: tuple[str, ...] = ()
    kill: tuple[int, str] | None = None


def run_attempts(
    root: Path, attempts: Sequence[Attempt], *, config: str, rows: str, environment: Mapping[str, str] | None = None
) -> None:
    """Run all attempts in folders of `root` of their names; each kill ends every rank, all else must end well."""
    jobs = []
    for number, attempt in enumerate(attempts):
        folder = root / attempt.name
        folder.mkdir(exist_ok=True)
        (folder / "killed.yaml").write_text(config, encoding="utf-8")
        (folder / "rows.jsonl").write_text(rows, encoding="utf-8")
        arguments = ["fit", "--config", "killed.yaml", *attempt.settings]
        log = str(folder / f"log-{number}")
        jobs.append({**vars(attempt), "folder": str(folder), "arguments": arguments, "log": log})
    driver = [sys.executable, str(Path(__file__).with_name("ranks_driver.py")), json.dumps(jobs)]
    done = subprocess.run(driver, env=driver_environment(environment), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for attempt, job, line in zip(attempts, jobs, done.stdout.splitlines(), strict=True):
        codes = json.loads(line)
        if attempt.kill is None:
            assert codes == [0] * attempt.ranks, (attempt, Path(f"{job['log']}-0.txt").read_text())
        else:
            # the one that was killed, and the others, which say why they cannot go on
            expected = [-9 if rank == attempt.kill[0] else 1 for rank in range(attempt.ranks)]
            assert codes == expected, attempt
