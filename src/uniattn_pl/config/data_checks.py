"""Checks of the `data` section, beyond what a single field's type can express.

They are run with those of `config/checks.py`, which has the same form.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path

from uniattn_pl.config.schema import ExperimentConfig
from uniattn_pl.config.sections.data_section import (
    BOS,
    CHAT,
    CHAT_ROLES,
    DATA_KINDS,
    DATA_SUFFIXES,
    EMBEDDED,
    EMBEDDED_CHATS,
    EMBEDDED_PAIRS,
    MADE,
    PAPER,
    SELF,
    DataConfig,
    SourceConfig,
)
from uniattn_pl.config.source_paths import missing_path
from uniattn_pl.errors import did_you_mean, nearest_path

OTHER_SOURCES = f"'{EMBEDDED}', '{EMBEDDED_CHATS}', '{EMBEDDED_PAIRS}', a file ({DATA_KINDS}) or a hub data set name"


def _source(config: ExperimentConfig) -> str | None:
    return _unusable(config.data.source, f"'{SELF}', {OTHER_SOURCES}")


def _unusable(source: str, expected: str) -> str | None:
    return missing_path(source, DATA_SUFFIXES, "data file") if source.strip() else f"expected {expected}; got nothing."


def _further(config: ExperimentConfig) -> str | None:
    data = config.data
    for number, source in enumerate(data.further_sources or [], 1):
        problem = _unusable(source, f"'{SELF}', {OTHER_SOURCES}")
        if problem is None and source in [data.source, *(data.further_sources or [])][:number]:
            problem = f"'{source}' is trained on already: every source is named once, in data.source or here."
        if problem is not None:
            return problem
    return None


def _more_files(config: ExperimentConfig) -> str | None:
    data = config.data
    if data.more_files and data.source in (SELF, *MADE):
        return f"'{data.source}' is no file that others could be read with; data.further_sources takes other sources."
    problems = [missing_path(file, DATA_SUFFIXES, "data file") for file in data.more_files or []]
    return next((problem for problem in problems if problem), None)


def _template(config: ExperimentConfig) -> str | None:
    template = config.data.template
    if template in (PAPER, CHAT):
        return None
    path = Path(template)
    if path.is_file():
        return None
    what = "is a folder" if path.is_dir() else "does not exist"
    near = did_you_mean(template, (PAPER, CHAT)) or ("" if path.is_dir() else nearest_path(path))
    return f"must be {PAPER}, {CHAT} or a file with a Jinja template; '{template}' {what}.{near}"


def _roles(config: ExperimentConfig) -> str | None:
    for entry in config.data.roles or []:
        name, equals, role = entry.rpartition("=")
        if not (equals and name) or role not in CHAT_ROLES:
            near = did_you_mean(role, CHAT_ROLES) if equals else ""
            return f"expected NAME=ROLE, the role being one of {', '.join(CHAT_ROLES)}; got {entry!r}.{near}"
    return None


def _chats(config: ExperimentConfig) -> str | None:
    if EMBEDDED_CHATS not in config.data.training_sources or config.data.template != PAPER:
        return None
    return f"'{EMBEDDED_CHATS}' are conversations of several rounds; set data.template={CHAT}, or a Jinja file."


def _mixture(config: ExperimentConfig) -> str | None:
    data = config.data
    if data.sources is None:
        return None
    if not data.sources:
        return "expected one source at least, got none."
    others = [f"data.source ('{data.source}')"] if data.source != EMBEDDED else []
    others += ["data.further_sources"] if data.further_sources else []
    others += ["data.more_files"] if data.more_files else []
    if others:
        return (
            f"names all sources of a mixture, and {' and '.join(others)} others: give either. To mix it in, make it an "
            f"entry here; data.source stays at its default, '{EMBEDDED}', which is trained on where it is an entry."
        )
    return next((found for found in map(_entry, range(1, 1 + len(data.sources)), data.sources) if found), None) or (
        _repeated(data.sources) or _weights(data.sources)
    )


def _entry(number: int, entry: SourceConfig) -> str | None:
    expected = f"'{SELF}', {OTHER_SOURCES}"
    problem = (
        _unusable(entry.source, expected) if entry.source.strip() else f"source: expected {expected}; got nothing."
    )
    problem = problem or _text_format(entry)
    return problem and f"entry {number}: {problem}"


def _repeated(entries: Sequence[SourceConfig]) -> str | None:
    known = [(entry.source, entry.split) for entry in entries]
    for number, one in enumerate(known):
        if one in known[:number]:
            return (
                f"entry {number + 1}: '{one[0]}' is entry {known.index(one) + 1} already; a larger weight draws it "
                "more often."
            )
    return None


def _weights(entries: Sequence[SourceConfig]) -> str | None:
    for number, entry in enumerate(entries, 1):
        if entry.weight is not None and not (math.isfinite(entry.weight) and entry.weight > 0):
            return f"entry {number}: weight: must be above 0, got {entry.weight:g}; leave a source out to not draw it."
    without = [number for number, entry in enumerate(entries, 1) if entry.weight is None]
    if without and len(without) < len(entries):
        numbers = ", ".join(map(str, without))
        return f"entry {numbers} has no weight, and others have: give all of them one, or none."
    return None


def _text_format(entry: SourceConfig | DataConfig) -> str | None:
    if entry.text_column is None or entry.format in ("auto", "text"):
        return None
    return f"text_column: '{entry.text_column}' holds plain text, but format is '{entry.format}'; set it to text."


def _text_column(config: ExperimentConfig) -> str | None:
    problem = _text_format(config.data)
    return problem and problem.removeprefix("text_column: ")


def _of_entries(config: ExperimentConfig) -> str | None:
    data = config.data
    if data.sources is None:
        return None
    if data.num_samples is not None:
        return "counts the rows of data.source; with data.sources every entry has a num_samples of its own."
    if data.validation_source is None and (data.format, data.split, data.text_column) != ("auto", "train", None):
        return (
            "data.format, data.split and data.text_column are those of data.source and data.validation_source; every "
            "entry of data.sources has its own."
        )
    return None


def _validation_source(config: ExperimentConfig) -> str | None:
    source = config.data.validation_source
    if source == SELF:
        return f"held-out rows are not sampled from the model; expected {OTHER_SOURCES}."
    return None if source is None else missing_path(source, DATA_SUFFIXES, "data file")


def _prompts(config: ExperimentConfig) -> str | None:
    prompts = config.data.self_text.prompts
    expected = f"'{BOS}', {OTHER_SOURCES}"
    if prompts == SELF:
        return f"its own text has no prompts; expected {expected}."
    return _unusable(prompts, expected) if SELF in config.data.training_sources else None


def _held_out(config: ExperimentConfig) -> str | None:
    data = config.data
    if data.split_source is not None or data.validation_source is not None or data.sources == []:
        return None
    return (
        f"is needed: text that begins with {BOS} has no held-out rows. Give {OTHER_SOURCES}; or data.self_text.prompts "
        "such a source, whose first rows are then held out."
    )


def _temperature(config: ExperimentConfig) -> str | None:
    temperature = config.data.self_text.temperature
    return None if temperature > 0 else f"must be above 0, got {temperature:g}; 1 is the model's own distribution."


def _enough_rows(config: ExperimentConfig) -> str | None:
    data = config.data
    if data.num_samples is None or data.sources is not None:
        return None
    if data.validation_source is None and data.num_samples <= data.validation_size:
        return f"{data.num_samples} rows leave none to train on after data.validation_size={data.validation_size}."
    return None


DATA_CHECKS: list[tuple[tuple[str, ...], Callable[[ExperimentConfig], str | None]]] = [
    (("data.source",), _source),
    (("data.more_files", "data.source"), _more_files),
    (("data.further_sources", "data.source"), _further),
    (("data.template",), _template),
    (("data.roles",), _roles),
    (("data.source", "data.template"), _chats),
    (("data.sources", "data.source", "data.further_sources"), _mixture),
    (("data.num_samples", "data.sources", "data.format", "data.split", "data.text_column"), _of_entries),
    (("data.text_column", "data.format"), _text_column),
    (("data.validation_source",), _validation_source),
    (("data.self_text.prompts", "data.source", "data.further_sources", "data.sources"), _prompts),
    (("data.validation_source", "data.source", "data.sources", "data.self_text.prompts"), _held_out),
    (("data.self_text.temperature",), _temperature),
    (("data.num_samples", "data.validation_size", "data.validation_source"), _enough_rows),
]
