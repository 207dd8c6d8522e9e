"""What MLflow and a second logger have of a fit that was killed, went on, was evaluated and taught another one."""

from __future__ import annotations

import csv
import re
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlflow
import pytest
import torch
from mlflow.entities import LoggedModel, Run
from mlflow.tracking import MlflowClient
from tests.tiny_fit import BASE, ROWS

from uniattn_pl.cli import main
from uniattn_pl.config import load_config
from uniattn_pl.data.split import load_split
from uniattn_pl.inference.generation import generate
from uniattn_pl.modeling.loading.pretrained import load_folder
from uniattn_pl.resilience.checkpoints import CheckpointStore

CONFIG = (
    BASE
    + """
training:
  batch_size: 2
  micro_batch_size: 2
  checkpoint_every_steps: 1
  stage1: {max_steps: 1}
  stage2: {max_steps: 2, learning_rate: 1.0e-3}
tracking: {register_as: tiny, system_metrics: true, also: [csv]}
"""
)
FIT = ["fit", "--config", "tiny.yaml"]
PUPIL = ["name=pupil", "training.distillation.teacher=runs/tiny", "training.stage1.enabled=false", "tracking.also=[]"]
SAVE = CheckpointStore.save


@dataclass
class Tracked:
    """A working folder, and what its store has of the first fit."""

    folder: Path
    client: MlflowClient
    run: Run
    model: LoggedModel

    def history(self, key: str) -> list[tuple[int, float]]:
        points = self.client.get_metric_history(self.run.info.run_id, key)
        return [(point.step, point.value) for point in points]


def killed_in_stage_2(store: CheckpointStore, *args: object, **options: object) -> None:
    SAVE(store, *args, **options)
    if store.folder.name == "stage2":
        raise KeyboardInterrupt


@pytest.fixture(scope="module")
def tracked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tracked]:
    folder = tmp_path_factory.mktemp("work")
    (folder / "tiny.yaml").write_text(CONFIG, encoding="utf-8")
    (folder / "rows.jsonl").write_text(ROWS, encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL", "0.05")
        patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{folder}/mlruns/mlflow.db")  # what MLflow's own functions ask
        with pytest.MonkeyPatch.context() as killing:
            killing.setattr(CheckpointStore, "save", killed_in_stage_2)
            assert main(FIT) == 130
        assert main(FIT) == 0
        assert main(FIT) == 0, "which finds it finished"
        assert main(["evaluate", "--config", "tiny.yaml", "evaluation.probes=[held_out]"]) == 0
        assert main([*FIT, *PUPIL]) == 0
        client = MlflowClient(f"sqlite:///{folder}/mlruns/mlflow.db")
        runs = {run.info.run_name: run for run in client.search_runs(["1"])}
        assert runs.keys() == {"tiny", "pupil"}
        (output,) = runs["tiny"].outputs.model_outputs
        yield Tracked(folder, client, runs["tiny"], client.get_logged_model(output.model_id))


def test_its_rows_are_inputs_once_each_by_what_they_say(tracked: Tracked) -> None:
    split = load_split(load_config([Path("tiny.yaml")], []).config.data)
    contents = {"training": split.train_contents(), "validation": split.validation_contents()}
    inputs = tracked.run.inputs.dataset_inputs
    assert {one.tags[0].value: one.dataset.digest for one in inputs} == {
        context: rows.digest[:12] for context, rows in contents.items()
    }
    assert len(inputs) == 2, "the evaluation's rows are those that were held out"
    assert {one.dataset.profile for one in inputs} == {'{"num_rows": 4}', '{"num_rows": 2}'}


def test_its_page_says_what_came_out_who_ran_which_code_and_what_was_set(tracked: Tracked) -> None:
    run, note = tracked.run, tracked.run.data.tags["mlflow.note.content"]
    losses = re.findall(r"│ +(\d\.\d{4}) │", Path("runs/tiny/final_table.txt").read_text(encoding="utf-8"))
    assert len(losses) == 5
    assert all(f"| {loss} |" in note for loss in losses)
    assert 'uniattn_pl.load_model("' in note
    assert str(Path("runs/tiny/tracking/artifacts/plan.txt").read_text(encoding="utf-8")).strip() in note
    assert run.data.tags["mlflow.user"]
    assert len(run.data.tags["mlflow.source.git.commit"]) == 40
    assert run.data.params["training.stage2.max_steps"] == "2"
    assert "training.stage2.weight_decay" not in run.data.params
    assert len(run.data.params) < 40


def test_its_milestones_are_points_of_one_curve(tracked: Tracked) -> None:
    assert [step for step, _ in tracked.history("val/response_loss")] == [0, 1, 3]
    losses = {key for key in tracked.run.data.metrics if key.endswith("response_loss") and not key.startswith("eval/")}
    of_milestones = {"original/response_loss", "no_compensation/response_loss"}
    assert losses == {*of_milestones, "val/response_loss", "final/response_loss"}


def test_its_model_is_logged_once_with_what_made_it_and_its_figures(tracked: Tracked) -> None:
    model, run = tracked.model, tracked.run
    assert (model.name, model.model_type, model.source_run_id) == ("tiny", "uniattn", run.info.run_id)
    assert model.params["training.stage2.learning_rate"] == run.data.params["training.stage2.learning_rate"]
    assert not any(key.startswith(("tracking.", "trainer.")) for key in model.params)
    figures = {metric.key: metric for metric in model.metrics}
    assert figures["final/response_loss"].value == run.data.metrics["val/response_loss"]
    assert figures["cost/kv_retain_rate"].value == run.data.metrics["cost/kv_retain_rate"]
    held_out = next(one.dataset.digest for one in run.inputs.dataset_inputs if one.tags[0].value == "validation")
    assert figures["final/response_loss"].dataset_digest == figures["eval/held_out/response_loss"].dataset_digest
    assert figures["final/response_loss"].dataset_digest == held_out
    (version,) = tracked.client.search_model_versions("name = 'tiny'")[-1:]
    assert (version.version, version.run_id) == (1, run.info.run_id)
    stored = Path(model.artifact_location.removeprefix("file://"))
    assert sum(file.stat().st_size for file in stored.rglob("*")) < 20_000, "no weights"


def test_its_model_loads_by_the_code_beside_it_and_by_mlflow(tracked: Tracked) -> None:
    code = Path(tracked.client.list_logged_model_artifacts(tracked.model.model_id)[1].path)
    assert code.name == "load.py"
    names: dict[str, Any] = {}
    exec((Path(tracked.model.artifact_location.removeprefix("file://")) / code).read_text(), names)
    final, tokens = tracked.folder / "runs/tiny/final", torch.arange(12).unsqueeze(0)
    with torch.no_grad():
        assert torch.equal(names["model"].eval()(tokens).logits, load_folder(final).eval()(tokens).logits)
    assert names["tokenizer"].decode(names["tokenizer"]("Count.")["input_ids"]).endswith("Count.")
    loaded = mlflow.pyfunc.load_model("models:/tiny/1")
    prompts = ["Count to 3.", "Count."]
    expected = generate(final, prompts, max_new_tokens=3, instruction=True)
    assert loaded.predict(prompts, params={"max_new_tokens": 3, "instruction": True}) == expected


def test_its_curves_have_each_point_once_and_the_second_logger_has_the_same(tracked: Tracked) -> None:
    curves = {key: tracked.history(key) for key in tracked.run.data.metrics if not key.startswith("eval/")}
    for key, points in curves.items():
        assert [step for step, _ in points] == sorted({step for step, _ in points}), key
    assert [step for step, _ in curves["stage2/loss"]] == [2, 3]
    assert len(curves["system/cpu_utilization_percentage"]) > 1
    written = defaultdict(list)
    with (tracked.folder / "runs/tiny/loggers/csv/metrics.csv").open() as file:
        for row in csv.DictReader(file):
            for key in (key for key in row if key != "step" and row[key]):
                written[key].append((int(row["step"]), float(row[key])))
    assert written == curves


def test_tags_and_notes_lead_from_run_to_run(tracked: Tracked) -> None:
    first, pupil = ({run.info.run_name: run for run in tracked.client.search_runs(["1"])}[n] for n in ("tiny", "pupil"))
    rate = first.data.metrics["cost/kv_retain_rate"]
    assert first.data.tags["uniattn_pl.retained_cache"] == f"{rate:.1%}"
    assert "uniattn_pl.teacher" not in first.data.tags
    assert pupil.data.tags["uniattn_pl.teacher"] == "tiny"
    assert pupil.data.tags["uniattn_pl.teacher_run"] == first.info.run_id
    assert f"[tiny](#/runs/{first.info.run_id})" in pupil.data.tags["mlflow.note.content"]


def test_the_filters_that_are_documented_are_mlflows_and_find_the_runs(tracked: Tracked) -> None:
    page = (Path(__file__).parents[2] / "docs/tracking.md").read_text(encoding="utf-8")
    section = page.partition("## Finding runs")[2].partition("\n## ")[0]
    filters = re.findall(r"^\|.*\| (`+)(.*?)\1 \|$", section, re.MULTILINE)
    digest = tracked.run.inputs.dataset_inputs[0].dataset.digest
    own = {
        "smollm2-135m": "tiny-llama",
        "ID": tracked.run.info.run_id,
        "c5f4e809de83": digest,
        "< 0.8": "< 1",
        "2.9": "9",
    }
    found = []
    for _, text in filters:
        for theirs, ours in own.items():
            text = text.replace(theirs, ours)
        found.append(sorted(run.info.run_name for run in tracked.client.search_runs(["1"], text)))
    both = ["pupil", "tiny"]
    assert found == [both, both, both, [], [], ["pupil"], both], "of sweeps there are none"


def test_an_evaluation_adds_a_table_and_leaves_the_run_ended_as_it_was(tracked: Tracked) -> None:
    table = tracked.client.load_table("1", "evaluation/tables/held_out.json", [tracked.run.info.run_id])
    assert table["row"].tolist() == [0, 1]
    mean = (table["loss"] * table["tokens"]).sum() / table["tokens"].sum()
    assert mean == pytest.approx(tracked.run.data.metrics["eval/held_out/response_loss"])
    (pupil,) = (run for run in tracked.client.search_runs(["1"]) if run.info.run_name == "pupil")
    results = tracked.folder / "runs/tiny/evaluation/results.json"
    assert tracked.run.info.end_time < results.stat().st_mtime * 1000 < pupil.info.start_time
