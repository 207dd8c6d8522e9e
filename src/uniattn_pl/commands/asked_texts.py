"""What `generate` asks: prompts of the command line and of a file, and held-out rows of a run."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from uniattn_pl.commands.run_config import check_rows, load_of_run
from uniattn_pl.config import LoadedConfig
from uniattn_pl.errors import UserError
from uniattn_pl.run_folder import run_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from uniattn_pl.data.prompt_file import AskedPrompt
    from uniattn_pl.inference.texts_beside import AskedText


def given_prompts(arguments: argparse.Namespace) -> list[AskedPrompt]:
    """The prompts of `--prompt` and `--prompts`. Raises UserError as `read_prompts`."""
    from uniattn_pl.data.prompt_file import AskedPrompt, read_prompts

    words = {"instruction": arguments.instruction, "context": arguments.input or ""}
    given = [AskedPrompt.of(prompt, **words) for prompt in arguments.prompt]
    if arguments.prompts is not None:
        given += read_prompts(arguments.prompts, instruction=arguments.instruction)
    return given


def experiment_of(arguments: argparse.Namespace, option: str) -> LoadedConfig:
    """The experiment that the model is of, for an option that needs it.

    Raises:
        UserError: `--from` is no run, and there is no `--config`.
    """
    if not arguments.config and run_of(arguments.source) is None:
        raise UserError(f"{option} needs a run, or its --config; '{arguments.source}' is the folder of none.")
    return load_of_run(arguments, arguments.source)


def asked_texts(
    arguments: argparse.Namespace,
    prompts: Sequence[AskedPrompt],
    folder: Path,
    tokenizer: PreTrainedTokenizerBase,
    experiment: LoadedConfig | None,
) -> list[AskedText]:
    """All that is asked, in a model's tokens.

    Args:
        prompts: as `given_prompts` returns them.
        folder: of the model that learned the template.
        experiment: whose held-out rows `--row` names.

    Raises:
        UserError: a prompt without a token, or as `held_out_prompts`.
    """
    from uniattn_pl.config.sections.data_section import PAPER
    from uniattn_pl.inference.chat_prompt import learned_template
    from uniattn_pl.inference.generation import encoded_prompts
    from uniattn_pl.inference.texts_beside import AskedText

    encoded = encoded_prompts(tokenizer, prompts, in_chat=learned_template(folder) != PAPER)
    asked = [AskedText(prompt.shown, ids) for prompt, ids in zip(prompts, encoded, strict=True)]
    if experiment is not None and arguments.row:
        from uniattn_pl.data.open_rows import held_out_prompts
        from uniattn_pl.data.self_text import Original

        check_rows(experiment)
        config = experiment.config
        rows = held_out_prompts(config.data, tokenizer, arguments.row, Original(config.model))
        asked += [AskedText(f"row {row.number}: {row.asked}", row.ids, row.expected) for row in rows]
    return asked
