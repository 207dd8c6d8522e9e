"""The table: which runs its rows are, what is in its cells, which of them are marked, what its links lead to."""

from __future__ import annotations

import json
import re
from decimal import Decimal

import pytest
from benchmarks.results.measurement import Measurement
from tests.reporting.tracked import CLA, PLAIN, UNIATTN, Tracked

from uniattn_pl.config import load_config
from uniattn_pl.sweeps.points import load_points

TRAINING = "workflowType=machine_learning"

THREE = """
evaluation: {tasks: [pubmedqa, medqa], num_fewshot: 0}
sweep:
  points:
    Post-Train: {architecture: {name: baseline}}
    UniAttn: {architecture.superblock_size: 4}
    CLA: {architecture: {name: cla, num_superblocks: 2}}
    LLMDrop: {architecture: {name: llmdrop, num_dropped: 6}}
report:
  title: Table 1
  columns:
    TTFT (s): cost/ttft_s
    KV cache: cost/kv_retain_rate
    Loss: stage2/response_loss
    PubMedQA: eval/pubmedqa/acc
    MedQA: eval/medqa/acc
    AVG: [PubMedQA, MedQA]
"""


def quality(loss: float, pubmedqa: float, medqa: float | None = None) -> dict[str, float]:
    metrics = {"stage2/response_loss": loss, "eval/pubmedqa/acc": pubmedqa}
    metrics |= {"eval/pubmedqa/acc_low": pubmedqa - 0.1, "eval/pubmedqa/acc_high": pubmedqa + 0.1}
    return metrics if medqa is None else {**metrics, "eval/medqa/acc": medqa}


@pytest.fixture
def table(tracked: Tracked) -> Tracked:
    tracked.config(THREE)
    parent = tracked.run("sweep", "table", {}, architecture="uniattn")
    tracked.fit("Post-Train", "baseline", PLAIN, 1.0, quality(1.2, 0.754, 0.632), parent=parent)
    tracked.fit("UniAttn", "uniattn", UNIATTN, 0.8125, quality(1.3456, 0.79, 0.595), parent=parent)
    tracked.fit("CLA", "cla", CLA, 0.625, quality(1.4, 0.744, 0.628), parent=parent)
    tracked.fit("LLMDrop", "llmdrop", "plan-llmdrop", 0.8, quality(1.5, 0.75, 0.5), parent=parent)
    tracked.bench("baseline", {512: 0.1, 8192: 2.26}, plan=PLAIN)
    tracked.bench("stock", {512: 0.1, 8192: 2.2})
    tracked.bench("uniattn", {512: 0.1, 8192: 1.4812}, plan=UNIATTN)
    tracked.bench("cla", {512: 0.1, 8192: 2.2301}, plan=CLA)
    return tracked


def test_a_row_per_point_with_its_costs_its_quality_and_their_mean(
    table: Tracked, capsys: pytest.CaptureFixture[str]
) -> None:
    assert table.report() == 0
    assert table.markdown.startswith("# Table 1\n")
    assert "|  | TTFT (s) | KV cache | Loss | PubMedQA | MedQA | AVG |" in table.markdown
    assert table.line("Post-Train") == ["2.26", "100.0%", "1.200", "75.4", "63.2", "69.3"]
    assert table.line("UniAttn") == ["1.48", "81.2%", "**1.346**", "**79.0**", "<u>59.5</u>", "**69.2**"]
    assert table.line("CLA") == ["2.23", "62.5%", "<u>1.400</u>", "74.4", "**62.8**", "<u>68.6</u>"]
    assert table.line("LLMDrop") == ["-", "80.0%", "1.500", "<u>75.0</u>", "50.0", "62.5"]
    assert "The stock model, without this package: TTFT (s) 2.20." in table.markdown
    assert "Length of the prompt, in tokens: TTFT (s) 8,192." in table.markdown
    printed = capsys.readouterr().out
    assert ["UniAttn", "1.48", "81.2%", "1.346", "79.0", "59.5", "69.2"] in [
        line.split() for line in printed.split("\n")
    ]
    assert "written to reports/table" in printed
    assert f"mlflow ui --host 127.0.0.1 --backend-store-uri {table.uri}" in printed


def test_the_csv_holds_what_was_logged(table: Tracked) -> None:
    assert table.report() == 0
    row = table.csv()["UniAttn"]
    assert [row[name] for name in ("TTFT (s)", "KV cache", "Loss", "PubMedQA")] == [
        "1.4812",
        "0.8125",
        "1.3456",
        "0.79",
    ]
    assert float(row["AVG"]) == pytest.approx((0.79 + 0.595) / 2)
    assert float(row["PubMedQA low"]) == pytest.approx(0.69)
    assert float(row["PubMedQA high"]) == pytest.approx(0.89)
    assert row["architecture"] == "uniattn"
    assert table.client.get_run(row["runs"]).info.run_name == "UniAttn"
    assert table.csv()["LLMDrop"]["TTFT (s)"] == ""
    assert "MedQA low" not in row


def test_the_numbers_become_a_measurement_that_pages_are_written_from(table: Tracked) -> None:
    assert table.report() == 0
    one = Measurement.read(table.folder / "reports/table/table.json")
    assert {key: text for key, text in one["uniattn"].text.items() if key != "avg"} == {
        "row": "UniAttn",
        "ttft_s": "1.48",
        "kv_cache": "81.3 %",
        "loss": "**1.346**",
        "pubmedqa": "**79.0** [69.0, 89.0]",
        "medqa": "59.5",
    }
    assert one["llmdrop"].text["ttft_s"] == "-"
    assert one.columns[4].metric == "eval/pubmedqa/acc"
    assert one.rows["uniattn"]["loss"]["value"] == Decimal("1.3456"), "as it was logged"
    assert (one.title, one.model, one.seeds, one.lead) == ("Table 1", "tiny-llama", 1, True)
    assert one.commands == tuple(f"python -m uniattn_pl {name} --config table.yaml" for name in ("sweep", "report"))
    assert one.config["model.source"] == "tiny-llama"
    assert one.settings["cla"] == ["architecture={name: cla, num_superblocks: 2}"]
    assert not [key for key in one.config if key.startswith(("tracking", "report", "sweep"))]
    assert "a lead, not a fact" in one.source()


def test_intervals_stand_below_the_table(table: Tracked) -> None:
    assert table.report() == 0
    below = table.markdown.partition("## 95 % intervals\n\n")[2]
    assert below.startswith("|  | PubMedQA |\n")  # the one column that has some
    assert "\n| UniAttn | 79.0 [69.0, 89.0] |\n" in below


def test_names_lead_to_the_runs_of_the_local_interface(table: Tracked) -> None:
    assert table.report() == 0
    for name, row in table.csv().items():
        link = f"http://127.0.0.1:5000/#/experiments/{table.id}/runs/{row['runs']}?{TRAINING}"
        assert f"| [{name}]({link}) |" in table.markdown
    beside = re.search(
        r"side by side in MLflow: \S+/#/experiments/(\S+)/runs\?\S+&viewStateShareKey=(\S+)", table.markdown
    )
    assert beside is not None
    assert beside[1] == table.id
    view = json.loads(table.client.get_experiment(table.id).tags[f"mlflow.sharedViewState.{beside[2]}"])
    assert re.findall("[0-9a-f]{32}", view["searchFilter"]) == [
        row["runs"] for row in table.csv().values() if row["runs"]
    ]
    first = view["compareRunCharts"][0]
    assert (first["xaxis"]["key"], first["yaxis"]["key"]) == ("cost/kv_retain_rate", "final/response_loss")
    assert first["metricSectionId"] == view["compareRunSections"][0]["uuid"]


def test_metrics_are_found_under_the_names_of_former_versions(tracked: Tracked) -> None:
    tracked.config("sweep: {points: {new: {seed: 1}, former: {seed: 2, data.max_length: 9}}}\n")
    parent = tracked.run("sweep", "table", {})
    tracked.fit("new", "uniattn", UNIATTN, 0.8, {"final/response_loss": 1.5, "cost/kv_cache_bytes": 512}, parent=parent)
    tracked.fit("former", "uniattn", CLA, 0.7, {"stage2/response_loss": 2.5, "cost/kv_cache_bytes": 400}, parent=parent)
    tracked.run("bench", "b", {"cost/kv_cache_bytes": {64: 8192}}, architecture="uniattn", plan=UNIATTN)
    tracked.run("bench", "b", {"cost/kv_bytes": {64: 4096}}, architecture="cla", plan=CLA)
    columns = "{loss: final/response_loss, old: stage2/response_loss, bytes: cost/kv_cache_bytes@64, kv: cost/kv_bytes}"
    assert tracked.report(f"report.columns={columns}") == 0
    rows = tracked.csv()
    assert [rows["new"][name] for name in ("loss", "old", "bytes", "kv")] == ["1.5", "1.5", "8192.0", "8192.0"]
    assert [rows["former"][name] for name in ("loss", "old", "bytes", "kv")] == ["2.5", "2.5", "4096.0", "4096.0"]


def test_a_mean_is_missing_with_any_of_its_parts(table: Tracked) -> None:
    table.config(THREE.replace("[PubMedQA, MedQA]", "[PubMedQA, Other]\n    Other: eval/pubmedqa/f1"))
    assert table.report() == 0
    assert table.line("UniAttn")[-2:] == ["-", "-"]
    assert table.csv()["UniAttn"]["AVG"] == ""


def test_equal_values_share_a_mark_and_one_row_alone_has_none(tracked: Tracked) -> None:
    tracked.config(THREE)
    parent = tracked.run("sweep", "table", {})
    for name, accuracy in (("Post-Train", 0.9), ("UniAttn", 0.70001), ("CLA", 0.70002), ("LLMDrop", 0.6)):
        architecture = {"Post-Train": "baseline"}.get(name, name.lower())
        rate = 1.0 if name == "Post-Train" else 0.8
        metrics = {"eval/pubmedqa/acc": accuracy} | ({"eval/medqa/acc": 0.5} if name == "CLA" else {})
        tracked.fit(name, architecture, name, rate, metrics, parent=parent)
    assert tracked.report() == 0
    marked = {name: tracked.line(name)[3] for name in tracked.csv()}
    assert marked == {"Post-Train": "90.0", "UniAttn": "**70.0**", "CLA": "**70.0**", "LLMDrop": "<u>60.0</u>"}
    assert tracked.line("CLA")[4] == "50.0"


SEEDS = """
sweep: {grid: {architecture.superblock_size: [2, 4]}, seeds: [0, 1, 2]}
report: {columns: {TTFT: cost/ttft_s, KV: cost/kv_retain_rate, loss: stage2/response_loss, acc: eval/held_out/acc,
  both: [loss, acc]}}
"""


@pytest.fixture
def seeds(tracked: Tracked) -> Tracked:
    tracked.config(SEEDS)
    parent = tracked.run("sweep", "table", {})
    for size, losses in ((2, (1.0, 2.0, 4.5)), (4, (1.0, 1.0))):
        for seed, loss in enumerate(losses):
            metrics = {"stage2/response_loss": loss, "eval/held_out/acc": 0.5}
            tracked.fit(f"superblock_size={size},seed={seed}", "uniattn", UNIATTN, 0.75, metrics, parent=parent)
    tracked.bench("uniattn", {64: 0.01234}, plan=UNIATTN)
    return tracked


def test_points_that_differ_by_their_seed_are_one_row_with_mean_and_spread(seeds: Tracked) -> None:
    assert seeds.report() == 0
    assert list(seeds.csv()) == ["superblock_size=2", "superblock_size=4"]
    # mean of 1, 2, 4.5 and their sample standard deviation; the mean of two columns is taken seed by seed
    cost = ["0.0123", "75.0%"]  # one benchmark, one plan: no spread
    wide, narrow = ("superblock_size=2", "superblock_size=4")
    assert seeds.line(wide)[1:] == [*cost, "<u>2.500</u> ± 1.803", "**50.0** ± 0.0", "1.5 ± 0.9014"]
    few = [f"{text} (n=2)" for text in ("**1.000** ± 0.000", "**50.0** ± 0.0", "0.75 ± 0")]
    assert seeds.line(narrow)[1:] == [*cost, *few]
    row = seeds.csv()["superblock_size=2"]
    assert (row["n"], row["loss"], row["loss n"]) == ("3", "2.5", "3")
    assert float(row["loss sd"]) == pytest.approx(1.8027756)
    assert len(row["runs"].split()) == 3
    for seed, run in enumerate(row["runs"].split()):
        assert f"[{seed}](http://127.0.0.1:5000/#/experiments/{seeds.id}/runs/{run}?{TRAINING})" in seeds.markdown
    one = Measurement.read(seeds.folder / "reports/table/table.json")
    assert one["superblock_size_2"].text["loss"] == "2.500 ± 1.803"
    assert one.rows["superblock_size_2"]["loss"]["values"] == [1, 2, Decimal("4.5")]
    assert one["superblock_size_4"].text["loss"] == "**1.000** ± 0.000 (n=2)"
    assert (one.seeds, one.lead) == (2, False), "of the row that has fewest"
    assert (
        "- no run: `python -m uniattn_pl sweep --config table.yaml`\n  - superblock_size=4,seed=2\n" in seeds.missing()
    )


def test_the_value_at_a_step_is_that_of_the_newest_benchmark_that_has_it(table: Tracked) -> None:
    table.config(THREE.replace("cost/ttft_s", "cost/ttft_s@512"))
    table.bench("uniattn", {512: 0.0771}, plan=UNIATTN)
    table.bench("uniattn", {1024: 9.0}, plan=UNIATTN)
    table.bench("uniattn", {512: 8.0}, plan=UNIATTN, model="another-model")
    table.bench("uniattn", {512: 7.0}, plan=UNIATTN, variant="drop_2")
    assert table.report() == 0
    assert table.line("UniAttn")[0] == "0.0771"
    assert table.line("CLA")[0] == "0.100"
    assert "The stock model, without this package: TTFT (s) 0.100." in table.markdown


def test_benchmarks_at_different_lengths_are_told_apart(table: Tracked) -> None:
    table.bench("uniattn", {4096: 0.7}, plan=UNIATTN)
    assert table.report() == 0
    assert table.line("UniAttn")[0] == "0.700"
    assert "Length of the prompt, in tokens: TTFT (s) 4,096 and 8,192." in table.markdown


def test_an_unmodified_row_takes_the_benchmark_of_the_baseline_though_it_says_no_plan(tracked: Tracked) -> None:
    tracked.config(THREE)
    parent = tracked.run("sweep", "table", {})
    tracked.fit("Post-Train", "baseline", PLAIN, 1.0, {}, parent=parent)
    tracked.fit("UniAttn", "uniattn", UNIATTN, 0.8, {}, parent=parent)
    tracked.bench("baseline", {64: 3.0})
    tracked.bench("stock", {64: 2.0})
    assert tracked.report() == 0
    assert [tracked.line(name)[0] for name in ("Post-Train", "UniAttn")] == ["3.00", "-"]


def test_of_several_runs_of_a_point_the_finished_newest_below_the_newest_sweep_counts(tracked: Tracked) -> None:
    tracked.config(
        "sweep: {points: {one: {seed: 0}, two: {seed: 1, data.max_length: 64}}}\n"
        "report: {columns: {loss: stage2/response_loss}}"
    )
    old, new = (tracked.run("sweep", "table", {}) for _ in range(2))
    tracked.run("sweep", "table", {})  # has just begun, with no points yet
    other = tracked.run("sweep", "other", {})
    for parent, loss, status in (
        (old, 9.0, "FINISHED"),
        (new, 2.0, "FINISHED"),
        (new, 3.0, "FINISHED"),
        (new, 4.0, "FAILED"),
        (other, 5.0, "FINISHED"),
    ):
        tracked.fit("one", "uniattn", UNIATTN, 0.8, {"stage2/response_loss": loss}, parent=parent, status=status)
    # MLflow was down as the sweep began, for this point; another experiment of that name is no part of it
    tracked.fit("two", "uniattn", UNIATTN, 0.8, {"stage2/response_loss": 6.0}, run_folder="/x/runs/table/two")
    tracked.fit("two", "uniattn", UNIATTN, 0.8, {"stage2/response_loss": 7.0}, run_folder="/x/runs/two")
    # an earlier config of the point, run in the folder of its key
    tracked.fit("two", "uniattn", UNIATTN, 0.8, {"stage2/response_loss": 8.0}, run_folder="/x/runs/table/two.0123abcd")
    assert tracked.report() == 0
    assert [tracked.csv()[name]["loss"] for name in ("one", "two")] == ["3.0", "6.0"]
    assert f"runs/{new}?{TRAINING}\n" in tracked.markdown
    assert "report.md" in [a.path.rpartition("/")[2] for a in tracked.client.list_artifacts(new, "report")]
    description = tracked.client.get_run(new).data.tags["mlflow.note.content"]
    assert tracked.markdown.startswith(description)
    assert "| --: |" in description, "the table is what the page of the sweep's run begins with"


def test_a_sweep_that_gets_seeds_keeps_the_runs_it_had_without_them(tracked: Tracked) -> None:
    tracked.config("sweep: {points: {one: {}}, seeds: [0, 1]}\nreport: {columns: {loss: stage2/response_loss}}")
    loaded = load_config([tracked.folder / "table.yaml"])
    first, second = load_points([tracked.folder / "table.yaml"], [], loaded)
    parent = tracked.run("sweep", "table", {})
    for name, loss, key in (("one", 2.0, first.key), (second.name, 4.0, second.key), ("other", 9.0, "0123abcd")):
        metrics = {"stage2/response_loss": loss}
        tracked.fit(name, "uniattn", UNIATTN, 0.8, metrics, parent=parent, experiment=key)
    assert tracked.report() == 0
    assert tracked.line("one")[1:] == ["3.000 ± 1.414"]
    assert "## Missing" not in tracked.markdown


def test_an_unfinished_run_says_what_its_plan_costs_and_nothing_of_quality(tracked: Tracked) -> None:
    tracked.config(THREE)
    parent = tracked.run("sweep", "table", {})
    tracked.fit("UniAttn", "uniattn", UNIATTN, 0.8, quality(5.0, 0.1), parent=parent, status="RUNNING")
    tracked.bench("uniattn", {64: 3.0}, plan=UNIATTN)
    assert tracked.report() == 0
    assert tracked.line("UniAttn") == ["3.00", "80.0%", "-", "-", "-", "-"]
    assert "- run running: `python -m uniattn_pl sweep --config table.yaml`\n  - UniAttn\n" in tracked.missing()


def test_without_a_sweep_the_table_is_the_row_of_the_fit(tracked: Tracked) -> None:
    tracked.config("report: {columns: {loss: stage2/response_loss}}")
    tracked.fit("table", "uniattn", UNIATTN, 0.8, {"stage2/response_loss": 1.0})
    tracked.fit("table", "uniattn", UNIATTN, 0.8, {"stage2/response_loss": 2.0}, parent="of-a-sweep")
    assert tracked.report("--to", "elsewhere") == 0
    assert (tracked.folder / "elsewhere/table.csv").read_text().splitlines()[1].startswith("table,uniattn,1,")
    assert tracked.report() == 0
    assert tracked.line("table") == ["1.000"]


def test_by_default_the_columns_are_what_the_runs_have(table: Tracked) -> None:
    table.config(THREE.partition("report:")[0])
    assert table.report() == 0
    assert "|  | TTFT (s) | KV cache | Response loss | medqa | pubmedqa |" in table.markdown
    assert table.line("CLA") == ["2.23", "62.5%", "<u>1.400</u>", "**62.8**", "74.4"]


def test_two_reports_of_one_store_are_the_same_bytes(table: Tracked) -> None:
    figures = "{trade: {x: KV cache, y: [Loss, AVG]}, by_size: {x: architecture.superblock_size, y: [Loss]}}"
    contents = []
    for _ in range(2):
        assert table.report(f"report.figures={figures}") == 0
        contents.append({path.name: path.read_bytes() for path in (table.folder / "reports/table").iterdir()})
    assert contents[0] == contents[1]
    assert sorted(contents[0]) == [
        *("by_size.png", "by_size.svg", "report.html", "report.md", "table.csv", "table.json", "trade.png", "trade.svg")
    ]
