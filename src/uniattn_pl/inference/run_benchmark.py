"""One benchmark from config to table: measured, written beside the run, and logged to MLflow."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from itertools import product
from pathlib import Path
from types import MappingProxyType
from typing import Any

from rich.console import Console
from transformers import PreTrainedModel

from uniattn_pl.config import LoadedConfig
from uniattn_pl.config.loaded_config import plain_config
from uniattn_pl.display.figure_style import images
from uniattn_pl.display.progress import ProgressReporter
from uniattn_pl.display.quiet_libraries import quiet_libraries
from uniattn_pl.display.text_table import print_table, print_text, table_text
from uniattn_pl.display.text_width import output_width
from uniattn_pl.errors import UserError
from uniattn_pl.families.model_shape import shape_of, stock_plan
from uniattn_pl.files import atomic_folder
from uniattn_pl.inference import bench_report
from uniattn_pl.inference.backends import measured_backends
from uniattn_pl.inference.benchmark import (
    REFERENCE_BACKEND,
    Measured,
    Setting,
    run_setting,
    subjects_of,
)
from uniattn_pl.inference.compensation_table import print_compensation
from uniattn_pl.inference.compiled_decoding import check_compilable
from uniattn_pl.inference.device import trainer_device
from uniattn_pl.inference.roofline import Machine, measure_machine
from uniattn_pl.inference.timing import TimedModel
from uniattn_pl.inference.tune_kernels import check_tunable, tune_kernels
from uniattn_pl.kernels.stock import EAGER
from uniattn_pl.modeling.loading.pretrained import load_model
from uniattn_pl.plan import LayerPlan, ModelShape
from uniattn_pl.plan.compensation_cost import CompensationCost
from uniattn_pl.plan.mechanism import mechanism_of
from uniattn_pl.printed_commands import mlflow_ui
from uniattn_pl.tracking import tags
from uniattn_pl.tracking.environment import describe_machine
from uniattn_pl.tracking.mlflow_store import check_experiment
from uniattn_pl.tracking.one_off_run import one_off_run
from uniattn_pl.tracking.run_above import parent_tag
from uniattn_pl.tracking.run_params import set_params

FOLDER = "bench"


def run_benchmark(
    loaded: LoadedConfig,
    plans: Mapping[str, LayerPlan],
    *,
    variants: Mapping[str, tuple[LayerPlan, str]] = MappingProxyType({}),
    bounds: bool = True,
) -> list[Measured]:
    """Measure the plans and their references at every setting of the experiment; returns all measurements.

    Writes results.json (raw samples), table.txt and figures to runs/NAME/bench and to an MLflow run per model.

    Args:
        plans: label -> plan.
        variants: label of a plan that goes beyond a fit's -> the fit's plan, and what the variant is called.
        bounds: measure the same layers without attention, too.

    Raises:
        UserError: the tracking store or the folder cannot be written to, the model lacks a kernel or cannot be
            compiled, or there is no card to tune kernels on.
    """
    config, bench, console = loaded.config, loaded.config.bench, Console()
    quiet_libraries()
    check_experiment(config.tracking)
    folder = Path(config.trainer.default_root_dir) / FOLDER
    if folder.is_file():
        raise UserError(f"'{folder}' is a file, where the folder of results is to be.")
    if bench.tune_kernels:
        check_tunable(trainer_device(config))
    model = _load(loaded)
    backends = measured_backends(model, bench.backends)
    if bench.compile:
        check_compilable(model)
    if bench.tune_kernels:
        tune_kernels(model, bench.lengths, rounds=bench.rounds, console=console)
    machine = measure_machine(model.device, model.dtype)
    console.print(
        f"on {describe_machine()}\npeaks measured: {machine.flops_per_s / 1e9:.0f} GFLOP/s in a matrix product, "
        f"{machine.bytes_per_s / 1e9:.1f} GB/s in a copy",
        highlight=False,
        soft_wrap=True,
    )
    # Ascending: figures join the points in order, and MLflow takes steps that go forward only.
    grid = product(sorted(set(bench.lengths)), sorted(set(bench.batch_sizes)), backends)
    settings = [Setting(*point) for point in grid]
    measured: list[Measured] = []
    with ProgressReporter("bench", console) as progress:
        token_progress = _TokenProgress(sum(setting.length * setting.batch_size for setting in settings), progress)
        for setting in settings:
            subjects = subjects_of(model, plans, setting.backend, chunk_size=bench.chunk_size, bounds=bounds)
            subjects = [replace(subject, compiled=bench.compile) for subject in subjects]
            _configure(subjects, loaded)
            token_progress.begin(setting.length * setting.batch_size, len(subjects) * (bench.rounds + 1))
            options: dict[str, Any] = {"new_tokens": bench.new_tokens, "rounds": bench.rounds, "seed": config.seed}
            measured += run_setting(subjects, setting, progress=token_progress.step, **options)
    shape = shape_of(model.config)
    _write(loaded, measured, machine, plans, shape, folder)
    costs = {label: CompensationCost.of(plan, shape) for label, plan in plans.items() if plan.compensated}
    _track(loaded, measured, _plan_tags(plans, variants, model), costs, folder)
    print(f"\nwritten to {folder}; compare the models in MLflow:")
    print(f"  {mlflow_ui(config.tracking.uri)}")
    return measured


def _load(loaded: LoadedConfig) -> PreTrainedModel:
    """The original model, on the device of the experiment's trainer."""
    config = loaded.config.model
    kernel = REFERENCE_BACKEND if REFERENCE_BACKEND in loaded.config.bench.backends else EAGER
    model = load_model(
        config.source,
        dtype=config.dtype,
        attn_implementation=kernel,
        revision=config.revision,
        trust_remote_code=config.trust_remote_code,
    )
    return model.to(trainer_device(loaded.config))  # type: ignore[arg-type]


def _configure(subjects: Sequence[TimedModel], loaded: LoadedConfig) -> None:
    for subject in subjects:
        if hasattr(subject.model.config, "reuse_mode"):
            subject.model.config.reuse_mode = loaded.config.model.reuse
            subject.model.config.map_memory_mib = loaded.config.model.map_memory_mib


class _TokenProgress:
    """Progress in tokens: settings differ in length far more than models do."""

    def __init__(self, total: int, progress: ProgressReporter) -> None:
        self.total, self.progress = total, progress
        self.base = self.weight = self.done = 0
        self.steps = 1

    def begin(self, weight: int, steps: int) -> None:
        """The next `steps` steps are worth `weight` tokens together."""
        self.base, self.weight, self.steps, self.done = self.base + self.weight, weight, steps, 0

    def step(self, text: str) -> None:
        """Show that one more step begins."""
        self.progress.update(self.base + self.weight * self.done // self.steps, self.total, text)
        self.done += 1


def _write(
    loaded: LoadedConfig,
    measured: Sequence[Measured],
    machine: Machine,
    plans: Mapping[str, LayerPlan],
    shape: ModelShape,
    folder: Path,
) -> None:
    """Tables on screen; tables, raw samples and figures in place of former ones."""
    groups = sorted({(entry.setting.batch_size, entry.setting.backend) for entry in measured})
    lines: list[str] = []
    figures = {}
    mechanisms, machine_name = {label: mechanism_of(plan) for label, plan in plans.items()}, describe_machine()
    for batch_size, backend in groups:
        entries = [e for e in measured if (e.setting.batch_size, e.setting.backend) == (batch_size, backend)]
        steps = ", compiled steps" if loaded.config.bench.compile else ""
        title = f"Batch {batch_size}, {backend}{steps}: median (quartiles) of {loaded.config.bench.rounds} rounds"
        headings, rows = bench_report.columns(entries), bench_report.rows(entries, machine)
        ratios = bench_report.ratio_lines(entries)
        _show(title, entries, headings, rows, ratios)
        concluded = bench_report.conclusion(entries)
        lines += [*table_text(title, headings, rows), "", *ratios, "", *([concluded, ""] if concluded else [])]
        suffix = f"batch{batch_size}_{backend}"
        about = (tags.short_name(loaded.config.model.source), f"batch {batch_size}, {backend}{steps}", machine_name)
        figures[f"ttft_{suffix}"] = bench_report.time_figure(entries, "ttft_s", mechanisms, *about)
        figures[f"tpot_{suffix}"] = bench_report.time_figure(entries, "tpot_s", mechanisms, *about)
        figures[f"retain_{suffix}"] = bench_report.retain_figure(entries, mechanisms, *about)
    lines += print_compensation(plans, shape)
    results = {
        "machine": {"name": machine_name, **asdict(machine)},
        "config": plain_config(loaded),
        "plans": {label: plan.to_dict() for label, plan in plans.items()},
        "measured": [entry.to_dict() for entry in measured],
    }
    with atomic_folder(folder) as temporary:
        (temporary / "results.json").write_text(json.dumps(results, indent=1), encoding="utf-8")
        (temporary / "table.txt").write_text("\n".join(lines), encoding="utf-8")
        for name, figure in figures.items():
            for file_name, content in images(figure, name).items():
                (temporary / file_name).write_bytes(content)


def _show(
    title: str,
    entries: Sequence[Measured],
    headings: Sequence[str],
    rows: Sequence[Sequence[str]],
    ratios: Sequence[str],
) -> None:
    """Print one table, in short where the terminal has no room for all of it, and what follows from it."""
    width = output_width()
    if width is None or max(map(len, table_text(title, headings, rows))) <= width:
        print_table(title, headings, rows)
        print("\n".join(ratios))
    else:
        print_table(title.replace(" (quartiles)", ""), *bench_report.short_table(entries))
        print_text(
            "Quartiles, ratios of all pairs, peak memory and shares of the machine's peaks: --wide, or table.txt."
        )
    concluded = bench_report.conclusion(entries)
    if concluded is not None:
        print_text(f"\n{concluded}" if width is None else concluded)


def _plan_tags(
    plans: Mapping[str, LayerPlan], variants: Mapping[str, tuple[LayerPlan, str]], model: PreTrainedModel
) -> dict[str, dict[str, str]]:
    """Label -> tags by which the runs of fits with that plan are found; the stock model is no plan's."""
    all_plans = {**plans, tags.BASELINE: stock_plan(model)}
    tags_of = {label: tags.of_plan(plan) for label, plan in all_plans.items()}
    for label, (plan, variant) in variants.items():
        tags_of[label] = tags.of_plan(plan) | {tags.VARIANT: variant}
    return tags_of


def _track(
    loaded: LoadedConfig,
    measured: Sequence[Measured],
    of_plan: Mapping[str, dict[str, str]],
    compensations: Mapping[str, CompensationCost],
    folder: Path,
) -> None:
    """One MLflow run per model, so that they can be compared; a metric's step is the length of the prompt."""
    config = loaded.config
    backends, parent = {entry.setting.backend for entry in measured}, parent_tag(config.tracking, folder.parent)
    for label in dict.fromkeys(entry.label for entry in measured):
        run_tags = tags.describing(config, "bench", label) | of_plan.get(label, {}) | parent
        run_tags[tags.FOLDER] = str(folder.resolve())
        run_tags[tags.NOTE] = bench_report.note([e for e in measured if e.label == label], run_tags)
        name = f"{config.name}-bench-{label}"
        with one_off_run(config.tracking, folder.parent, name=name, tags=run_tags) as run:
            run.log_params(set_params(loaded))
            if label in compensations:
                spent, saved = compensations[label].parameters, compensations[label].saved_parameters
                run.log_metrics({"cost/compensation_parameters": spent, "cost/saved_parameters": saved}, 0)
            for entry in (entry for entry in measured if entry.label == label):
                of_batch = "" if len(config.bench.batch_sizes) == 1 else f"_batch{entry.setting.batch_size}"
                of_kernel = "" if len(backends) == 1 else f"_{entry.setting.backend}"
                values = {
                    "ttft_s": entry.median("ttft_s"),
                    "tpot_s": entry.median("tpot_s"),
                    "kv_retain_rate": entry.kv_retain_rate,
                    "kv_cache_bytes": entry.kv_bytes,
                    "tokens_per_s": entry.setting.batch_size / entry.median("tpot_s"),
                }
                if entry.peak_memory_bytes is not None:
                    values["peak_memory_bytes"] = entry.peak_memory_bytes
                run.log_metrics({f"cost/{k}{of_batch}{of_kernel}": v for k, v in values.items()}, entry.setting.length)
            for file in sorted(folder.iterdir()):
                run.log_file(file, FOLDER)
