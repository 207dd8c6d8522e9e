"""The final table says what was lost, what was saved and how to go on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from uniattn_pl.tracking.final_table import as_text, final_table
from uniattn_pl.tracking.fit_result import FitResult

RESULTS = {
    "prepare": {
        "milestones": {
            "original": {"response_loss": 3.0, "answer_accuracy": 0.5},
            "no_compensation": {"response_loss": 5.0, "answer_accuracy": 0.25},
        },
        "cache": {"length": 512, "measured": 800, "predicted": 800, "unmodified": 1000},
    },
    "initialise": {"milestones": {"initial": {"response_loss": 3.5, "answer_accuracy": 0.4}}},
    "stage1": {},
    "stage2": {
        "stage": {
            "name": "stage2",
            "steps": 12,
            "stopped_early": False,
            "tokens_per_second": 1234.5,
            "step_seconds": 2.0,
        },
        "milestones": {"stage2": {"response_loss": 2.5, "answer_accuracy": None}},
    },
}


def said(fit: FitResult) -> str:
    return as_text(final_table(fit))


def result(changed: dict[str, Any] | None = None) -> FitResult:
    folder = Path("runs/my run")
    return FitResult.from_results(
        {**RESULTS, **(changed or {})},
        run_folder=folder,
        model_folder=folder / "final",
        tracking_uri="sqlite:///mlruns/mlflow.db",
    )


def measured(spread: float = 0.0, **losses: float) -> FitResult:
    """A fit of these losses on four rows of one token, which differ by `spread` as the initialisation changes them."""
    signs = (1, -1, 1, -1)
    quality = {
        name: {
            "response_loss": loss,
            "answer_accuracy": None,
            "rows": [[loss + (sign * spread if name == "no_compensation" else 0.0), 1] for sign in signs],
        }
        for name, loss in losses.items()
    }
    return result({"prepare": {**RESULTS["prepare"], "milestones": quality}, "initialise": {}})


def test_the_initialisation_is_credited_with_its_share_of_a_gap_that_the_rows_tell() -> None:
    sure = measured(original=3.0, no_compensation=5.0, initial=3.5)
    assert sure.gap_closed == 0.75
    assert "The initialisation closed 75% of the 2.000 ± 0.000 nats that unification cost." in said(sure)
    unsure = measured(original=3.0, no_compensation=5.0, initial=3.5, spread=1.0)
    # of +1, -1, +1, -1 the standard error is 1 / sqrt(3)
    assert "closed 75% of the 2.000 ± 1.132 nats" in said(unsure)


@pytest.mark.parametrize(("gap", "spread"), [(0.005, 0.0), (1.0, 1.0), (-0.5, 0.0)])
def test_no_share_is_told_of_a_gap_that_nobody_notices_or_the_rows_do_not_tell(gap: float, spread: float) -> None:
    close = measured(original=3.0, no_compensation=3.0 + gap, initial=3.0, spread=spread)
    if gap < 0:  # what unification won, the initialisation lost
        assert "warning: the initialisation made it worse, by 0.500 ± 0.000 nats" in said(close)
    else:
        assert f"changed the loss by {gap:.3f} ± " in said(close)
        assert "no gap that 4 held-out rows tell." in said(close)
    assert close.gap_closed is None
    assert "closed" not in said(close)


def test_an_initialisation_that_harms_warns_where_the_rows_tell() -> None:
    worse = measured(original=3.0, no_compensation=5.0, initial=6.0)
    assert "warning: the initialisation made it worse, by 1.000 ± 0.000 nats of held-out loss" in said(worse)
    perhaps = measured(original=3.0, no_compensation=5.0, initial=6.0, spread=1.0)
    assert "changed that by 1.000 ± 1.132, which the rows do not tell." in said(perhaps)
    assert "warning" not in said(perhaps)


def test_a_run_of_a_former_version_kept_no_rows() -> None:
    assert result().gap_closed == 0.75
    assert "closed 75% of the 2.000 nats" in said(result())


def test_every_milestone_and_cost_is_in_the_table() -> None:
    text = as_text(final_table(result()))
    rows = [line for line in text.splitlines() if line.startswith("│")]
    assert [row.split("│")[1].strip() for row in rows[:4]] == [
        "original",
        "unified, no W_c",
        "after initialisation",
        "after stage 2",
    ]
    for part in ("2.5000", "25.0%", "800 B", "80.0%", "1,234"):
        assert part in text


def test_held_out_rows_are_answered_by_each_model_a_line_each() -> None:
    rows = [{"number": 0, "asked": f"A 40-year-old\nwoman {'x' * 90} Gout or flu?", "expected": "Flu. " * 40}]
    said = {
        "prepare": {"original": ["The\n\nanswer"]},
        "initialise": {"initial": ["..."]},
        "stage2": {"stage2": ["Flu"]},
    }
    phases: dict[str, Any] = {
        phase: {**RESULTS[phase], "texts": {"rows": rows, "said": texts}}  # type: ignore[dict-item]
        for phase, texts in said.items()
    }
    lines = as_text(final_table(result(phases))).splitlines()
    start = lines.index("  original              The answer")
    assert lines[start - 1].startswith("row 0: A 40-year-old woman xxx")
    assert lines[start - 1].endswith("xxx Gout or flu?")
    assert lines[start + 1 : start + 3] == ["  after initialisation  ...", "  after stage 2         Flu"]
    assert lines[start + 3].startswith("  (expected)            Flu. Flu. ")
    assert lines[start + 3].endswith("…")
    assert all(len(line) <= 79 for line in lines[start - 1 : start + 4])


def test_answers_to_other_rows_are_not_mixed() -> None:
    texts = [
        {"rows": [{"number": 0, "asked": asked, "expected": "x"}], "said": {name: ["y"]}}
        for asked, name in (("a", "original"), ("b", "stage2"))
    ]
    phases: dict[str, Any] = {
        phase: {**RESULTS[phase], "texts": text}  # type: ignore[dict-item]
        for phase, text in zip(("prepare", "stage2"), texts, strict=True)
    }
    assert [text.said for text in result(phases).texts] == [{"original": "y"}]


def test_it_says_which_step_the_final_model_is_of() -> None:
    assert "stage2 ends with the weights of step 12, its last." in as_text(final_table(result()))
    stage = {**RESULTS["stage2"]["stage"], "kept_step": 8, "kept_loss": 2.5}  # type: ignore[dict-item]
    best = {"stage2": {**RESULTS["stage2"], "stage": stage}}
    words = "stage2 ends with the weights of step 8 of 12, of the lowest held-out loss, 2.5000."
    assert words in as_text(final_table(result(best)))


def test_the_commands_can_be_copied() -> None:
    lines = as_text(final_table(result())).splitlines()
    assert any("-m mlflow ui --host 127.0.0.1 --backend-store-uri sqlite:///mlruns/mlflow.db" in line for line in lines)
    assert any("-m uniattn_pl generate --from 'runs/my run'" in line for line in lines)
    assert any("-m uniattn_pl export --from 'runs/my run' --to 'exported/my run'" in line for line in lines)
