"""What an experiment rests on at present, by content, looked at without opening it for training."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict

from transformers import PreTrainedTokenizerBase

from uniattn_pl.config import LoadedConfig
from uniattn_pl.config.sections.data_section import PAPER, SELF
from uniattn_pl.data.chat_template import ChatTemplate, template_contents
from uniattn_pl.data.open_rows import rows_contents
from uniattn_pl.data.self_text import Original
from uniattn_pl.errors import UserError
from uniattn_pl.modeling.loading.model_contents import model_contents, tokenizer_contents
from uniattn_pl.modeling.loading.pretrained import load_tokenizer
from uniattn_pl.resilience.identity import (
    MODEL,
    NAMES,
    TEACHER,
    TEMPLATE,
    TOKENIZER,
    TRAINING_ROWS,
    Contents,
)
from uniattn_pl.training.teacher_checks import teacher_contents

Look = Callable[[LoadedConfig], dict[str, Contents]]


class PresentIdentities:
    """Looks at the rows, the model and the tokenizer of experiments; what several have in common, once."""

    def __init__(self) -> None:
        self._seen: dict[str, dict[str, Contents] | UserError] = {}

    def of(self, loaded: LoadedConfig) -> tuple[dict[str, Contents], list[str]]:
        """What can be looked at of an experiment, and a line for each thing that cannot, with the reason."""
        config = loaded.config
        sampled = [asdict(config.model)] if SELF in config.data.training_sources else []  # whose text rows are
        known: dict[str, Contents] = {}
        problems: list[str] = []
        looks: tuple[tuple[str, object, Look], ...] = (
            (TRAINING_ROWS, [asdict(config.data), *sampled], _rows),
            (MODEL, asdict(config.model), _model),
            (TOKENIZER, asdict(config.model), _tokenizer),
            (TEMPLATE, [asdict(config.data), asdict(config.model)], _template),
            (TEACHER, asdict(config.training.distillation), teacher_contents),
        )
        for name, section, look in looks:
            key = json.dumps([name, section], sort_keys=True)
            if key not in self._seen:
                try:
                    self._seen[key] = look(loaded)
                except UserError as error:
                    self._seen[key] = error
            found = self._seen[key]
            if isinstance(found, UserError):
                problems.append(f"{NAMES[name]} cannot be looked at: {' '.join(found.problems)}")
            else:
                known |= found
        return known, problems


def _rows(loaded: LoadedConfig) -> dict[str, Contents]:
    return rows_contents(loaded.config.data, Original(loaded.config.model))


def _model(loaded: LoadedConfig) -> dict[str, Contents]:
    model = model_contents(loaded.config.model.source, loaded.config.model.revision)
    return {} if model is None else {MODEL: model}


def _tokenizer(loaded: LoadedConfig) -> dict[str, Contents]:
    return {TOKENIZER: tokenizer_contents(_loaded_tokenizer(loaded), loaded.config.model.source)}


def _template(loaded: LoadedConfig) -> dict[str, Contents]:
    data = loaded.config.data
    return template_contents(ChatTemplate.of(data, _loaded_tokenizer(loaded))) if data.template != PAPER else {}


def _loaded_tokenizer(loaded: LoadedConfig) -> PreTrainedTokenizerBase:
    model = loaded.config.model
    return load_tokenizer(model.source, revision=model.revision, trust_remote_code=model.trust_remote_code)
