"""`generate`: text from a post-trained model."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from uniattn_pl.commands.arguments import Parser, load
from uniattn_pl.commands.generate_options import (
    CHAT_TOKENS,
    NEW_TOKENS,
    add_cost_arguments,
    add_decoding_arguments,
    add_prompt_arguments,
    option_problems,
)
from uniattn_pl.commands.model_source import add_source_arguments, find_model_folder
from uniattn_pl.errors import UserError

if TYPE_CHECKING:
    from uniattn_pl.config.sections.model_section import ModelConfig
    from uniattn_pl.data.prompt_file import AskedPrompt
    from uniattn_pl.inference.generation import TextModel
    from uniattn_pl.inference.token_choice import Sampling

DESCRIPTION = "Generates text with the model of a run, or with any model folder; it is shown as it is made."
EXAMPLE = """\
  uniattn-pl generate --from runs/quickstart --instruction --prompt "Name two causes of chest pain."
  uniattn-pl generate --from runs/quickstart --chat --temperature 0.7 --top-p 0.9
  uniattn-pl generate --config experiments/quickstart.yaml --prompt "The heart" --max-new-tokens 20 --compare"""
ORIGINAL, CONVERTED = "original", "converted"


def add_arguments(parser: Parser) -> None:
    """Add the options of `generate`."""
    add_source_arguments(parser)
    add_prompt_arguments(parser)
    add_decoding_arguments(parser)
    add_cost_arguments(parser)


def run(arguments: argparse.Namespace) -> int:
    """Check the request, then print one text per prompt, or talk."""
    if arguments.print_config:
        print(load(arguments).to_yaml(), end="")
        return 0
    problems, prompts = list(option_problems(arguments)), []
    try:
        prompts = _prompts(arguments)
    except UserError as error:
        problems += error.problems
    if problems:
        raise UserError(*problems)
    if arguments.max_new_tokens is None:
        arguments.max_new_tokens = CHAT_TOKENS if arguments.chat else NEW_TOKENS
    folder = find_model_folder(arguments)
    original = _original(arguments, folder) if arguments.compare else None
    if arguments.dry_run:
        from uniattn_pl.inference.chat_prompt import check_chat
        from uniattn_pl.modeling.loading.pretrained import check_folder, load_folder_tokenizer

        check_folder(folder)
        if arguments.chat:
            check_chat(load_folder_tokenizer(folder), str(folder))
        print(f"dry run: would generate up to {arguments.max_new_tokens} tokens for each prompt with {folder}.")
        return 0
    from transformers.utils.logging import disable_progress_bar

    from uniattn_pl.inference.token_choice import Sampling

    disable_progress_bar()  # of single-file transfers, which take a moment
    sampling = Sampling(arguments.temperature, arguments.top_k, arguments.top_p, arguments.seed)
    if arguments.chat:
        _chat(arguments, folder, sampling)
    else:
        _texts(arguments, folder, prompts, sampling, original)
    return 0


def _prompts(arguments: argparse.Namespace) -> list[AskedPrompt]:
    from uniattn_pl.data.prompt_file import AskedPrompt, read_prompts

    given = [AskedPrompt.of(prompt, instruction=arguments.instruction) for prompt in arguments.prompt]
    if arguments.prompts is not None:
        given += read_prompts(arguments.prompts, instruction=arguments.instruction)
    return given


def _texts(
    arguments: argparse.Namespace,
    folder: Path,
    prompts: list[AskedPrompt],
    sampling: Sampling,
    original: ModelConfig | None,
) -> None:
    from uniattn_pl.config.sections.data_section import PAPER
    from uniattn_pl.inference.chat_prompt import learned_template
    from uniattn_pl.inference.generation import encoded_prompts, load_text_model, tell_positions
    from uniattn_pl.modeling.loading.pretrained import load_folder_tokenizer

    tokenizer = load_folder_tokenizer(folder)
    encoded = encoded_prompts(tokenizer, prompts, in_chat=learned_template(folder) != PAPER)
    new_tokens, stop = arguments.max_new_tokens, arguments.stop
    room = max(map(len, encoded)) + new_tokens
    model = load_text_model(
        folder,
        tokenizer,
        quantization=arguments.quantization,
        h2o_retain_rate=arguments.h2o,
        compiled_tokens=room if arguments.compile else None,
    )
    tell_positions(model.model, room - new_tokens, new_tokens)
    if original is not None:
        from uniattn_pl.inference.original_beside import print_beside

        models = {ORIGINAL: _load_original(original, model), CONVERTED: model}
        print_beside(
            models, [prompt.shown for prompt in prompts], encoded, sampling, max_new_tokens=new_tokens, stop=stop
        )
        return
    for number, ids in enumerate(encoded):
        if len(encoded) > 1 and sys.stdout.isatty():
            print(f"--- {prompts[number].shown.strip()}")
        for piece in model.stream(ids, sampling, max_new_tokens=new_tokens, stop=stop, number=number):
            print(piece, end="", flush=True)
        print()


def _chat(arguments: argparse.Namespace, folder: Path, sampling: Sampling) -> None:
    from uniattn_pl.commands.chat_session import converse
    from uniattn_pl.families.positions import positions_of
    from uniattn_pl.inference.chat_prompt import check_chat
    from uniattn_pl.inference.generation import load_text_model
    from uniattn_pl.modeling.loading.pretrained import load_folder_tokenizer

    tokenizer = load_folder_tokenizer(folder)
    check_chat(tokenizer, str(folder))
    model = load_text_model(folder, tokenizer, quantization=arguments.quantization, h2o_retain_rate=arguments.h2o)
    converse(
        model,
        sampling,
        system=arguments.system,
        max_new_tokens=arguments.max_new_tokens,
        stop=arguments.stop,
        most=positions_of(model.model.config),
    )


def _original(arguments: argparse.Namespace, folder: Path) -> ModelConfig:
    """What the run of a model folder was made from."""
    from uniattn_pl.commands.run_config import load_of_run
    from uniattn_pl.run_folder import run_of

    if not arguments.config and run_of(arguments.source or folder) is None:
        raise UserError(
            f"--compare needs a run, which knows its original; '{arguments.source or folder}' is the folder of none."
        )
    return load_of_run(arguments, arguments.source).config.model


def _load_original(original: ModelConfig, beside: TextModel) -> TextModel:
    """The original in the type and on the device of the model beside it."""
    from uniattn_pl.inference.generation import TextModel
    from uniattn_pl.modeling.loading.pretrained import load_model

    model = load_model(
        original.source,
        dtype=str(beside.model.dtype).removeprefix("torch."),
        revision=original.revision,
        trust_remote_code=original.trust_remote_code,
        device=beside.model.device,
    )
    return TextModel(model, beside.tokenizer)
