"""Rows of a model measured again: with a compressed cache, with attention dropped."""

from __future__ import annotations

import pytest
from tests.reporting.tracked import PLAIN, UNIATTN, Tracked

CONFIG = """
evaluation: {tasks: [pubmedqa]}
sweep:
  points:
    Post-Train: {architecture: {name: baseline}, evaluation.h2o: [0.8]}
    UniAttn: {architecture.superblock_size: 4, evaluation.h2o: [0.8, 0.6], evaluation.drop: [4, 2]}
report:
  columns:
    TTFT (s): cost/ttft_s
    TPOT (s): cost/tpot_s
    KV cache: cost/kv_retain_rate
    PubMedQA: eval/pubmedqa/acc
    Loss: stage2/response_loss
"""


@pytest.fixture
def variants(tracked: Tracked) -> Tracked:
    tracked.config(CONFIG)
    parent = tracked.run("sweep", "table", {})
    tracked.fit("Post-Train", "baseline", PLAIN, 1.0, {"eval/pubmedqa/acc": 0.9}, parent=parent)
    metrics = {
        "eval/pubmedqa/acc": 0.79,
        "eval/pubmedqa_h2o_0.8/acc": 0.75,
        "eval/pubmedqa_h2o_0.8/acc_low": 0.7,
        "eval/pubmedqa_h2o_0.8/acc_high": 0.8,
        "eval/pubmedqa_drop_2/acc": 0.6,
        "cost/kv_retain_rate_drop_2": 0.7,
        "stage2/response_loss": 1.0,
    }
    tracked.fit("UniAttn", "uniattn", UNIATTN, 0.8, metrics, parent=parent)
    for architecture, plan, seconds, tags in (
        ("baseline", PLAIN, 2.0, {}),
        ("uniattn", UNIATTN, 1.0, {}),
        ("uniattn", UNIATTN, 0.5, {"variant": "drop_2"}),
    ):
        values = {"cost/ttft_s": {4096: seconds}, "cost/tpot_s": {4096: seconds / 100}}
        tracked.run("bench", "bench", values, architecture=architecture, plan=plan, **tags)
    return tracked


def test_each_row_is_followed_by_its_variants_with_their_own_metrics(variants: Tracked) -> None:
    assert variants.report() == 0
    assert list(variants.csv()) == [
        "Post-Train",
        "Post-Train + H2O, 20 % compressed",
        "UniAttn",
        "UniAttn + H2O, 20 % compressed",
        "UniAttn + H2O, 40 % compressed",
        "UniAttn, 2 dropped",
        "UniAttn, 4 dropped",
    ]
    assert variants.line("UniAttn") == ["1.00", "0.0100", "80.0%", "**79.0**", "1.000"]
    # as long a prefill, that share of the cache; nobody has measured the time of further tokens
    assert variants.line("UniAttn + H2O, 20 % compressed") == ["1.00", "-", "64.0%", "<u>75.0</u>", "-"]
    assert variants.line("UniAttn + H2O, 40 % compressed") == ["1.00", "-", "48.0%", "-", "-"]
    assert variants.line("UniAttn, 2 dropped") == ["0.500", "0.00500", "70.0%", "60.0", "-"]
    assert variants.line("UniAttn, 4 dropped") == ["-", "-", "-", "-", "-"]
    assert variants.line("Post-Train + H2O, 20 % compressed")[:3] == ["2.00", "-", "80.0%"]
    assert "| UniAttn + H2O, 20 % compressed | 75.0 [70.0, 80.0] |" in variants.markdown


def test_what_variants_lack_is_told(variants: Tracked) -> None:
    assert variants.report() == 0
    command = "`python -m uniattn_pl {} --config table.yaml`"
    compressed = [
        f"{name} + H2O, {rate} % compressed" for name, rate in (("Post-Train", 20), ("UniAttn", 20), ("UniAttn", 40))
    ]
    dropped = ["UniAttn, 2 dropped", "UniAttn, 4 dropped"]
    assert [line.strip() for line in variants.missing().splitlines() if line] == [
        f"- not benchmarked: {command.format('bench')}",
        "- TTFT (s): UniAttn, 4 dropped",
        "- TPOT (s): UniAttn, 4 dropped",
        "- it is not measured of a compressed cache or of dropped layers",
        f"- TPOT (s): {'; '.join(compressed)}",
        f"- Loss: {'; '.join([*compressed, *dropped])}",
        f"- not evaluated: {command.format('sweep')}",
        "- KV cache: UniAttn, 4 dropped",
        f"- PubMedQA: {compressed[0]}; {compressed[2]}; UniAttn, 4 dropped",
        "- the runs have no metric `stage2/response_loss`.",
        "- Loss: Post-Train",
    ]


def test_a_row_does_not_take_the_benchmark_of_its_variant(variants: Tracked) -> None:
    variants.run("bench", "b", {"cost/ttft_s": {4096: 0.3}}, architecture="uniattn", plan=UNIATTN, variant="drop_4")
    assert variants.report() == 0
    assert variants.line("UniAttn")[0] == "1.00"
    assert variants.line("UniAttn, 4 dropped")[0] == "0.300"
