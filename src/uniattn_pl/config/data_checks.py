"""Checks of the `data` section, beyond what a single field's type can express.

They are run with those of `config/checks.py`, which has the same form.
"""

from __future__ import annotations

from collections.abc import Callable
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
)
from uniattn_pl.config.source_paths import missing_path
from uniattn_pl.config.yaml_documents import nearest_file
from uniattn_pl.errors import did_you_mean

OTHER_SOURCES = f"'{EMBEDDED}', '{EMBEDDED_CHATS}', '{EMBEDDED_PAIRS}', a file ({DATA_KINDS}) or a hub data set name"


def _source(config: ExperimentConfig) -> str | None:
    return _unusable(config.data.source, f"'{SELF}', {OTHER_SOURCES}")


def _unusable(source: str, expected: str) -> str | None:
    return missing_path(source, DATA_SUFFIXES, "data file") if source.strip() else f"expected {expected}; got nothing."


def _further(config: ExperimentConfig) -> str | None:
    data = config.data
    for number, source in enumerate(data.further_sources or [], 1):
        problem = _unusable(source, f"'{SELF}', {OTHER_SOURCES}")
        if problem is None and source in data.sources[:number]:
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
    near = did_you_mean(template, (PAPER, CHAT)) or ("" if path.is_dir() else nearest_file(path))
    return f"must be {PAPER}, {CHAT} or a file with a Jinja template; '{template}' {what}.{near}"


def _roles(config: ExperimentConfig) -> str | None:
    for entry in config.data.roles or []:
        name, equals, role = entry.rpartition("=")
        if not (equals and name) or role not in CHAT_ROLES:
            near = did_you_mean(role, CHAT_ROLES) if equals else ""
            return f"expected NAME=ROLE, the role being one of {', '.join(CHAT_ROLES)}; got {entry!r}.{near}"
    return None


def _chats(config: ExperimentConfig) -> str | None:
    if EMBEDDED_CHATS not in config.data.sources or config.data.template != PAPER:
        return None
    return f"'{EMBEDDED_CHATS}' are conversations of several rounds; set data.template={CHAT}, or a Jinja file."


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
    return _unusable(prompts, expected) if SELF in config.data.sources else None


def _held_out(config: ExperimentConfig) -> str | None:
    if config.data.split_source is not None or config.data.validation_source is not None:
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
    if data.num_samples is None:
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
    (("data.validation_source",), _validation_source),
    (("data.self_text.prompts", "data.source", "data.further_sources"), _prompts),
    (("data.validation_source", "data.source", "data.self_text.prompts"), _held_out),
    (("data.self_text.temperature",), _temperature),
    (("data.num_samples", "data.validation_size", "data.validation_source"), _enough_rows),
]
