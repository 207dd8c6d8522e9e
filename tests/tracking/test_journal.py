"""The journal keeps what was logged through kills and repeated steps."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from uniattn_pl.tracking.journal import Journal, entries


def opened(folder: Path, fit_id: str = "fit") -> Journal:
    return Journal(folder, fit_id=fit_id, name="a fit")


def logged(journal: Journal) -> list[tuple[str, ...]]:
    """Kind and key of everything in the journal's file."""
    found = (entry.operation for entry in entries(journal.path))
    return [(o["op"], str(o.get("key", o.get("path", o.get("status", ""))))) for o in found]


def test_a_line_torn_at_any_byte_is_cut_off_and_written_again(tmp_path: Path) -> None:
    journal = opened(tmp_path)
    journal.metrics({"loss": 1.0}, 1)
    whole = journal.size
    journal.metrics({"loss": 2.0}, 2)
    journal.close()
    content = journal.path.read_bytes()
    for size in range(whole, len(content)):
        journal.path.write_bytes(content[:size])
        resumed = opened(tmp_path)
        assert resumed.history("loss") == [(1, 1.0)]
        resumed.metrics({"loss": 2.0}, 2)
        resumed.close()
        assert resumed.history("loss") == [(1, 1.0), (2, 2.0)]


def test_what_a_power_cut_filled_with_zeros_is_cut_off(tmp_path: Path) -> None:
    journal = opened(tmp_path)
    journal.metrics({"loss": 1.0}, 1)
    journal.close()
    with journal.path.open("ab") as file:
        file.write(b"\0" * 100)
    resumed = opened(tmp_path)
    resumed.metrics({"loss": 2.0}, 2)
    assert opened(tmp_path).history("loss") == [(1, 1.0), (2, 2.0)]


def test_what_is_repeated_after_a_kill_is_journaled_once(tmp_path: Path) -> None:
    for value in (1.0, 9.0):
        journal = opened(tmp_path)
        journal.params({"seed": str(value)})
        journal.tag("kind", "fit")
        journal.artifact("plots/plan.txt", b"the plan")
        for step in (1, 2):
            journal.metrics({"loss": value}, step)
        journal.close()
    assert logged(journal) == [
        ("run", ""),
        ("param", "seed"),
        ("tag", "kind"),
        ("artifact", "plots/plan.txt"),
        ("metric", "loss"),
        ("metric", "loss"),
    ]
    assert journal.history("loss") == [(1, 1.0), (2, 1.0)]


def test_a_changed_tag_and_artifact_are_journaled_again(tmp_path: Path) -> None:
    journal = opened(tmp_path)
    for text in ("old", "new"):
        journal.tag("kind", text)
        journal.artifact("plan.txt", text.encode())
    assert logged(journal)[1:] == [("tag", "kind"), ("artifact", "plan.txt")] * 2
    assert (journal.folder / "artifacts/plan.txt").read_text() == "new"


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_metric_that_is_not_finite_is_kept(tmp_path: Path, value: float) -> None:
    opened(tmp_path).metrics({"loss": value}, 1)
    ((_, kept),) = opened(tmp_path).history("loss")
    assert repr(kept) == repr(value)


def test_the_journal_of_another_fit_is_moved_aside(tmp_path: Path) -> None:
    other = opened(tmp_path, "other")
    other.metrics({"loss": 1.0}, 5)
    other.close()
    journal = opened(tmp_path, "fit")
    journal.metrics({"loss": 2.0}, 1)
    assert journal.history("loss") == [(1, 2.0)]
    assert b'"fit_id":"other"' in (tmp_path / "tracking-other/journal.jsonl").read_bytes()
