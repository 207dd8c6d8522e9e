"""What `mlflow.pyfunc.load_model` calls for a model that a fit has logged: text in, text out."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from uniattn_pl.errors import UserError

DEFAULTS = {"max_new_tokens": 128, "temperature": 0.0, "instruction": False}


class LoggedTextModel:
    """A model folder behind MLflow's predict, loaded once.

    Raises:
        UserError: as `load_text_model`.
    """

    def __init__(self, folder: Path) -> None:
        from uniattn_pl.config.sections.data_section import PAPER
        from uniattn_pl.inference.chat_prompt import learned_template
        from uniattn_pl.inference.generation import load_text_model
        from uniattn_pl.modeling.loading.pretrained import load_folder_tokenizer

        self.tokenizer = load_folder_tokenizer(folder)
        self.model, self.in_chat = load_text_model(folder, self.tokenizer), learned_template(folder) != PAPER

    def predict(self, prompts: Any, params: Mapping[str, Any] | None = None) -> list[str]:
        """Continue the prompts, one after the other.

        Args:
            prompts: the data frame that MLflow makes of texts, of one column.
            params: max_new_tokens, temperature, and whether a prompt is an instruction, as those of `generate`.
        """
        from uniattn_pl.data.prompt_file import AskedPrompt
        from uniattn_pl.inference.generation import encoded_prompts
        from uniattn_pl.inference.token_choice import Sampling

        options = {**DEFAULTS, **(params or {})}
        asked = [AskedPrompt.of(text, instruction=bool(options["instruction"])) for text in prompts.iloc[:, 0]]
        sampling, limit = Sampling(temperature=options["temperature"]), int(options["max_new_tokens"])
        return [
            "".join(self.model.stream(ids, sampling, max_new_tokens=limit, number=number))
            for number, ids in enumerate(encoded_prompts(self.tokenizer, asked, in_chat=self.in_chat))
        ]


def _load_pyfunc(path: str) -> LoggedTextModel:
    """MLflow's entry; `path` is the file that says where the model lies.

    Raises:
        UserError: the folder is not there, as on another machine.
    """
    folder = Path(json.loads(Path(path).read_text(encoding="utf-8"))["folder"])
    if not folder.is_dir():
        raise UserError(f"the model's folder '{folder}' is not here; MLflow keeps where it lies, not its weights.")
    return LoggedTextModel(folder)
