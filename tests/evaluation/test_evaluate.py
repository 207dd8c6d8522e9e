"""`evaluate` on tiny data sets with the hub's field names: the harness's numbers, kept, logged, and what is refused."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import yaml
from mlflow.tracking import MlflowClient

from uniattn_pl.cli import main
from uniattn_pl.config import load_config
from uniattn_pl.resilience.manifest import Manifest
from uniattn_pl.training.fit import fit

lm_eval = pytest.importorskip("lm_eval", reason="the package lm_eval is not installed")

from lm_eval.api.instance import Instance  # noqa: E402
from lm_eval.models.huggingface import HFLM  # noqa: E402
from lm_eval.tasks import TaskManager  # noqa: E402

from uniattn_pl.data import InstructionDataModule  # noqa: E402
from uniattn_pl.evaluation import harness, tasks  # noqa: E402
from uniattn_pl.families.catalogue import named_model  # noqa: E402
from uniattn_pl.modeling.conversion.convert import unmodified_copy  # noqa: E402
from uniattn_pl.modeling.loading.pretrained import load_folder, load_model, load_tokenizer  # noqa: E402
from uniattn_pl.search.importance import attention_importance  # noqa: E402

CONFIG = """
name: tiny
model: {source: tiny-llama, dtype: float32}
architecture: {name: uniattn, superblock_size: 2, num_superblocks: 1}
data: {source: rows.jsonl, validation_size: 2}
calibration: {num_samples: 2, held_out_samples: 2}
training: {batch_size: 2, micro_batch_size: 2, stage1: {enabled: false}, stage2: {enabled: false}}
trainer: {accelerator: cpu, devices: 1}
evaluation: {num_samples: 2, texts: 0, data_dir: sets, batch_size: 4}
tracking: {uri: "sqlite:///mlflow.db", artifact_location: artifacts}
"""
ANSWERS = ["yes"] * 12 + ["no"] * 8 + ["maybe"] * 4
PUBMEDQA = [
    {"QUESTION": f"Is {n * 37 % 101} odd?", "CONTEXTS": [f"We saw {n * n}.", "So it is."], "final_decision": answer}
    for n, answer in enumerate(ANSWERS)
]
COMMONSENSE = [
    {
        "question": f"Where is {n * 53 % 97}?",
        "choices": {"label": list("ABCDE"), "text": ["bank", "lake", "sea", "roof", f"hill {n}"]},
        "answerKey": "ABCDE"[n * 7 % 5],
    }
    for n in range(20)
]
SOCIAL = [
    {"context": f"Kim has {n} cats.", "question": "Why?", "answerA": "one", "answerB": "two", "answerC": "six"}
    | {"label": str(n % 3 + 1)}
    for n in range(9)
]
EVALUATE = ["evaluate", "--config", "tiny.yaml"]
STOCK = [*EVALUATE, "--from", "tiny-llama"]


def jsonl(rows: list[dict[str, Any]]) -> str:
    return "\n".join(map(json.dumps, rows)) + "\n"


def write_files(folder: Path) -> None:
    (folder / "tiny.yaml").write_text(CONFIG)
    rows = [{"instruction": f"Count to {n}.", "input": "", "output": "1 2 3"} for n in range(6)]
    (folder / "rows.jsonl").write_text(jsonl(rows))
    files = {
        "pubmedqa/test": PUBMEDQA,
        "commonsense_qa/train": COMMONSENSE[:8],
        "commonsense_qa/validation": COMMONSENSE[8:],
        "social_iqa/validation": SOCIAL,
    }
    for name, content in files.items():
        path = folder / "sets" / f"{name}.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(jsonl(content))


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working folder with one store for the module, and a finished fit in runs/tiny."""
    folder = tmp_path_factory.mktemp("evaluate")
    write_files(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        fit(load_config(["tiny.yaml"]))
    return folder


@pytest.fixture
def folder(base: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(base)
    return base


@pytest.fixture
def scored(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The tasks that the harness is asked to score."""
    names: list[str] = []
    original = harness.score_task

    def score(model: Any, task: Any, *rest: Any) -> Any:
        names.append(task.name)
        if names == ["pubmedqa", "social_iqa"]:
            raise KeyboardInterrupt
        return original(model, task, *rest)

    monkeypatch.setattr(harness, "score_task", score)
    return names


def results(run: str) -> dict[str, Any]:
    found = json.loads(Path("runs", run, "evaluation", "results.json").read_text())
    return {result["name"]: result for result in found["results"]}


def by_hand(folder: Path, name: str, installed: str, splits: dict[str, Any], model: HFLM, **options: Any) -> Any:
    """The harness alone on the same files: a task file that includes the installed one, and its own hf model."""
    config = {
        "include": str(Path(lm_eval.__file__).parent / "tasks" / installed),
        "task": name,
        "dataset_path": "json",
        "dataset_name": None,
        "dataset_kwargs": {"data_files": {p.stem: str(p) for p in (folder / "sets" / name).glob("*.jsonl")}},
        **splits,
    }
    file = folder / f"{name}.yaml"
    file.write_text(yaml.safe_dump(config))
    manager = TaskManager(include_defaults=False)
    return lm_eval.simple_evaluate(model=model, tasks=[str(file)], task_manager=manager, **options)


def test_it_gives_the_harness_s_own_numbers(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["evaluation.tasks=[pubmedqa,commonsense_qa]", "evaluation.limit=9", "evaluation.num_fewshot=2"]
    (folder / "sets" / "pubmedqa" / "train.jsonl").write_text(jsonl(PUBMEDQA[::-1]))
    assert main([*STOCK, "name=numbers", *words]) == 0
    found = results("numbers")
    assert "acc" in capsys.readouterr().out
    own = HFLM(pretrained=str(named_model("tiny-llama")), dtype="float32", device="cpu", batch_size=4)
    only_test = {"training_split": "train", "validation_split": None, "fewshot_split": "train"}
    for name, file, splits in (
        ("pubmedqa", "pubmedqa/pubmedqa.yaml", only_test),
        ("commonsense_qa", "commonsense_qa/default.yaml", {"fewshot_split": "train"}),
    ):
        rows = [detail["row"] for detail in found[name]["details"]]
        assert len(rows) == 9 and rows != list(range(9))  # noqa: PT018
        expected = by_hand(folder, name, file, splits, own, samples={name: rows}, num_fewshot=2)
        assert found[name]["figures"]["acc"]["value"] == expected["results"][name]["acc,none"]
        assert [detail["acc"] for detail in found[name]["details"]] == [s["acc"] for s in expected["samples"][name]]
        figure = found[name]["figures"]["acc"]
        assert 0 <= figure["low"] <= figure["value"] <= figure["high"] <= 1
    answers = Counter(PUBMEDQA[detail["row"]]["final_decision"] for detail in found["pubmedqa"]["details"])
    assert answers == {"yes": 5, "no": 3, "maybe": 1}, "12, 8 and 4 of 24 are 4.5, 3 and 1.5 of 9"


def test_a_killed_evaluation_goes_on_with_what_is_missing(
    folder: Path, scored: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    words = [*STOCK, "name=killed", "evaluation.tasks=[pubmedqa,social_iqa]"]
    assert main(words) == 130
    assert main(words) == 0
    assert scored == ["pubmedqa", "social_iqa", "social_iqa"]
    assert "pubmedqa: measured before" in capsys.readouterr().out
    assert {name: result["rows"] for name, result in results("killed").items()} == {"pubmedqa": 24, "social_iqa": 9}
    assert main([*words, "evaluation.limit=4"]) == 0
    assert scored[3:] == ["pubmedqa", "social_iqa"], "other rows are measured"
    assert main([*words, "evaluation.limit=4", "--h2o", "0.5"]) == 0
    assert scored[5:] == ["pubmedqa", "social_iqa"], "and so is another cache"


def test_only_the_same_rows_and_the_same_model_are_not_measured_again(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(named_model("tiny-llama"), tmp_path / "model")
    text = (folder / "rows.jsonl").read_text()

    def measured(model: str = "model", rows: str = text, file: str = "some.jsonl") -> bool:
        (tmp_path / file).write_text(rows)
        words = [f"data.source={tmp_path / file}", "name=contents", "evaluation.probes=[held_out]"]
        assert main(["evaluate", "--config", "tiny.yaml", "--from", str(tmp_path / model), *words]) == 0
        return "held_out: measured before" not in capsys.readouterr().out

    assert measured()
    assert not measured()
    assert not measured(file="other.jsonl"), "the same rows under another name"
    assert measured(rows=text.replace("1 2 3", "7 8 9")), "as many others under the same name"
    shutil.copytree(tmp_path / "model", tmp_path / "copy")
    assert not measured("copy"), "the same model under another name"
    tokenizer = json.loads((tmp_path / "copy" / "tokenizer.json").read_text())
    tokenizer["pre_tokenizer"]["add_prefix_space"] = True
    (tmp_path / "copy" / "tokenizer.json").write_text(json.dumps(tokenizer))
    assert measured("copy")


def test_results_of_a_run_reach_its_mlflow_run(folder: Path) -> None:
    words = [*EVALUATE, "evaluation.tasks=[social_iqa]", "evaluation.probes=[held_out]"]
    assert main(words) == 0
    found = results("tiny")
    manifest = Manifest.read(folder / "runs" / "tiny")
    assert manifest is not None
    client, run_id = MlflowClient(f"sqlite:///{folder}/mlflow.db"), str(manifest.mlflow_run_id)
    run = client.get_run(run_id)
    assert run.info.status == "FINISHED"
    figure = found["social_iqa"]["figures"]["acc"]
    assert run.data.metrics["eval/social_iqa/acc"] == figure["value"]
    assert run.data.metrics["eval/social_iqa/acc_low"] == figure["low"]
    loss = found["held_out"]["figures"]["response_loss"]["value"]
    assert loss == pytest.approx(run.data.metrics["val/response_loss"], rel=1e-4), "as the fit itself measured"
    assert {item.path for item in client.list_artifacts(run_id, "evaluation")} >= {"evaluation/results.json"}
    assert main([*words, "evaluation.limit=3"]) == 0
    metrics = client.get_metric_history(run_id, "eval/social_iqa/acc_low")
    assert [m.value for m in metrics] == [figure["low"], results("tiny")["social_iqa"]["figures"]["acc"]["low"]]
    assert main(["fit", "--config", "tiny.yaml", "evaluation.tasks=[social_iqa]"]) == 0, "the fit is still the same"


def test_the_config_asks_for_compressed_caches_and_dropped_attention(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    size = "architecture.superblock_size=4"
    assert main(["fit", "--config", "tiny.yaml", "name=varied", size]) == 0
    variants = ["evaluation.h2o=[1.0,0.5]", "evaluation.drop=[2,1]"]
    words = [*EVALUATE, "name=varied", size, "evaluation.probes=[held_out]", *variants]
    assert main(words) == 0
    found = {name: result["figures"]["response_loss"]["value"] for name, result in results("varied").items()}
    assert list(found) == ["held_out", "held_out_h2o_1", "held_out_h2o_0.5", "held_out_drop_1", "held_out_drop_2"]
    assert found["held_out_h2o_1"] == pytest.approx(found["held_out"], abs=1e-4)
    assert len({round(loss, 4) for loss in found.values()}) == 4, "each of the others measures something else"
    manifest = Manifest.read(folder / "runs" / "varied")
    assert manifest is not None
    metrics = MlflowClient(f"sqlite:///{folder}/mlflow.db").get_run(str(manifest.mlflow_run_id)).data.metrics
    assert metrics["eval/held_out_drop_2/response_loss"] == found["held_out_drop_2"]
    assert [metrics[f"cost/kv_retain_rate{end}"] for end in ("", "_drop_1", "_drop_2")] == [13 / 16, 12 / 16, 11 / 16]

    model = load_folder(folder / "runs" / "varied" / "final")
    data = InstructionDataModule(
        load_config(["tiny.yaml"]).config.data,
        load_tokenizer("tiny-llama"),
        batch_size=1,
        micro_batch_size=1,
        eval_batch_size=1,
        seed=0,
    )
    data.setup()
    importance = attention_importance(model, data.train_batches(4, 1))
    least = min((5, 6, 7), key=lambda layer: importance[layer])
    capsys.readouterr()
    assert main([*words, "evaluation.num_samples=1"]) == 0
    assert f"without the attention of layers {least}\n" in capsys.readouterr().out, "a reuse layer, the least important"
    assert main(words) == 0
    assert "held_out_drop_2: measured before" in capsys.readouterr().out
    assert main([*words[:-1], "evaluation.drop=[4]"]) == 2
    assert "evaluation.drop: 4 layers cannot be dropped; 3 layers of this model reuse a map" in capsys.readouterr().err
    assert main([*words[:-2], "evaluation.h2o=[20]"]) == 2
    assert "evaluation.h2o: expected shares above 0 and at most 1" in capsys.readouterr().err


def test_another_model_gets_a_run_of_its_own(folder: Path) -> None:
    assert main([*STOCK, "name=other", "evaluation.tasks=[social_iqa]"]) == 0
    client = MlflowClient(f"sqlite:///{folder}/mlflow.db")
    (experiment,) = [e for e in client.search_experiments() if e.name == "uniattn_pl"]
    (run,) = client.search_runs([experiment.experiment_id], "run_name = 'other-evaluation'")
    assert run.data.tags["uniattn_pl.model"] == "tiny-llama"
    assert run.data.metrics["eval/social_iqa/acc"] == results("other")["social_iqa"]["figures"]["acc"]["value"]
    (rows,) = run.inputs.dataset_inputs
    assert (rows.dataset.name, rows.tags[0].value, rows.dataset.profile) == (
        "social_iqa",
        "evaluation",
        '{"num_rows": 9}',
    )
    assert json.loads(rows.dataset.source) == {"uri": str((folder / "sets/social_iqa").resolve())}
    assert run.outputs.model_outputs == []
    path = client.download_artifacts(run.info.run_id, "evaluation/tables/social_iqa.json", str(folder))
    table = json.loads(Path(path).read_text())
    assert table["columns"][0] == "row"
    right = table["columns"].index("acc")
    assert sum(row[right] for row in table["data"]) / 9 == run.data.metrics["eval/social_iqa/acc"]


def test_h2o_scores_as_the_harness_until_tokens_go() -> None:
    model, tokenizer = load_model("tiny-llama", dtype="float32"), load_tokenizer("tiny-llama")
    pairs = [("The heart of the matter is", " that"), ("The heart of the matter is", " this"), ("Ships", " sail")]
    requests = [Instance("loglikelihood", {}, pair, index) for index, pair in enumerate(pairs)]

    def likelihoods(rate: float | None) -> list[float]:
        wrapped = harness.harness_model(unmodified_copy(model), tokenizer, batch_size=2, retain_rate=rate)
        return [score for score, _ in wrapped.loglikelihood(requests, disable_tqdm=True)]

    expected = likelihoods(None)
    assert likelihoods(1.0) == pytest.approx(expected, abs=1e-4)
    assert likelihoods(0.3) != pytest.approx(expected, abs=1e-2)


WRONG = {
    "nothing to do": ([], "there is nothing to evaluate; set evaluation.tasks"),
    "task": (["evaluation.tasks=[pubmedqaa]"], "has no task 'pubmedqaa'. Did you mean 'pubmedqa'?"),
    "probe": (
        ["evaluation.probes=[retreival]"],
        "evaluation.probes: expected some of held_out, divergence, positions",
    ),
    "sample": (["evaluation.sample=prefix"], "evaluation.sample: must be one of stratified, shuffled"),
    "no data folder": (["evaluation.tasks=[pubmedqa]", "evaluation.data_dir=nowhere"], "there is no folder 'nowhere'"),
    "no task folder": (["evaluation.tasks=[medmcqa]"], "there is no folder 'sets/medmcqa' (there: commonsense_qa"),
    "group": (["evaluation.tasks=[mmlu]"], "'mmlu' is a group"),
    "no text": (["evaluation.probes=[positions]"], "evaluation.text: the probe 'positions' needs a text file"),
    "text": (["evaluation.probes=[positions]", "evaluation.text=rows.json"], "Did you mean 'rows.jsonl'?"),
    "too long": (
        ["evaluation.probes=[retrieval]", "evaluation.lengths=[4096]"],
        "4096 tokens are more than the 2048 positions",
    ),
    "too short": (["evaluation.probes=[retrieval]", "evaluation.lengths=[8]"], "a question takes"),
    "examples": (["evaluation.tasks=[social_iqa]", "evaluation.num_fewshot=5"], "no rows for examples but those"),
    "rate": (["evaluation.tasks=[pubmedqa]", "--h2o", "1.5"], "--h2o is a share of the prompt's tokens"),
    "model": (["evaluation.tasks=[pubmedqa]", "--from", "tiny-lama"], "Did you mean 'tiny-llama'?"),
    "folder": (["evaluation.tasks=[pubmedqa]", "--from", "runs/tiyn"], "there is no folder 'runs/tiyn'"),
}


def test_a_store_without_the_run_is_refused_before_anything_is_measured(
    folder: Path, scored: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    Manifest({}, mlflow_run_id="0" * 32, phase="done").write(folder / "runs" / "foreign")
    shutil.copytree(named_model("tiny-llama"), folder / "runs" / "foreign" / "final")
    assert main([*EVALUATE, "--from", "runs/foreign/final", "evaluation.tasks=[social_iqa]"]) == 2
    assert "Give the store the run was started with" in capsys.readouterr().err
    assert scored == []


@pytest.mark.parametrize(("words", "message"), WRONG.values(), ids=WRONG)
def test_wrong_input(folder: Path, words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    command = EVALUATE if "--from" in words else STOCK
    assert main([*command, "name=wrong", *words]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("split", "rows", "message"),
    [
        ("validation", PUBMEDQA, "scored on its split 'test', and there is no file"),
        ("test", [{"QUESTION": "?", "CONTEXTS": ["c"]}], "are not as 'pubmedqa' on the hub: in row 1, its answer is"),
        (
            "test",
            [*PUBMEDQA, {"QUESTION": "?", "final_decision": "no"}],
            "in row 25, there is no field 'CONTEXTS'; its fields are QUESTION, final_decision",
        ),
    ],
)
def test_wrong_data(
    folder: Path,
    tmp_path: Path,
    split: str,
    rows: list[dict[str, Any]],
    message: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "pubmedqa").mkdir()
    (tmp_path / "pubmedqa" / f"{split}.jsonl").write_text(jsonl(rows))
    assert main([*STOCK, "name=wrong", "evaluation.tasks=[pubmedqa]", f"evaluation.data_dir={tmp_path}"]) == 2
    assert message in capsys.readouterr().err


def test_an_unfinished_fit_is_not_taken_for_the_stock_model(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "runs" / "begun").mkdir()
    Manifest({}).write(folder / "runs" / "begun")
    assert main([*EVALUATE, "name=begun", "evaluation.tasks=[pubmedqa]"]) == 2
    assert "is not finished" in capsys.readouterr().err


def test_a_missing_harness_is_said_with_the_way_to_get_it(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(tasks, "task_manager", tasks.task_manager.__wrapped__)
    monkeypatch.setitem(__import__("sys").modules, "lm_eval.tasks", None)
    assert main([*STOCK, "evaluation.tasks=[pubmedqa]", "--dry-run"]) == 2
    assert "pip install 'uniattn-pl[evaluation]'" in capsys.readouterr().err
