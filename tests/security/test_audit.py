"""`make audit` passes only when every pinned package has been looked up and none is known to be vulnerable."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
NOTHING_AUDITED = "nothing was audited"


def audit(folder: Path, *, advisories: str | None, passes: bool = True) -> tuple[int, str, str]:
    """Exit code, output and what a stand-in for pip-audit was called with; `advisories` is what the service answers."""
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, folder)
    programs = {
        "python": f'exec {sys.executable} "$@"',
        "pip-audit": f'echo "$@" > called; exit {0 if passes else 1}',
    }
    (folder / ".venv" / "bin").mkdir(parents=True)
    for name, body in programs.items():
        (folder / ".venv" / "bin" / name).write_text(f"#!/bin/sh\n{body}\n")
        (folder / ".venv" / "bin" / name).chmod(0o755)
    (folder / ".venv" / ".ready").touch()
    service = folder / "service.json"
    if advisories is not None:
        service.write_text(advisories)
    command = ["make", "audit", f"ADVISORIES={service.as_uri()}"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    called = folder / "called"
    return done.returncode, done.stdout + done.stderr, called.read_text() if called.exists() else ""


@pytest.mark.parametrize("advisories", [None, "not found", '{"vulnerabilities": []}', "{}"])
def test_without_an_advisory_service_it_says_so_and_fails(tmp_path: Path, advisories: str | None) -> None:
    code, printed, called = audit(tmp_path, advisories=advisories)
    assert code != 0
    assert NOTHING_AUDITED in printed
    assert not called


@pytest.mark.parametrize("passes", [True, False])
def test_with_one_it_is_what_pip_audit_says_of_every_pin(tmp_path: Path, passes: bool) -> None:
    code, printed, called = audit(tmp_path, advisories='{"vulnerabilities": [{"id": "x"}]}', passes=passes)
    assert (code == 0) is passes
    assert NOTHING_AUDITED not in printed
    assert "-r constraints.txt" in called
    assert "--strict" in called  # else packages that cannot be looked up count as passed


def test_the_audit_is_a_tool_of_the_development_environment() -> None:
    assert '"pip-audit' in (ROOT / "pyproject.toml").read_text()
    assert "\npip_audit==" in (ROOT / "constraints.txt").read_text()
