"""What a report says of cells it has no value for, and the commands it gives to fill them."""

from __future__ import annotations

import shlex

import pytest
from tests.reporting.tracked import PLAIN, PNG, UNIATTN, Tracked

from uniattn_pl.commands.analyze_command import TOPICS
from uniattn_pl.config.report_checks import ANALYSES

CONFIG = """
evaluation: {tasks: [pubmedqa], probes: [retrieval], lengths: [512]}
bench: {lengths: [512]}
sweep: {points: {Post-Train: {architecture: {name: baseline}}, UniAttn: {architecture.superblock_size: 4}}}
report:
  columns: {TTFT: cost/ttft_s, PubMedQA: eval/pubmedqa/acc}
"""
WORDS = "--config table.yaml"


@pytest.fixture
def half(tracked: Tracked) -> Tracked:
    """A sweep of which one point is finished."""
    tracked.config(CONFIG)
    parent = tracked.run("sweep", "table", {})
    metrics = {"eval/medqa/acc": 0.5, "stage2/response_loss": 1.0, "eval/retrieval_passkey_512/accuracy": 1.0}
    tracked.fit("UniAttn", "uniattn", UNIATTN, 0.8, metrics, parent=parent)
    return tracked


def gap(tracked: Tracked, *words: str) -> list[str]:
    """The lines about what is missing: reasons with their commands, each before the cells it is about."""
    assert tracked.report(*words) == 0
    return [line.strip() for line in tracked.missing().splitlines() if line]


def test_every_kind_of_gap_has_the_command_that_fills_it(half: Tracked, capsys: pytest.CaptureFixture[str]) -> None:
    assert gap(half) == [
        f"- no run: `python -m uniattn_pl sweep {WORDS}`",
        "- Post-Train",
        f"- not benchmarked: `python -m uniattn_pl bench {WORDS}`",
        "- TTFT: UniAttn",
        f"- not evaluated: `python -m uniattn_pl sweep {WORDS}`",
        "- PubMedQA: UniAttn",
    ]
    printed = capsys.readouterr().out
    assert f"  not benchmarked: python -m uniattn_pl bench {WORDS}\n    TTFT: UniAttn\n" in printed
    assert half.line("UniAttn") == ["-", "-"]
    assert half.csv()["UniAttn"]["PubMedQA"] == ""


def test_a_full_table_has_nothing_missing(half: Tracked) -> None:
    assert half.report("report.columns={loss: stage2/response_loss}", "sweep.points={UniAttn: {seed: 3}}") == 0
    assert "## Missing" not in half.markdown


def test_the_commands_repeat_the_users_own_words(half: Tracked) -> None:
    override = "data.max_length=${evaluation.num_samples}"
    command = gap(half, override)[0].removeprefix("- no run: ").strip("`")
    assert shlex.split(command)[-3:] == ["--config", "table.yaml", override]
    assert command.endswith(f"'{override}'")


def test_without_a_sweep_they_are_fit_and_evaluate(half: Tracked) -> None:
    half.config(CONFIG.replace("sweep:", "#"))
    half.fit("table", "uniattn", UNIATTN, 0.8, {})
    assert f"- not evaluated: `python -m uniattn_pl evaluate {WORDS}`" in gap(half)


def test_the_held_out_loss_is_found_by_the_names_that_others_give_it(half: Tracked) -> None:
    for name, meant in (("stage2/held_out_loss", "stage2/response_loss"), ("stage2/los", "stage2/response_loss")):
        lines = gap(half, f"report.columns={{Loss: {name}}}")
        assert any(f"`{name}`." in line and f"'{meant}'" in line for line in lines), lines


def test_a_length_the_config_does_not_measure_is_added_to_the_command(half: Tracked) -> None:
    half.bench("uniattn", {512: 1.0}, plan=UNIATTN)
    lines = gap(half, "report.columns={TTFT: cost/ttft_s@8192}")
    assert shlex.split(lines[2].strip("`"))[-1] == "bench.lengths=[512, 8192]"


@pytest.mark.parametrize(
    ("metric", "reason"),
    [
        ("eval/medmcqa/acc", "the config does not ask for `eval/medmcqa/acc`: add 'medmcqa' to evaluation.tasks"),
        ("eval/held_out/perplexity", "add 'held_out' to evaluation.probes"),
        ("eval/retrieval_passkey_4096/accuracy", "add 4096 to evaluation.lengths"),
        ("eval/retrieval_passkey_512/acuracy", "Did you mean 'eval/retrieval_passkey_512/accuracy'?"),
        ("stage2/respons_loss", "no metric `stage2/respons_loss`. Did you mean 'stage2/response_loss'?"),
        ("stage2/response_loss@7", "no metric `stage2/response_loss` at step 7."),
    ],
)
def test_what_no_command_can_fill_says_what_to_change(half: Tracked, metric: str, reason: str) -> None:
    lines = gap(half, f"report.columns={{it: {metric}}}")
    assert lines[1] == "- Post-Train"  # has no run
    assert reason in lines[2]
    assert lines[3:] == ["- it: UniAttn"]


def test_figures_of_an_analysis_are_those_of_the_newest_of_this_model_and_data(half: Tracked) -> None:
    words = ["report.analysis=[similarity_matrix, importance, depth]"]
    for content, tags in ((b"old", {}), (PNG, {}), (b"else", {"model": "other"}), (b"else", {"data": "pmc.json"})):
        run = half.run("analysis", "an-analysis", {}, architecture="uniattn", **tags)
        (half.folder / "similarity_matrix.png").write_bytes(content)
        half.client.log_artifact(run, str(half.folder / "similarity_matrix.png"), "analysis")
    assert half.report(*words) == 0
    assert half.file("similarity_matrix.png") == PNG
    assert "![similarity_matrix](similarity_matrix.png)" in half.markdown
    quoted = "'report.analysis=[similarity_matrix, importance, depth]'"
    for topic in ("importance", "depth"):
        command = f"python -m uniattn_pl analyze {WORDS} {quoted} --only {topic}"
        assert f"- not analysed: `{command}`\n  - {topic}\n" in half.markdown
    assert "--only similarity" not in half.markdown
    assert not (half.folder / "reports/table/depth.png").exists()


def test_every_figure_has_a_topic_of_analyze() -> None:
    assert set(ANALYSES.values()) == set(TOPICS)


def test_the_columns_of_a_mean_are_named_not_the_mean(half: Tracked) -> None:
    lines = gap(half, "report.columns={PubMedQA: eval/pubmedqa/acc, AVG: [PubMedQA]}")
    assert lines[3:] == ["- PubMedQA: UniAttn"]


def test_a_row_is_not_benchmarked_by_the_plan_of_another(half: Tracked) -> None:
    half.bench("uniattn", {512: 1.0}, plan=PLAIN)
    assert "- TTFT: UniAttn" in gap(half)


def test_what_no_row_has_is_said_without_their_names(tracked: Tracked) -> None:
    tracked.config(CONFIG)
    parent = tracked.run("sweep", "table", {})
    tracked.fit("Post-Train", "baseline", PLAIN, 1.0, {"eval/pubmedqa/acc": 0.5}, parent=parent)
    tracked.fit("UniAttn", "uniattn", UNIATTN, 0.8, {}, parent=parent)
    lines = gap(tracked)
    assert lines[1] == "- TTFT: every row"
    assert lines[3] == "- PubMedQA: UniAttn"
