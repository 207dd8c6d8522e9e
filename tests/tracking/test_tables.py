"""The final table says what was lost, what was saved and how to go on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

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


def result(changed: dict[str, Any] | None = None) -> FitResult:
    folder = Path("runs/my run")
    return FitResult.from_results(
        {**RESULTS, **(changed or {})},
        run_folder=folder,
        model_folder=folder / "final",
        tracking_uri="sqlite:///mlruns/mlflow.db",
    )


def test_the_initialisation_is_credited_with_its_share_of_the_gap() -> None:
    assert result().gap_closed == 0.75
    assert "closed 75%" in as_text(final_table(result()))


def test_an_initialisation_that_harms_is_said_to() -> None:
    harmful = {"initialise": {"milestones": {"initial": {"response_loss": 6.0, "answer_accuracy": 0.4}}}}
    assert "widened the loss that unification opened by 50%" in as_text(final_table(result(harmful)))


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
