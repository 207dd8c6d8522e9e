"""One benchmark from config to table: measured, written beside the run, and logged to MLflow."""

from __future__ import annotations

import json
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from itertools import product
from pathlib import Path

from rich.console import Console

from uniattn_pl.commands.tables import print_table, table_text
from uniattn_pl.config import LoadedConfig
from uniattn_pl.files import atomic_file
from uniattn_pl.inference import report
from uniattn_pl.inference.benchmark import Measured, Setting, run_setting, subjects_of
from uniattn_pl.inference.roofline import Machine, measure_machine
from uniattn_pl.modeling.loading import load_model
from uniattn_pl.plan import LayerPlan
from uniattn_pl.tracking.environment import describe_machine
from uniattn_pl.tracking.mlflow_run import FOLDER_TAG, MLflowRun
from uniattn_pl.tracking.redaction import redact
from uniattn_pl.training.progress import ProgressReporter
from uniattn_pl.training.session import plain_config

FOLDER = "bench"


def run_benchmark(loaded: LoadedConfig, plans: Mapping[str, LayerPlan]) -> list[Measured]:
    """Measure the plans and their references at every setting of the experiment; returns all measurements.

    Writes results.json (raw samples), table.txt and figures to runs/NAME/bench and to an MLflow run per model.
    """
    config, bench, console = loaded.config, loaded.config.bench, Console()
    model = load_model(
        config.model.source,
        dtype=config.model.dtype,
        attn_implementation=bench.backends[0],
        revision=config.model.revision,
        trust_remote_code=config.model.trust_remote_code,
    )
    console.print(f"on {describe_machine()}", highlight=False)
    machine = measure_machine(model.device, model.dtype)
    console.print(
        f"peaks measured: {machine.flops_per_s / 1e9:.0f} GFLOP/s in a matrix product, "
        f"{machine.bytes_per_s / 1e9:.1f} GB/s in a copy",
        highlight=False,
    )
    measured: list[Measured] = []
    settings = [Setting(*point) for point in product(bench.lengths, bench.batch_sizes, bench.backends)]
    with ProgressReporter("bench", console) as progress:
        tokens_done, tokens = 0, sum(setting.length * setting.batch_size for setting in settings)
        for setting in settings:
            subjects = subjects_of(model, plans, setting.backend, chunk_size=bench.chunk_size)
            for subject in subjects:
                if hasattr(subject.model.config, "reuse_mode"):
                    subject.model.config.reuse_mode = config.model.reuse
                    subject.model.config.map_memory_mib = config.model.map_memory_mib
            steps = len(subjects) * (bench.rounds + 1)
            weight, done = setting.length * setting.batch_size, 0

            def step(text: str, base: int = tokens_done, weight: int = weight, steps: int = steps) -> None:
                nonlocal done
                progress.update(base + weight * done // steps, tokens, text)
                done += 1

            measured += run_setting(
                subjects,
                setting,
                new_tokens=bench.new_tokens,
                rounds=bench.rounds,
                seed=config.seed,
                progress=step,
            )
            tokens_done += weight
    _write(loaded, measured, machine, plans)
    return measured


def _write(
    loaded: LoadedConfig, measured: Sequence[Measured], machine: Machine, plans: Mapping[str, LayerPlan]
) -> None:
    """Tables on screen; tables, raw samples and figures on disk and in MLflow, one run per model."""
    folder = Path(loaded.config.trainer.default_root_dir) / FOLDER
    groups = {(entry.setting.batch_size, entry.setting.backend) for entry in measured}
    lines: list[str] = []
    figures = {}
    for batch_size, backend in sorted(groups):
        entries = [e for e in measured if (e.setting.batch_size, e.setting.backend) == (batch_size, backend)]
        title = f"Batch {batch_size}, {backend}: median (quartiles) of {loaded.config.bench.rounds} rounds"
        rows = report.rows(entries, machine)
        print_table(title, report.COLUMNS, rows)
        lines += [*table_text(title, report.COLUMNS, rows), "", *report.ratio_lines(entries), ""]
        print("\n".join(report.ratio_lines(entries)))
        suffix = f"batch{batch_size}_{backend}"
        figures[f"ttft_{suffix}"] = report.time_figure(entries, "ttft_s", "time to first token")
        figures[f"tpot_{suffix}"] = report.time_figure(entries, "tpot_s", "time per further token")
        figures[f"retain_{suffix}"] = report.retain_figure(entries)
    results = {
        "machine": {"name": describe_machine(), **asdict(machine)},
        "config": plain_config(loaded),
        "plans": {label: plan.to_dict() for label, plan in plans.items()},
        "measured": [entry.to_dict() for entry in measured],
    }
    texts = {"results.json": json.dumps(results, indent=1), "table.txt": "\n".join(lines)}
    for name, text in texts.items():
        with atomic_file(folder / name) as file:
            file.write(text.encode())
    for name, figure in figures.items():
        with atomic_file(folder / f"{name}.png") as file:
            figure.savefig(file, dpi=150, bbox_inches="tight", format="png")
    _track(loaded, measured, folder)
    print(f"\nwritten to {folder}; compare the models in MLflow:")
    print(f"  mlflow ui --backend-store-uri {redact(loaded.config.tracking.uri)}")


def _track(loaded: LoadedConfig, measured: Sequence[Measured], folder: Path) -> None:
    """One MLflow run per model, so that they can be compared; a metric's step is the length of the prompt."""
    config = loaded.config
    for label in dict.fromkeys(entry.label for entry in measured):
        tags = {"uniattn_pl.kind": "bench", "uniattn_pl.architecture": label, FOLDER_TAG: str(folder.resolve())}
        run = MLflowRun.open(
            config.tracking, name=f"{config.name}-bench-{label}", fit_id=uuid.uuid4().hex, run_id=None, tags=tags
        )
        run.log_params(loaded.flatten())
        for entry in (entry for entry in measured if entry.label == label):
            of_batch = "" if len(config.bench.batch_sizes) == 1 else f"_batch{entry.setting.batch_size}"
            of_kernel = "" if len(config.bench.backends) == 1 else f"_{entry.setting.backend}"
            values = {
                "ttft_s": entry.median("ttft_s"),
                "tpot_s": entry.median("tpot_s"),
                "kv_retain_rate": entry.kv_retain_rate,
                "kv_bytes": entry.kv_bytes,
                "tokens_per_s": entry.setting.batch_size / entry.median("tpot_s"),
            }
            if entry.peak_memory_bytes is not None:
                values["peak_memory_bytes"] = entry.peak_memory_bytes
            run.log_metrics({f"cost/{k}{of_batch}{of_kernel}": v for k, v in values.items()}, entry.setting.length)
        for file in sorted(folder.iterdir()):
            run.log_file(file, FOLDER)
        run.end("FINISHED")
