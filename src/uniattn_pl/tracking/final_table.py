"""The table a fit ends with: quality by milestone, cache bytes, speed, and the commands that use the result."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from io import StringIO

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from uniattn_pl.families.encoder_decoder import has_encoder_in
from uniattn_pl.printed_commands import mlflow_ui, uniattn
from uniattn_pl.tracking.fit_result import LABELS, FitResult, HeldOutText

PLAIN_WIDTH = 110
SHOWN = 79  # characters of a line of text
EXPECTED = "(expected)"
WARNING = "warning:"
TEXTS_TITLE = "Held-out rows, and what each model says to them (the likeliest tokens)"
# Of a milestone what some fits have: its name there, the column's title, how it is written.
QUALITIES = (
    ("perplexity", "perplexity", ".2f"),
    ("answer_accuracy", "answer accuracy", ".1%"),
    ("preference_loss", "dpo loss", ".4f"),
    ("reward_accuracy", "rewards right", ".1%"),
)


def final_table(result: FitResult) -> RenderableType:
    """Quality by milestone, cache bytes, speed, and the commands that use the result."""
    parts: list[RenderableType] = [_quality(result)]
    parts += [Text(line) for line in initialisation_lines(result)]
    parts += [_cache(result)]
    if result.stages:
        parts.append(_speed(result))
        parts.append(Text("\n".join(f"{stage.name} {stage.kept_words}." for stage in result.stages)))
    if result.texts:
        parts.append(_texts(result.texts))
    parts.append(Text("\n" + commands(result)))
    return Group(*parts)


def initialisation_lines(result: FitResult) -> list[str]:
    """What unification cost and what the initialisation did to it, as far as the held-out rows tell."""
    gap, change = result.gap, result.initialised
    if gap is None or change is None:
        return []
    worse = replace(change, value=-change.value)
    if worse.value > 0 and worse.told:
        return [
            f"{WARNING} the initialisation made it worse, by {worse} nats of held-out loss; a larger sample may do "
            f"better (calibration.num_samples), or another calibration.initialiser ({uniattn('list', 'initialisers')})."
        ]
    if result.gap_closed is None:
        return [f"Unification changed the loss by {gap} nats: no gap that {gap.rows or 'these'} held-out rows tell."]
    if not change.told:
        return [f"Unification cost {gap} nats; the initialisation changed that by {worse}, which the rows do not tell."]
    return [f"The initialisation closed {result.gap_closed:.0%} of the {gap} nats that unification cost."]


def as_text(report: RenderableType) -> str:
    """The report as plain text, for an artifact."""
    buffer = StringIO()
    Console(file=buffer, width=PLAIN_WIDTH, no_color=True).print(report, soft_wrap=True)
    return buffer.getvalue()


def commands(result: FitResult) -> str:
    """The exact commands to look at the run, and to generate with the model, serve it and export it."""
    return "\n".join([f"MLflow    {mlflow_ui(result.tracking_uri, result.mlflow_run_id)}", *use_commands(result)])


def use_commands(result: FitResult) -> list[str]:
    """The exact commands to generate with the model, serve it and export it, a line each."""
    run = str(result.run_folder)
    served = [
        f"serve     {uniattn('serve', '--from', run)}",
        f"vLLM      {uniattn('serve', '--from', run, '--engine', 'vllm')}",
    ]
    return [
        f"generate  {uniattn('generate', '--from', run, '--row', '0', '--beside', 'original')}",
        *([] if has_encoder_in(result.model_folder) else served),
        f"export    {uniattn('export', '--from', run, '--to', f'exported/{result.run_folder.name}')}",
    ]


def _quality(result: FitResult) -> Table:
    table = Table(title="Held-out quality", title_justify="left")
    table.add_column("model")
    of_text = any(milestone.perplexity is not None for milestone in result.milestones)
    table.add_column("loss" if of_text else "response loss", justify="right")
    shown = [one for one in QUALITIES if any(getattr(m, one[0]) is not None for m in result.milestones)]
    for _, title, _ in shown:
        table.add_column(title, justify="right")
    for milestone in result.milestones:
        values = [(getattr(milestone, name), form) for name, _, form in shown]
        cells = ["-" if value is None else format(value, form) for value, form in values]
        table.add_row(milestone.label, f"{milestone.response_loss:.4f}", *cells)
    return table


def _texts(texts: Sequence[HeldOutText]) -> Text:
    """The first held-out rows and what each model says."""
    title = Text(TEXTS_TITLE, style="italic")
    lines = [said_lines(text, {LABELS[name]: words for name, words in text.said.items()}) for text in texts]
    return Text("\n").join([title, *(line for of_row in lines for line in of_row)])


def said_lines(text: HeldOutText, said: Mapping[str, str]) -> list[Text]:
    """A held-out row and what models say to it, a line each, as much of it as fits.

    Args:
        said: label of a model -> its words.
    """
    width = max(map(len, [*said, EXPECTED]))
    lines = [Text(f"row {text.number}: {shortened(one_line(text.asked), SHOWN - 7)}")]
    lines += [
        Text(f"  {label:{width}}  {one_line(words)}") for label, words in [*said.items(), (EXPECTED, text.expected)]
    ]
    for line in lines:
        line.truncate(SHOWN, overflow="ellipsis")
    return lines


def one_line(text: str) -> str:
    """A text without line breaks and runs of white space."""
    return " ".join(text.split())


def shortened(text: str, length: int) -> str:
    """The beginning of a text and its end, where a question usually stands."""
    if len(text) <= length:
        return text
    end = length // 2
    return f"{text[: length - end - 3]} … {text[-end:]}"


def _cache(result: FitResult) -> Table:
    cache = result.cache
    table = Table(title=f"KV cache of one sequence of {cache.length} tokens", title_justify="left")
    for name in ("unmodified", "predicted by the plan", "measured", "retain rate"):
        table.add_column(name, justify="right")
    table.add_row(
        *(f"{size:,} B" for size in (cache.unmodified, cache.predicted, cache.measured)), f"{cache.retain_rate:.1%}"
    )
    return table


def _speed(result: FitResult) -> Table:
    table = Table(title="Training", title_justify="left")
    for name in ("stage", "steps", "tokens/s", "s/step"):
        table.add_column(name, justify="left" if name == "stage" else "right")
    for stage in result.stages:
        steps = f"{stage.steps} (stopped early)" if stage.stopped_early else str(stage.steps)
        rate = "-" if stage.tokens_per_second is None else f"{stage.tokens_per_second:,.0f}"
        seconds = "-" if stage.step_seconds is None else f"{stage.step_seconds:.2f}"
        table.add_row(stage.name, steps, rate, seconds)
    return table
