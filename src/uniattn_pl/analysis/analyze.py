"""Runs the analyses an experiment asks for and writes each as a table and a figure, to disk and to MLflow."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from rich.console import Console

from uniattn_pl.analysis import analysis_figures
from uniattn_pl.analysis.depth import depth_factor
from uniattn_pl.analysis.selection import selection_traces, trace_lines
from uniattn_pl.analysis.similarity_variants import VARIANTS, map_similarity
from uniattn_pl.calibration.rank_choice import RANK_KEEPS
from uniattn_pl.config import LoadedConfig
from uniattn_pl.data.told_rows import tell_rows
from uniattn_pl.display.figure_style import images
from uniattn_pl.display.progress import ProgressReporter
from uniattn_pl.errors import UserError
from uniattn_pl.families.encoder_decoder import decoders_alone
from uniattn_pl.files import atomic_file
from uniattn_pl.modeling.conversion.convert import converted_copy
from uniattn_pl.plan import LayerPlan
from uniattn_pl.plan.mechanism import mechanism_of
from uniattn_pl.plan.roles import KEY_VALUE, MAP, OTHER, UNMODIFIED
from uniattn_pl.resilience.cluster import Cluster
from uniattn_pl.search.importance import attention_importance
from uniattn_pl.tracking import tags
from uniattn_pl.tracking.notes import analysis_note
from uniattn_pl.tracking.one_off_run import one_off_run
from uniattn_pl.tracking.run_above import parent_tag
from uniattn_pl.tracking.run_params import set_params
from uniattn_pl.training.callbacks.compensation_init import CompensationInit
from uniattn_pl.training.experiment import Experiment
from uniattn_pl.training.fit_models import FitModels
from uniattn_pl.training.fit_plan import MEASURED_TOKENS, fit_plan, model_measurements
from uniattn_pl.training.planning import chosen_plan

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FOLDER = "analysis"
SHARE_KV_INSTEAD = "cla on the same layers"


class Analysed:
    """An experiment and its models, on this process alone."""

    def __init__(self, loaded: LoadedConfig, console: Console) -> None:
        self.cluster, self.console = Cluster.alone(loaded.config), console
        self.experiment = Experiment(loaded, self.cluster)
        tell_rows(self.experiment.data.report, console)
        self.models = FitModels(self.experiment, self.cluster.device)

    @cached_property
    def plan(self) -> LayerPlan:
        """The plan that the fit has recorded, or the one it would have, which may have to be searched for."""
        chosen = chosen_plan(self.experiment.loaded)
        recorded = None if chosen is None else chosen.to_dict()
        return fit_plan(self.experiment, self.models, recorded, cluster=self.cluster, console=self.console)

    @property
    def known_plan(self) -> LayerPlan | None:
        """The plan, where it need not be searched for first."""
        chosen = chosen_plan(self.experiment.loaded)
        return self.experiment.compiled_plan if chosen is None else chosen

    @property
    def about(self) -> tuple[str, str, str]:
        """What a figure of it says it is of: model, rows, machine."""
        return tags.about(self.experiment.config)

    def train_batches(self, tokens: int) -> list[dict[str, torch.Tensor]]:
        """Training rows that together hold about so many tokens, one per batch."""
        return self.experiment.train_tokens(tokens, 0)


@dataclass(frozen=True)
class Finding:
    """One analysis: plain data, a table of text lines, and figures by name."""

    data: dict[str, Any]
    lines: list[str]
    figures: dict[str, Figure]


def analyze(loaded: LoadedConfig, topics: Sequence[str] | None, *, tokens: int) -> Path:
    """Analyse an experiment's model on about `tokens` of its training tokens; returns the folder of results.

    `topics` None stands for all that apply: a plan without W_c has no compensation to look at.

    Raises:
        UserError: the config cannot be analysed, or `compensation` is among the topics and the plan has no W_c.
    """
    console = Console()
    analysed = Analysed(loaded, console)
    if analysed.experiment.shape.encoder is not None:
        raise UserError(decoders_alone("analyze", analysed.experiment.shape.model_type))
    if topics is None:
        topics = [topic for topic in TOPICS if topic != "compensation" or analysed.plan.compensated]
    folder = analysed.experiment.folder / FOLDER
    config = analysed.experiment.config
    run_tags = tags.describing(config, "analysis", loaded.architecture.name)
    run_tags |= parent_tag(config.tracking, analysed.experiment.folder)
    run_tags[tags.NOTE] = analysis_note(run_tags, {topic: TOPICS[topic][0] for topic in topics})
    name = f"{config.name}-analysis"
    with one_off_run(config.tracking, analysed.experiment.folder, name=name, tags=run_tags) as run:
        run.log_params(set_params(loaded))
        for topic in topics:
            console.print(f"\n{topic}: {TOPICS[topic][0]}", highlight=False)
            finding = TOPICS[topic][1](analysed, tokens)
            console.print("\n".join(finding.lines), highlight=False, markup=False, soft_wrap=True)
            _write(folder, topic, finding)
            for name, figure in finding.figures.items():
                run.log_figure(figure, f"{FOLDER}/{name}")
            run.log_text("\n".join(finding.lines) + "\n", f"{FOLDER}/{topic}.txt")
            run.log_text(json.dumps(finding.data, indent=1), f"{FOLDER}/{topic}.json")
    console.print(f"\nwritten to {folder}", highlight=False)
    return folder


def _write(folder: Path, topic: str, finding: Finding) -> None:
    contents = {f"{topic}.txt": "\n".join(finding.lines) + "\n", f"{topic}.json": json.dumps(finding.data, indent=1)}
    for name, text in contents.items():
        with atomic_file(folder / name) as file:
            file.write(text.encode())
    for name, figure in finding.figures.items():
        for file_name, content in images(figure, name).items():
            with atomic_file(folder / file_name) as file:
                file.write(content)


def _similarity(analysed: Analysed, tokens: int) -> Finding:
    similarity = map_similarity(analysed.models.original, analysed.train_batches(tokens))
    layers = range(1, len(similarity.matrix))
    lines = [f"{'layer':>6} " + " ".join(f"{name:>13}" for name in VARIANTS)]
    for row, layer in enumerate(layers):
        lines.append(f"{layer:>6} " + " ".join(f"{similarity.adjacent[name][row]:>13.3f}" for name in VARIANTS))
    half = len(similarity.matrix) // 2
    for label, part in (("bottom", slice(0, half - 1)), ("top", slice(half - 1, None))):
        means = (sum(similarity.adjacent[name][part]) / len(similarity.adjacent[name][part]) for name in VARIANTS)
        lines.append(f"{label:>6} " + " ".join(f"{mean:>13.3f}" for mean in means) + "   mean of this half")
    drawings = {
        "similarity_matrix": analysis_figures.similarity_matrix(similarity, analysed.known_plan, *analysed.about),
        "similarity_adjacent": analysis_figures.similarity_adjacent(similarity, *analysed.about),
        "head_matches": analysis_figures.head_matches(similarity, *analysed.about),
    }
    return Finding(asdict(similarity), lines, drawings)


def _importance(analysed: Analysed, tokens: int) -> Finding:
    importance = attention_importance(analysed.models.original, analysed.train_batches(tokens))
    ranked = sorted(range(len(importance)), key=importance.__getitem__)
    lines = [f"{layer:>6} {importance[layer]:.5f}" for layer in ranked]
    figure = analysis_figures.importance(importance, *analysed.about)
    return Finding(
        {"importance": importance, "ranked": ranked},
        [" layer 1 - cosine (least important first)", *lines],
        {"importance": figure},
    )


def _depth(analysed: Analysed, tokens: int) -> Finding:
    batches = analysed.train_batches(tokens)
    factors = {"original": depth_factor(analysed.models.original, batches)}
    mechanisms = {"original": UNMODIFIED}
    if analysed.plan.operated:
        name = analysed.experiment.loaded.architecture.name
        factors[name] = depth_factor(analysed.models.converted(analysed.plan), batches)
        mechanisms[name] = mechanism_of(analysed.plan)
        share_kv_plan = _share_kv_instead(analysed.plan)
        if share_kv_plan.operated and share_kv_plan != analysed.plan:
            factors[SHARE_KV_INSTEAD] = depth_factor(converted_copy(analysed.models.original, share_kv_plan), batches)
            mechanisms[SHARE_KV_INSTEAD] = mechanism_of(share_kv_plan)
    lines = [f"{'layer':>6} " + " ".join(f"{name:>22}" for name in factors)]
    for layer in range(analysed.experiment.shape.num_layers):
        lines.append(f"{layer:>6} " + " ".join(f"{series[layer]:>22.4f}" for series in factors.values()))
    return Finding(factors, lines, {"depth": analysis_figures.depth(factors, mechanisms, *analysed.about)})


def _share_kv_instead(plan: LayerPlan) -> LayerPlan:
    """The plan with CLA in place of every reused map, without compensation (Proposition 3.6's counterpart)."""
    share_kv_plan = LayerPlan.unmodified(len(plan.rows), other=[row.index for row in plan.rows if row.role == OTHER])
    for row in plan.rows:
        if row.traits.reads == MAP and row.source is not None and KEY_VALUE in plan.rows[row.source].traits.gives:
            share_kv_plan = share_kv_plan.share_kv([row.index], row.source, compensated=False)
    return share_kv_plan


def _selection(analysed: Analysed, tokens: int) -> Finding:
    count = min(max(len(analysed.plan.operated), 1), analysed.experiment.shape.num_layers - 1)
    with ProgressReporter("choosing layers one by one", analysed.console) as progress:
        measurements = model_measurements(analysed.experiment, analysed.models.original, progress)
        traces = selection_traces(measurements, count=count, tokens=min(tokens, MEASURED_TOKENS))
    data = {name: asdict(trace) for name, trace in traces.items()}
    return Finding(data, trace_lines(traces), {"selection": analysis_figures.selection_losses(traces, *analysed.about)})


def _compensation(analysed: Analysed, tokens: int) -> Finding:
    options = analysed.experiment.config.calibration
    callback = CompensationInit(
        analysed.models.original,
        analysed.train_batches(tokens),
        analysed.experiment.data.validation_batches(options.held_out_samples, options.batch_size),
        initialiser=options.initialiser,
        ridge=options.ridge,
        head_alignment=options.head_alignment,
        rank_keeps=RANK_KEEPS if options.rank_keeps is None else options.rank_keeps,
    )
    report = callback.initialise(analysed.models.converted(analysed.plan))
    figure = analysis_figures.compensation_errors(report, *analysed.about)
    return Finding(report.to_dict(), report.lines(), {"compensation": figure})


TOPICS: dict[str, tuple[str, Callable[[Analysed, int], Finding]]] = {
    "similarity": ("cosine of attention maps across layers (paper Figure 2)", _similarity),
    "importance": ("how much each attention changes the stream (LLMDrop)", _importance),
    "depth": ("how much each layer changes its input (Propositions 3.6 and 3.8)", _depth),
    "selection": ("loss as more layers reuse, for each way of choosing them (Table 9)", _selection),
    "compensation": ("error before and after W_c on held-out rows (section 3.3)", _compensation),
}
