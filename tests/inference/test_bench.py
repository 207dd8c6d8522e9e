"""`bench` from config to tables, figures and MLflow runs, and what it refuses."""

from __future__ import annotations

import io
import json
import statistics
from collections.abc import Iterator
from contextlib import redirect_stdout
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from typing import Any

import pytest
from mlflow.entities import Run
from mlflow.tracking import MlflowClient
from PIL import Image
from tests.tiny_models import stock

from uniattn_pl.architectures import CLA, UniAttn
from uniattn_pl.cli import main
from uniattn_pl.config import load_config
from uniattn_pl.config.loaded_config import plain_config
from uniattn_pl.display.text_table import count_text
from uniattn_pl.inference import roofline, run_benchmark
from uniattn_pl.modeling.loading import pretrained
from uniattn_pl.modeling.loading.pretrained import load_shape
from uniattn_pl.plan import LayerPlan, costs
from uniattn_pl.plan.compensation_cost import CompensationCost
from uniattn_pl.resilience.manifest import Manifest
from uniattn_pl.sweeps.points import load_points
from uniattn_pl.tracking.tags import plan_digest

LENGTHS, BATCH_SIZES, ROUNDS = [16, 40], [1, 2], 2
CONFIG = f"""
name: tiny
model: {{source: tiny-llama, dtype: float32}}
architecture: {{name: uniattn, superblock_size: 3, num_superblocks: 1}}
bench: {{lengths: {LENGTHS}, batch_sizes: {BATCH_SIZES}, rounds: {ROUNDS}, new_tokens: 3, beside: [cla.yaml]}}
"""
BESIDE = "model: {source: smollm2-135m}\narchitecture: {name: cla, superblock_size: 2, num_superblocks: 2}\n"
# Share of the 8 layers' keys and values that is kept: uniattn has no keys in 2 layers, cla neither in 2 others.
RETAINED = {
    "stock": 1.0,
    "baseline": 1.0,
    "uniattn": 14 / 16,
    "cla": 12 / 16,
    "llmdrop on the same layers as uniattn": 12 / 16,
    "llmdrop on the same layers as cla": 12 / 16,
}
BENCH = ["bench", "--config", "b.yaml"]


@dataclass(frozen=True)
class Done:
    """What one benchmark left behind."""

    base: Path
    code: int
    printed: str

    @property
    def folder(self) -> Path:
        return self.base / "runs" / "tiny" / "bench"

    def results(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self.folder / "results.json").read_text())
        return found

    def measured(self) -> dict[tuple[str, int, int], dict[str, Any]]:
        """(label, length, batch size) -> entry of results.json."""
        entries = self.results()["measured"]
        found = {(e["label"], e["setting"]["length"], e["setting"]["batch_size"]): e for e in entries}
        assert len(found) == len(entries), "no subject is measured twice at a setting"
        return found

    def texts(self) -> tuple[str, str]:
        """What was printed, and the table on disk."""
        return self.printed, (self.folder / "table.txt").read_text()

    def client(self) -> MlflowClient:
        return MlflowClient(f"sqlite:///{self.base}/mlruns/mlflow.db")

    def runs(self, name: str) -> dict[str, Run]:
        """Architecture -> MLflow run of the experiment `name`."""
        client = self.client()
        (experiment,) = [e for e in client.search_experiments() if e.name == "uniattn_pl"]
        runs = [r for r in client.search_runs([experiment.experiment_id]) if r.info.run_name.startswith(f"{name}-")]
        found = {run.data.tags["uniattn_pl.architecture"]: run for run in runs}
        assert len(found) == len(runs)
        return found


def write_files(folder: Path) -> None:
    (folder / "b.yaml").write_text(CONFIG)
    (folder / "cla.yaml").write_text(BESIDE)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working folder with the experiment and the one beside it."""
    write_files(tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def small_peaks() -> Iterator[None]:
    """The machine's peaks from a small product and copy: their values do not matter here."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(roofline, "PRODUCT_SIZE", 64)
        patch.setattr(roofline, "COPY_BYTES", 2**12)
        yield


@pytest.fixture(scope="module")
def done(small_peaks: None, tmp_path_factory: pytest.TempPathFactory) -> Done:
    base, printed = tmp_path_factory.mktemp("bench"), io.StringIO()
    write_files(base)
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(printed):
        patch.chdir(base)
        code = main(BENCH)
    return Done(base, code, printed.getvalue())


def test_every_subject_is_measured_at_every_setting(done: Done) -> None:
    assert done.code == 0
    measured = done.measured()
    assert set(measured) == set(product(RETAINED, LENGTHS, BATCH_SIZES))
    for entry in measured.values():
        assert len(entry["samples"]) == ROUNDS
        assert all(sample["ttft_s"] > 0 and sample["tpot_s"] > 0 for sample in entry["samples"])


def test_cache_bytes_are_those_of_the_plans(done: Done) -> None:
    shape = load_shape("tiny-llama")
    unmodified = LayerPlan.unmodified(shape.num_layers)
    plans = {
        "stock": unmodified,
        "baseline": unmodified,
        "uniattn": UniAttn(superblock_size=3, num_superblocks=1).compile(shape),
        "cla": CLA(superblock_size=2, num_superblocks=2).compile(shape),
    }
    for label in ("uniattn", "cla"):
        dropped = unmodified.drop(plans[label].operated, compensated=False)
        plans[f"llmdrop on the same layers as {label}"] = dropped
        assert LayerPlan.from_dict(done.results()["plans"][label]) == plans[label]
    for (label, length, batch_size), entry in done.measured().items():
        size = {"batch_size": batch_size, "length": length}
        expected = costs.kv_cache_bytes(plans[label], shape, **size, bytes_per_element=4)
        assert entry["kv_bytes"] == expected
        assert [sample["kv_bytes"] for sample in entry["samples"]] == [expected] * ROUNDS
        assert entry["kv_retain_rate"] == pytest.approx(RETAINED[label])
        assert entry["prefill_flops"] == costs.prefill_flops(plans[label], shape, **size)


def ratio_text(own: dict[str, Any], other: dict[str, Any], metric: str) -> str:
    """Median and quartiles of two rounds' ratios."""
    low, high = sorted(a[metric] / b[metric] for a, b in zip(own["samples"], other["samples"], strict=True))
    step = (high - low) / 4
    return f"{(low + high) / 2:.2f} ({low + step:.2f}-{high - step:.2f})"


def test_the_ratios_are_printed_and_written(done: Done) -> None:
    measured = done.measured()
    table = (done.folder / "table.txt").read_text()
    for batch_size, (own, other) in product(BATCH_SIZES, [("uniattn", "baseline"), ("uniattn", "cla")]):
        left, right = (measured[label, 40, batch_size] for label in (own, other))
        texts = [f"{name} {ratio_text(left, right, key)}" for name, key in (("TTFT", "ttft_s"), ("TPOT", "tpot_s"))]
        line = f"{own} / {other}, 40 tokens: {', '.join(texts)}"
        assert line in done.printed.splitlines()
        assert line in table.splitlines()
        assert f"{own} / {other}, 16 tokens: " in table
    assert "cla / baseline, 40 tokens: " in table
    assert "cla / uniattn" not in table, "the same pair the other way round"
    for batch_size in BATCH_SIZES:
        title = f"Batch {batch_size}, sdpa: median (quartiles) of 2 rounds"
        assert title in done.printed
        rows = table.split(title)[1].splitlines()[2 : 2 + len(RETAINED) * len(LENGTHS)]
        for row, (length, label) in zip(rows, product(LENGTHS, RETAINED), strict=True):
            assert row.split(label)[1].split()[0] == str(length)
            assert f"{RETAINED[label]:.1%}" in row
            assert (
                ratio_text(measured[label, length, batch_size], measured["stock", length, batch_size], "ttft_s") in row
            )
        assert "\n".join(rows) in done.printed


def test_what_w_c_costs_is_printed_written_and_tracked(done: Done) -> None:
    shape = load_shape("tiny-llama")
    cost = CompensationCost.of(UniAttn(superblock_size=3, num_superblocks=1).compile(shape), shape)
    rows = [text.split("W_c beside what the removed projections saved")[1].splitlines()[2:] for text in done.texts()]
    for row, *others in rows:
        texts = [count_text(cost.parameters), count_text(cost.saved_parameters)]
        assert row.split()[:5] == ["uniattn", *" ".join(texts).split()]
        assert not any(line.split()[:1] == ["cla"] for line in others), "it has no W_c"
    metrics = done.runs("tiny")["uniattn"].data.metrics
    assert metrics["cost/compensation_parameters"] == cost.parameters
    assert metrics["cost/saved_parameters"] == cost.saved_parameters
    assert "cost/compensation_parameters" not in done.runs("tiny")["cla"].data.metrics


def test_figures_are_written_and_the_next_command_is_named(done: Done) -> None:
    figures = {f"{kind}_batch{size}_sdpa.png" for kind in ("ttft", "tpot", "retain") for size in BATCH_SIZES}
    assert {path.name for path in done.folder.iterdir()} == {
        "results.json", "table.txt", *figures, *(name.replace(".png", ".svg") for name in figures)
    }  # fmt: skip
    for name in figures:
        with Image.open(done.folder / name) as image:
            assert len(image.convert("L").getcolors() or ()) > 2, "something is drawn"
    assert "written to runs/tiny/bench" in done.printed
    assert "mlflow ui --host 127.0.0.1 --backend-store-uri sqlite:///mlruns/mlflow.db" in done.printed


def test_the_peaks_are_those_that_are_printed(done: Done) -> None:
    machine = done.results()["machine"]
    assert machine["flops_per_s"] > 0
    assert machine["bytes_per_s"] > 0
    assert f"{machine['flops_per_s'] / 1e9:.0f} GFLOP/s" in done.printed
    assert f"{machine['bytes_per_s'] / 1e9:.1f} GB/s" in done.printed


def test_every_subject_has_one_finished_mlflow_run(done: Done) -> None:
    client, runs, measured = done.client(), done.runs("tiny"), done.measured()
    assert set(runs) == set(RETAINED)
    for label, run in runs.items():
        assert run.info.status == "FINISHED"
        assert run.info.run_name == f"tiny-bench-{label}"
        assert run.data.params["bench.rounds"] == str(ROUNDS)
        assert "time to first token" in run.data.tags["mlflow.note.content"]
        for batch_size, metric in product(BATCH_SIZES, ("ttft_s", "tpot_s")):
            history = client.get_metric_history(run.info.run_id, f"cost/{metric}_batch{batch_size}")
            expected = {
                length: statistics.median(s[metric] for s in measured[label, length, batch_size]["samples"])
                for length in LENGTHS
            }
            assert {point.step: point.value for point in history} == pytest.approx(expected)
            assert len(history) == len(LENGTHS)
        of_cache = client.get_metric_history(run.info.run_id, "cost/kv_cache_bytes_batch2")
        assert {p.step: p.value for p in of_cache} == {n: measured[label, n, 2]["kv_bytes"] for n in LENGTHS}
        assert run.data.metrics["cost/kv_retain_rate_batch1"] == pytest.approx(RETAINED[label])
        kept = {Path(item.path).name for item in client.list_artifacts(run.info.run_id, "bench")}
        assert kept == {path.name for path in done.folder.iterdir()}


def test_one_batch_size_and_another_kernel(done: Done, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(done.base)
    words = ["bench.batch_sizes=[1]", "bench.lengths=[9,5,9]", "bench.rounds=1", "bench.beside=[]"]
    assert main([*BENCH, "name=eager", *words, "bench.backends=[eager]", "bench.chunk_size=4"]) == 0
    runs = done.runs("eager")
    assert set(runs) == {"stock", "stock eager", "baseline", "uniattn", "llmdrop on the same layers"}
    results = json.loads((done.base / "runs/eager/bench/results.json").read_text())
    assert {entry["setting"]["backend"] for entry in results["measured"]} == {"eager"}
    for run in runs.values():
        points = done.client().get_metric_history(run.info.run_id, "cost/ttft_s")
        assert [point.step for point in points] == [5, 9], "in order, and once"
    assert (done.base / "runs/eager/bench/ttft_batch1_eager.png").is_file()


WRONG = {
    "length of nothing": ("bench.lengths=[0]", ["bench.lengths: expected numbers of at least 1, got [0]"]),
    "no lengths": ("bench.lengths=[]", ["bench.lengths: expected numbers of at least 1, got []"]),
    "negative batch": ("bench.batch_sizes=[-1]", ["bench.batch_sizes: expected numbers of at least 1, got [-1]"]),
    "unknown kernel": ("bench.backends=[sdap]", ["bench.backends: expected some of sdpa, eager", "mean 'sdpa'?"]),
    "no kernels": ("bench.backends=[]", ["bench.backends: expected some of sdpa, eager, flex_attention, flash_"]),
    "kernel in float32": (
        "bench.backends=[flash_attention_3]",
        ["model.dtype: flash_attention_3 computes in bfloat16"],
    ),
    "no such file": ("bench.beside=[nope.yaml]", ["bench.beside: there is no file 'nope.yaml'"]),
    "near miss": ("bench.beside=[cal.yaml]", ["bench.beside: there is no file 'cal.yaml'. Did you mean 'cla.yaml'?"]),
    "no rounds": ("bench.rounds=0", ["bench.rounds: must be at least 1, got 0"]),
    "one new token": ("bench.new_tokens=1", ["bench.new_tokens: must be at least 2, got 1"]),
    "empty chunks": ("bench.chunk_size=0", ["bench.chunk_size: must be at least 1, got 0"]),
    "does not fit": ("bench.beside=[big.yaml]", ["big.yaml:1: architecture: 9 Superblocks", "the model has 8"]),
    "typo beside": ("bench.beside=[typo.yaml]", ["typo.yaml:1: unknown key 'architecure'", "mean 'architecture'?"]),
    "not searched yet": ("architecture={name: search}", ["architecture: search chooses the layers by measurement"]),
    "label taken by a reference": ("bench.beside=[stock.yaml]", ["would be measured as 'stock'", "rename it"]),
    "label taken by itself": ("bench.beside=[uniattn.yaml]", ["would be measured as 'uniattn'", "rename it"]),
    "a folder": ("bench.beside=[some]", ["bench.beside: 'some' is a folder"]),
    "not searched yet, beside": ("bench.beside=[search.yaml]", ["search.yaml:1: architecture: search chooses"]),
}
FILES = {
    "big.yaml": "architecture: {name: cla, superblock_size: 3, num_superblocks: 9}\n",
    "typo.yaml": "architecure: {name: cla}\n",
    "search.yaml": "architecture: {name: search, budget: 0.8}\n",
    "stock.yaml": "architecture: {name: llmdrop, layers: [3]}\n",
    "uniattn.yaml": "architecture: {name: llmdrop, layers: [3]}\n",
}


@pytest.fixture
def unloadable(monkeypatch: pytest.MonkeyPatch) -> None:
    """No weights can be loaded."""
    for module in (pretrained, run_benchmark):
        monkeypatch.setattr(module, "load_model", lambda *_, **__: pytest.fail("weights were loaded"))


@pytest.mark.usefixtures("unloadable")
@pytest.mark.parametrize("case", WRONG)
def test_wrong_input_is_named_before_anything_is_loaded(
    case: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    word, expected = WRONG[case]
    for name, text in FILES.items():
        (folder / name).write_text(text)
    (folder / "some").mkdir()
    assert main([*BENCH, word]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert all(part in line for part in expected), line


@pytest.mark.usefixtures("unloadable")
def test_what_kernels_cannot_do_or_are_not_here_for_is_named_first(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*BENCH, "model.reuse=materialise", "bench.backends=[flex_attention]"]) == 2
    words = "model.reuse: flex_attention takes no masks that fit a map, so none is kept; use auto, or sdpa or eager."
    assert words in capsys.readouterr().err
    half = [*BENCH, "model.dtype=bfloat16", "bench.backends=[sdpa,flash_attention_2]"]
    for words in (half, [*half, "--dry-run"]):
        assert main(words) == 2
        printed = capsys.readouterr().err
        assert "flash_attention_2 needs the package flash-attn, which is not installed" in printed
        assert "Attention kernels here: sdpa, eager, flex_attention." in printed


@pytest.mark.usefixtures("unloadable")
def test_the_store_and_the_folder_are_looked_at_first(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*BENCH, "tracking.uri=mlruns"]) == 2
    assert "tracking.uri is the folder 'mlruns'" in capsys.readouterr().err
    (folder / "runs/taken").mkdir(parents=True)
    (folder / "runs/taken/bench").write_text("")
    assert main([*BENCH, "name=taken"]) == 2
    assert "'runs/taken/bench' is a file" in capsys.readouterr().err


def test_a_kernel_the_model_lacks_is_refused_before_anything_is_measured(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    stock("gemma2").save_pretrained(folder / "gemma2")
    monkeypatch.setattr(run_benchmark, "measure_machine", lambda *_: pytest.fail("measured"))
    words = ["model.source=./gemma2", "architecture={name: llmdrop, layers: [3]}", "bench.beside=[]"]
    assert main([*BENCH, *words, "bench.backends=[eager,sdpa]"]) == 2
    assert capsys.readouterr().err.count("error: ") == 1


@pytest.mark.usefixtures("unloadable")
def test_problems_of_all_files_are_reported_at_once(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, text in FILES.items():
        (folder / name).write_text(text)
    assert main([*BENCH, "architecture.num_superblocks=7", "bench.beside=[big.yaml,typo.yaml]"]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 3
    assert [any(part in line for line in lines) for part in ("7 Superblocks", "big.yaml:1", "typo.yaml:1")] == [
        True
    ] * 3


@pytest.mark.usefixtures("unloadable")
def test_a_dry_run_says_what_it_would_measure(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*BENCH, "--dry-run"]) == 0
    printed = capsys.readouterr().out
    assert (
        "would measure stock, baseline, uniattn, cla on tiny-llama at 16, 40 tokens, batch 1, 2, sdpa, 2 rounds"
        in printed
    )
    assert {path.name for path in folder.iterdir()} == {"b.yaml", "cla.yaml"}, "nothing is written"
    with pytest.raises(pytest.fail.Exception, match="weights were loaded"):
        main(BENCH)


@pytest.mark.usefixtures("unloadable")
def test_the_baseline_needs_no_architecture_beside_it(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*BENCH, "architecture={name: baseline}", "bench.beside=[]", "--dry-run"]) == 0
    assert "would measure stock, baseline on tiny-llama" in capsys.readouterr().out


@pytest.mark.usefixtures("unloadable")
def test_a_searched_plan_is_that_of_its_fit(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = LayerPlan.unmodified(8).drop([3], compensated=False).reuse([6], 4, compensated=True)
    (folder / "search.yaml").write_text("name: found\n" + FILES["search.yaml"])
    config = plain_config(load_config([folder / "b.yaml", folder / "search.yaml"]))
    Manifest(config).commit(folder / "runs" / "found", {"plan": chosen.to_dict()})
    asked: list[dict[str, LayerPlan]] = []
    monkeypatch.setattr(run_benchmark, "run_benchmark", lambda _, plans, **__: asked.append(dict(plans)))
    assert main([*BENCH, "bench.beside=[search.yaml]"]) == 0
    (plans,) = asked
    assert plans["search"] == chosen
    assert list(plans) == ["uniattn", "search"]


@pytest.mark.usefixtures("unloadable")
def test_ranks_that_are_chosen_are_those_of_its_fit(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words, asked = ["bench.beside=[]", "calibration.rank=auto"], list[LayerPlan]()
    monkeypatch.setattr(run_benchmark, "run_benchmark", lambda _, plans, **__: asked.append(plans["uniattn"]))
    assert main([*BENCH, *words]) == 0
    open_plan = UniAttn(superblock_size=3, num_superblocks=1).compile(load_shape("tiny-llama")).limit_rank("auto")
    chosen = open_plan.choose_rank(6, 5).choose_rank(7, None)
    manifest = Manifest(plain_config(load_config([folder / "b.yaml"], words)))
    manifest.commit(folder / "runs" / "tiny", {"plan": open_plan.to_dict()})
    manifest.commit(folder / "runs" / "tiny", {"plan": chosen.to_dict()})
    assert main([*BENCH, *words]) == 0
    assert main([*BENCH, *words, "calibration.rank_keeps=0.5"]) == 0
    assert asked == [open_plan, chosen, open_plan], "ranks that keep another share are not its own"


POINTS = """
  points:
    plain: {architecture: {name: baseline}}
    one: {architecture.num_superblocks: 1, evaluation.drop: [1, 2]}
    same: {architecture.num_superblocks: 1, training.stage2.learning_rate: 1e-5}
    cla: {architecture: {name: cla, superblock_size: 3, num_superblocks: 1}}
    searched: {architecture: {name: search}}
"""


@pytest.mark.usefixtures("small_peaks")
def test_a_sweep_is_measured_with_the_plans_of_its_points(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "sweep.yaml").write_text(f"include: b.yaml\nname: swept\nsweep:{POINTS}")
    words = ["bench.beside=[]", "bench.lengths=[16]", "bench.batch_sizes=[1]", "bench.rounds=1"]
    assert main(["bench", "--config", "sweep.yaml", *words]) == 0
    assert "left out: searched, whose layers are chosen when its fit starts" in capsys.readouterr().out
    done = Done(folder, 0, "")
    runs = done.runs("swept")
    assert list(runs) and set(runs) == {"stock", "baseline", "one", "one drop_1", "one drop_2", "cla"}  # noqa: PT018
    assert runs["one drop_2"].data.metrics["cost/kv_retain_rate"] == 12 / 16
    one = UniAttn(superblock_size=3, num_superblocks=1).compile(load_shape("tiny-llama"))
    assert runs["one"].data.tags["uniattn_pl.plan"] == plan_digest(one)
    assert runs["baseline"].data.tags["uniattn_pl.plan"] == plan_digest(LayerPlan.unmodified(8))
    assert "uniattn_pl.plan" not in runs["stock"].data.tags
    dropped = runs["one drop_2"].data.tags
    assert (dropped["uniattn_pl.plan"], dropped["uniattn_pl.variant"]) == (plan_digest(one), "drop_2")
    assert "cost/ttft_s" in runs["cla"].data.metrics
    chosen = LayerPlan.unmodified(8).drop([3], compensated=False)
    searched = load_points([Path("sweep.yaml")], words, load_config(["sweep.yaml"], words))[-1]
    Manifest(asdict(searched.loaded.config)).commit(folder / "runs" / "swept" / "searched", {"plan": chosen.to_dict()})
    assert main(["bench", "--config", "sweep.yaml", *words, "--dry-run"]) == 0
    assert "one drop_2, cla, searched on" in capsys.readouterr().out
    assert main(["bench", "--config", "sweep.yaml", "--dry-run"]) == 2
    assert "bench.beside: a config with a sweep" in capsys.readouterr().err
    (folder / "sweep.yaml").write_text((folder / "sweep.yaml").read_text().replace("[1, 2]}", "[1, 3]}"))
    for command in ("bench", "sweep"):
        assert main([command, "--config", "sweep.yaml", *words, "--dry-run"]) == 2
        problem = "point 'one': evaluation.drop: 3 layers cannot be dropped; 2 layers of this model reuse a map"
        assert problem in capsys.readouterr().err
