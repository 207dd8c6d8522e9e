"""Fits on a mixture and on a stream of documents: killed and resumed they end bit for bit as those that were not."""

from __future__ import annotations

import gzip
import hashlib
import json
import math
from pathlib import Path

import pytest
from mlflow.tracking import MlflowClient
from tests.training.attempts import Attempt, run_attempts
from tests.training.killing_driver import KILL_POINTS
from tests.training.test_kill_and_resume import TIMED, history

from uniattn_pl.commands.run_config import own_config
from uniattn_pl.resilience.manifest import Manifest

CONFIG = """
name: killed
model: {source: tiny-llama, dtype: float32}
architecture: {name: uniattn, superblock_size: 3, num_superblocks: 1}
data: {source: rows.jsonl, validation_size: 4, max_length: 256}
calibration: {num_samples: 4, held_out_samples: 2}
training:
  batch_size: 4
  micro_batch_size: 2
  checkpoint_every_steps: 3
  stage1: {learning_rate: 1.0e-3, max_steps: 5}
  stage2: {learning_rate: 1.0e-3, max_steps: 5}
  early_stop: {patience: 100}
trainer: {accelerator: cpu, devices: 1}
evaluation: {num_samples: 4, texts: 0}
"""
ROWS = "\n".join(
    json.dumps({"instruction": f"Say {n}.", "input": "", "output": "1 2 3 4 5"[: n + 1]}) for n in range(14)
)
TEXTS = [f"A text of number {n}, " + "which goes on and on. " * (n % 7) for n in range(60)]
IN_STAGE_1, IN_STAGE_2 = "stage 1, step 4", "stage 2, in the middle of an accumulation"
assert {IN_STAGE_1, IN_STAGE_2} <= KILL_POINTS.keys()
MIXED = (
    "data.sources=[{source: rows.jsonl, weight: 3}, {source: ../texts/all.jsonl, weight: 1}]",
    "data.source=embedded",
)
STREAMED = (
    "data.source=../texts/*.jsonl.gz",
    "data.streaming=true",
    "data.shuffle_buffer=8",
    "data.pack_documents=true",
)
ATTEMPTS = (
    Attempt("mixed", 1, MIXED),
    Attempt("mixed killed", 1, MIXED, (0, IN_STAGE_1)),
    Attempt("mixed killed", 1, MIXED),
    Attempt("streamed", 1, STREAMED),
    Attempt("streamed killed", 1, STREAMED, (0, IN_STAGE_2)),
    Attempt("streamed killed", 1, (*STREAMED, "data.num_workers=1")),
)


@pytest.fixture(scope="module")
def fits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder in which all attempts ran; each kill ended its fit, and everything else ended well."""
    root = tmp_path_factory.mktemp("fits")
    (root / "texts").mkdir()
    for shard in range(3):
        lines = "\n".join(json.dumps({"text": text}) for text in TEXTS[shard * 20 : shard * 20 + 20])
        (root / f"texts/{shard}.jsonl.gz").write_bytes(gzip.compress(lines.encode()))
    (root / "texts/all.jsonl").write_text("\n".join(json.dumps({"text": text}) for text in TEXTS))
    run_attempts(root, ATTEMPTS, config=CONFIG, rows=ROWS)
    return root


@pytest.mark.parametrize("kind", ["mixed", "streamed"])
def test_a_killed_fit_ends_with_the_bits_and_the_history_of_one_that_was_not(fits: Path, kind: str) -> None:
    whole, killed = fits / kind, fits / f"{kind} killed"
    for folder in ("initial", "stage1", "final"):
        files = [run / "runs/killed" / folder / "model.safetensors" for run in (whole, killed)]
        assert hashlib.sha256(files[0].read_bytes()).digest() == hashlib.sha256(files[1].read_bytes()).digest(), folder
    histories = history(whole), history(killed)
    assert histories[0].keys() == histories[1].keys()
    for key in histories[0].keys() - TIMED:
        assert histories[0][key] == histories[1][key], key


def test_sources_of_a_mixture_are_counted_in_the_run(fits: Path) -> None:
    found, (run,) = history(fits / "mixed"), runs(fits / "mixed")
    assert run.data.params["data.sources.0.source"] == "rows.jsonl"
    assert run.data.params["data.sources.1.weight"] == "1.0"
    drawn = [found[f"data/source_{n}/drawn"][0][1] for n in range(2)]
    assert drawn == [53, 17]  # 3 to 1 of 70 sequences: of 12 rows, and of 58 texts
    ((step, first),), ((_, second),) = (found[f"stage1/source_{n}/taken"] for n in range(2))
    assert (step, first + second) == (5, 20)
    assert first > second
    report = json.loads(artifact(fits / "mixed", run, "data.json"))
    assert [source["source"] for source in report["sources"]] == ["rows.jsonl", "../texts/all.jsonl"]


def test_the_sources_of_a_run_are_found_from_elsewhere(fits: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(fits)
    run = fits / "mixed/runs/killed"
    manifest = Manifest.read(run)
    assert manifest is not None
    assert all(Path(entry["source"]).exists() for entry in own_config(manifest, run)["data"]["sources"])


def test_a_stream_is_counted_as_it_is_read_and_plain_text_has_its_perplexity(fits: Path) -> None:
    found, (run,) = history(fits / "streamed"), runs(fits / "streamed")
    assert found["stage2/source_0/taken"] == [(10, 20)]
    assert found["stage2/source_0/rows_read"][0][1] > 0
    for name in ("original", "val", "final"):
        losses, perplexities = found[f"{name}/response_loss"], found[f"{name}/perplexity"]
        assert [step for step, _ in losses] == [step for step, _ in perplexities]
        assert [math.exp(loss) for _, loss in losses] == pytest.approx([value for _, value in perplexities])
    assert "perplexity" in artifact(fits / "streamed", run, "final_table.txt")
    assert "perplexity" not in artifact(fits / "mixed", runs(fits / "mixed")[0], "final_table.txt")
    printed = (fits / "streamed/log-3-0.txt").read_text()
    assert "data: streamed, 8 rows shuffled together, 4 validation rows" in printed
    assert "../texts/*.jsonl.gz: 20 sequences taken" in printed


def runs(folder: Path) -> list:  # type: ignore[type-arg]
    client = MlflowClient(f"sqlite:///{folder}/mlruns/mlflow.db")
    (experiment,) = [e for e in client.search_experiments() if e.name == "uniattn_pl"]
    return list(client.search_runs([experiment.experiment_id]))


def artifact(folder: Path, run: object, name: str) -> str:
    client = MlflowClient(f"sqlite:///{folder}/mlruns/mlflow.db")
    return Path(client.download_artifacts(run.info.run_id, name, str(folder))).read_text()  # type: ignore[attr-defined]
