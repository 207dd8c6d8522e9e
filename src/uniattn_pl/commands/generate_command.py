"""`generate`: text from a post-trained model."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from uniattn_pl.commands.arguments import Parser, load
from uniattn_pl.commands.asked_texts import asked_texts, experiment_of, given_prompts
from uniattn_pl.commands.generate_options import (
    CHAT_TOKENS,
    NEW_TOKENS,
    add_cost_arguments,
    add_decoding_arguments,
    add_prompt_arguments,
    option_problems,
)
from uniattn_pl.commands.model_source import add_source_arguments, find_model_folder, folder_of
from uniattn_pl.errors import UserError
from uniattn_pl.inference.texts_beside import print_beside

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from uniattn_pl.config import LoadedConfig
    from uniattn_pl.config.sections.model_section import ModelConfig
    from uniattn_pl.data.prompt_file import AskedPrompt
    from uniattn_pl.inference.generation import TextModel
    from uniattn_pl.inference.texts_beside import AskedText
    from uniattn_pl.inference.token_choice import Sampling

DESCRIPTION = "Generates text with the model of a run, or with any model folder; it is shown as it is made."
EXAMPLE = """\
  uniattn-pl generate --from runs/quickstart/UniAttn --row 0 --beside original
  uniattn-pl generate --from runs/quickstart/UniAttn --instruction --prompt "Which drug is safe?" --input "Asthma."
  uniattn-pl generate --from runs/quickstart/UniAttn --chat --temperature 0.7 --top-p 0.9
  uniattn-pl generate --from smollm2-135m --prompt "The heart" --max-new-tokens 20"""
ORIGINAL, CONVERTED = "original", "converted"
NOTHING = "note: the model ended its text at once."
AS_IT_IS = " A prompt is continued as it is; --instruction puts it into the template of the training rows."


def add_arguments(parser: Parser) -> None:
    """Add the options of `generate`."""
    add_source_arguments(parser)
    add_prompt_arguments(parser)
    add_decoding_arguments(parser)
    add_cost_arguments(parser)


def run(arguments: argparse.Namespace) -> int:
    """Check the request, then print one text per question, or talk."""
    if arguments.print_config:
        print(load(arguments).to_yaml(), end="")
        return 0
    problems, prompts = list(option_problems(arguments)), []
    try:
        prompts = given_prompts(arguments)
    except UserError as error:
        problems += error.problems
    if problems:
        raise UserError(*problems)
    if arguments.max_new_tokens is None:
        arguments.max_new_tokens = CHAT_TOKENS if arguments.chat else NEW_TOKENS
    folder = find_model_folder(arguments)
    from_original = str(arguments.beside) == ORIGINAL
    beside = None if arguments.beside is None or from_original else folder_of(arguments.beside)
    original = experiment_of(arguments, f"--beside {ORIGINAL}").config.model if from_original else None
    experiment = experiment_of(arguments, "--row") if arguments.row else None
    if arguments.dry_run:
        _dry_run(arguments, prompts, folder, beside, experiment)
        return 0
    from transformers.utils.logging import disable_progress_bar

    from uniattn_pl.inference.token_choice import Sampling
    from uniattn_pl.modeling.loading.pretrained import load_folder_tokenizer

    disable_progress_bar()  # of single-file transfers, which take a moment
    sampling = Sampling(arguments.temperature, arguments.top_k, arguments.top_p, arguments.seed)
    if arguments.chat:
        _chat(arguments, folder, sampling)
        return 0
    tokenizer = load_folder_tokenizer(folder)
    asked = asked_texts(arguments, prompts, folder, tokenizer, experiment)
    model = _loaded(arguments, folder, tokenizer, asked)
    texts = {"max_new_tokens": arguments.max_new_tokens, "stop": arguments.stop}
    if original is not None:
        print_beside({ORIGINAL: (_load_original(original, model), asked), CONVERTED: (model, asked)}, sampling, **texts)
    elif beside is not None:
        others = load_folder_tokenizer(beside)
        asked_there = asked_texts(arguments, prompts, beside, others, experiment)
        other = _loaded(arguments, beside, others, asked_there)
        print_beside({str(arguments.beside): (other, asked_there), CONVERTED: (model, asked)}, sampling, **texts)
    else:
        wrapped = arguments.instruction or bool(arguments.prompts) or experiment is not None
        _print_texts(model, asked, sampling, wrapped=wrapped, **texts)
    return 0


def _dry_run(
    arguments: argparse.Namespace,
    prompts: Sequence[AskedPrompt],
    folder: Path,
    beside: Path | None,
    experiment: LoadedConfig | None,
) -> None:
    from uniattn_pl.inference.chat_prompt import check_chat
    from uniattn_pl.modeling.loading.pretrained import check_folder, load_folder_tokenizer

    check_folder(folder)
    if beside is not None:
        check_folder(beside)
    tokenizer = load_folder_tokenizer(folder)
    if arguments.chat:
        check_chat(tokenizer, str(folder))
    else:
        asked_texts(arguments, prompts, folder, tokenizer, experiment)
    print(f"dry run: would generate up to {arguments.max_new_tokens} tokens for each prompt with {folder}.")


def _loaded(
    arguments: argparse.Namespace, folder: Path, tokenizer: PreTrainedTokenizerBase, asked: Sequence[AskedText]
) -> TextModel:
    """A model folder, as the options have it generate."""
    from uniattn_pl.inference.generation import load_text_model, tell_positions

    longest, new_tokens = max(len(text.ids) for text in asked), arguments.max_new_tokens
    model = load_text_model(
        folder,
        tokenizer,
        quantization=arguments.quantization,
        h2o_retain_rate=arguments.h2o,
        compiled_tokens=longest + new_tokens if arguments.compile else None,
    )
    tell_positions(model.model, longest, new_tokens)
    return model


def _print_texts(
    model: TextModel, asked: Sequence[AskedText], sampling: Sampling, *, wrapped: bool, **options: Any
) -> None:
    """Print each text as it is made; of a row the question and the answer, too.

    Args:
        wrapped: questions stand in the template of the training rows already.
    """
    for number, question in enumerate(asked):
        if question.expected is not None or (len(asked) > 1 and sys.stdout.isatty()):
            print(f"--- {question.shown.strip()}")
        said = False
        for piece in model.stream(question.ids, sampling, number=number, **options):
            print(piece, end="", flush=True)
            said = said or bool(piece.strip())
        print()
        if not said:
            print(NOTHING + ("" if wrapped else AS_IT_IS), file=sys.stderr)
        if question.expected is not None:
            print(f"--- expected: {question.expected}")


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
