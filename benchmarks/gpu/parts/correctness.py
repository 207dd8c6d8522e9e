"""Correctness: the cases for a card of the tests that take a device, which are the same tests as on the CPU."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from benchmarks.gpu.result_file import CheckOptions, PartRows

ROOT = Path(__file__).parents[3]
# In small: parity and a resume, on the CPU.
TINY_TESTS = [
    "tests/modeling/test_parity.py::test_logits",
    "tests/training/test_deterministic_resume.py",
    "-m",
    "not gpu",
]


def measure(rows: PartRows, options: CheckOptions) -> None:
    """A row for every test that fails, as it fails, and one for every file of tests."""
    recorder = TestRecorder(rows)
    chosen = TINY_TESTS if options.tiny else ["-m", "gpu", *test_folders()]
    code = pytest.main(["-q", "-p", "no:cacheprovider", "-W", "ignore", *chosen], plugins=[recorder])
    recorder.end_file()
    if code not in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED):
        raise RuntimeError(f"pytest ended with {code!r}; what it said is above")
    if recorder.passed == 0:
        raise RuntimeError("no test passed")


def test_folders() -> list[str]:
    """Folders of tests; kernels, which are compiled first, behind the others."""
    folders = [folder for folder in (ROOT / "tests").iterdir() if any(folder.glob("test_*.py"))]
    return [str(folder) for folder in sorted(folders, key=lambda folder: (folder.name == "kernels", folder.name))]


class TestRecorder:
    """A plugin of pytest that writes rows."""

    __test__ = False

    def __init__(self, rows: PartRows) -> None:
        self.rows, self.passed = rows, 0
        self._file, self._start = "", time.perf_counter()
        self._outcomes = {"passed": 0, "failed": 0, "skipped": 0}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """A test's own outcome; of its set-up and tear-down only that they fail."""
        file = report.nodeid.partition("::")[0]
        if file != self._file:
            self.end_file()
            self._file = file
        if report.failed:
            self.rows.failures += 1
            message = str(report.longrepr)[-200:]
            self.rows.note(what="failed test", test=report.nodeid, message=message)
        if report.when == "call" or not report.passed:
            self._outcomes[report.outcome] += 1
            self.passed += report.when == "call" and report.passed

    def end_file(self) -> None:
        """Write the row of the file that is over."""
        now = time.perf_counter()
        if self._file:
            self.rows.note(what="tests", file=self._file, outcomes=self._outcomes, seconds=now - self._start)
        self._start, self._outcomes = now, dict.fromkeys(self._outcomes, 0)
