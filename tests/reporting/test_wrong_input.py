"""What cannot be reported says so in one go, with exit code 2, and leaves nothing behind."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.reporting.tracked import UNIATTN, Tracked

from uniattn_pl.cli import main


def problems(tracked: Tracked, capsys: pytest.CaptureFixture[str], *words: str, code: int = 2) -> list[str]:
    assert tracked.report(*words) == code
    captured = capsys.readouterr()
    assert "Traceback" not in captured.err
    assert not Path("reports").exists()
    return captured.err.splitlines()


def test_all_that_is_wrong_in_the_section_is_told_at_once(tracked: Tracked, capsys: pytest.CaptureFixture[str]) -> None:
    tracked.config("""
report:
  columns: {PubMedQA: eval/pubmedqa/acc, AVG: [PubMedQa, MedQA], at: cost/ttft_s@long, number: 3, none: []}
  figures:
    no_x: {y: [PubMedQA]}
    no_y: {x: drop}
    word: {x: drop, y: PubMedQA}
    typo: {x: drop, y: [PubMedQ], z: 1}
    text: drop
    importance: {x: drop, y: [PubMedQA]}
    ../up: {x: drop, y: [PubMedQA]}
  analysis: [importance, similarity_matrx]
""")
    columns, figures, analysis = problems(tracked, capsys)
    for said in (
        "table.yaml:6: report.columns:",
        "'AVG' is the mean of 'PubMedQa', which is no column. Did you mean 'PubMedQA'?",
        "'AVG' is the mean of 'MedQA', which is no column.",
        "'at' needs a metric, METRIC@STEP with a whole number, or a list of other columns; got 'cost/ttft_s@long'.",
        "'number' needs a metric",
        "'none' needs a metric",
    ):
        assert said in columns
    for said in (
        "'no_x' needs x: a column, a config key, drop or h2o",
        "'no_y' needs y: a list of columns",
        "'word' needs y: a list of columns",
        "'typo' has no 'z'. Allowed: x, y.",
        "'typo' shows 'PubMedQ' on y, which is no column. Did you mean 'PubMedQA'?",
        "'text' needs x and y",
        "'importance' is one of report.analysis too",
        "'../up' names a file",
    ):
        assert said in figures
    assert "'similarity_matrx' is no figure of analyze. Did you mean 'similarity_matrix'?" in analysis


@pytest.mark.parametrize("columns", ["{a: [a]}", "{a: [b], b: [c], c: [m, a], m: x/y}"])
def test_a_mean_of_itself_is_refused(tracked: Tracked, capsys: pytest.CaptureFixture[str], columns: str) -> None:
    tracked.config(f"report: {{columns: {columns}}}")
    (problem,) = problems(tracked, capsys)
    assert problem.endswith("report.columns: 'a' is a mean of itself.")


def test_means_of_means_are_none_of_themselves(tracked: Tracked) -> None:
    tracked.config("report: {columns: {m: stage2/response_loss, a: [m], b: [m, a], c: [a, b, a]}}")
    tracked.fit("table", "uniattn", UNIATTN, 0.8, {"stage2/response_loss": 2.0})
    assert tracked.report() == 0
    assert tracked.line("table") == ["2.000"] * 4


def test_other_commands_refuse_the_section_too(tracked: Tracked, capsys: pytest.CaptureFixture[str]) -> None:
    tracked.config("report: {columns: {a: [b]}}")
    assert main(["plan", "--config", "table.yaml"]) == 2
    assert "'a' is the mean of 'b'" in capsys.readouterr().err


def test_an_absent_store_is_not_made(tracked: Tracked, capsys: pytest.CaptureFixture[str]) -> None:
    tracked.config("sweep: {seeds: [0]}\nreport: {columns: {a: x}, figures: {f: {x: architecture.num_blocks, y: [a]}}}")
    Path("file").write_text("")
    words = ["tracking.uri=sqlite:///absent/mlflow.db"]
    x, to, store = problems(tracked, capsys, *words, "--to", "file")
    assert "no column, no config key" in x
    assert "Did you mean 'architecture.num_superblocks'?" in x
    assert "--to 'file' is a file" in to
    assert "there is no MLflow store at tracking.uri 'sqlite:///absent/mlflow.db'" in store
    assert store.endswith(f"python -m uniattn_pl sweep --config table.yaml {words[0]}")
    assert not Path("absent").exists()


def test_an_unknown_experiment_names_the_nearest(tracked: Tracked, capsys: pytest.CaptureFixture[str]) -> None:
    tracked.config("")
    (problem,) = problems(tracked, capsys, f"tracking.experiment={tracked.experiment}x")
    assert f"tracking.experiment: '{tracked.experiment}x' is not in" in problem
    assert f"Did you mean '{tracked.experiment}'?" in problem
    assert tracked.client.get_experiment_by_name(f"{tracked.experiment}x") is None


def test_a_figure_of_what_the_runs_do_not_have(tracked: Tracked, capsys: pytest.CaptureFixture[str]) -> None:
    tracked.config("report: {figures: {f: {x: KV cach, y: [Respons loss, KV cache]}}}")
    (nothing,) = problems(tracked, capsys, "--to", "before-any-run")
    assert nothing.startswith("error: no run of 'table' is in experiment")
    assert nothing.endswith("This makes its runs: python -m uniattn_pl fit --config table.yaml")
    assert not Path("before-any-run").exists()
    tracked.fit("table", "uniattn", UNIATTN, 0.8, {"stage2/response_loss": 2.0})
    x, y, there = problems(tracked, capsys)
    assert "'f' has x 'KV cach', which the runs do not have. Did you mean 'KV cache'?" in x
    assert "'f' has y 'Respons loss', which the runs do not have. Did you mean 'Response loss'?" in y
    assert there.endswith("Columns found in the runs: KV cache, Response loss.")


def test_a_server_that_does_not_answer_is_no_mistake_of_the_user(
    tracked: Tracked, capsys: pytest.CaptureFixture[str]
) -> None:
    tracked.config("")
    (problem,) = problems(tracked, capsys, "tracking.uri=http://127.0.0.1:9", code=1)
    assert "MLflow does not answer at tracking.uri 'http://127.0.0.1:9'" in problem


def test_a_config_is_needed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report"]) == 2
    assert "report needs --config FILE" in capsys.readouterr().err


def test_print_config_needs_no_store(tracked: Tracked, capsys: pytest.CaptureFixture[str]) -> None:
    tracked.config("report: {title: A title}")
    assert tracked.report("tracking.uri=sqlite:///absent/mlflow.db", "--print-config") == 0
    assert "title: A title  # table.yaml:4" in capsys.readouterr().out
    assert not Path("absent").exists()
