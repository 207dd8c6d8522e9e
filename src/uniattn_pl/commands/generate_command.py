"""`generate`: text from a post-trained model."""

from __future__ import annotations

import argparse

from uniattn_pl.commands.arguments import Parser, load, whole_number
from uniattn_pl.commands.model_source import add_source_arguments, find_model_folder
from uniattn_pl.errors import UserError
from uniattn_pl.modeling.loading.quantization import QUANTIZATIONS, no_such_quantization

DESCRIPTION = "Generates text with the model of a run, or with any model folder."
EXAMPLE = """\
  uniattn-pl generate --from runs/quickstart --instruction --prompt "Name two causes of chest pain."
  uniattn-pl generate --config experiments/quickstart.yaml --prompt "The heart" --max-new-tokens 20"""

SEEDS = range(2**32)  # of one process: no rank or stage adds to it, as to a config's
LEAST_TEMPERATURE = 1e-6  # far below, logits divided by it are infinite


def add_arguments(parser: Parser) -> None:
    """Add the options of `generate`."""
    add_source_arguments(parser)
    parser.add_argument("--prompt", action="append", default=[], metavar="TEXT", help="may be repeated")
    parser.add_argument("--max-new-tokens", type=whole_number, default=64, metavar="N", help="default: 64")
    parser.add_argument(
        "--temperature", type=float, default=0.0, metavar="T", help="0 (default): always the likeliest token"
    )
    parser.add_argument(
        "--seed", type=int, metavar="N", help="of what is drawn above temperature 0; default: another text every time"
    )
    parser.add_argument(
        "--quantization", metavar="BITS", help="8bit or 4bit weights, through bitsandbytes; default: as saved"
    )
    parser.add_argument(
        "--h2o",
        type=float,
        metavar="RATE",
        help="keep this fraction of the prompt's cache: most attended and most recent tokens; default: all",
    )
    parser.add_argument(
        "--compile",
        action="store_true",
        help="compile the decoding step over a static cache, a CUDA graph on a card: a minute that pays for long texts",
    )
    parser.add_argument(
        "--instruction", action="store_true", help="put each prompt into the template that the training rows use"
    )


def run(arguments: argparse.Namespace) -> int:
    """Check the request, then print one text per prompt."""
    if arguments.print_config:
        print(load(arguments).to_yaml(), end="")
        return 0
    problems = []
    if not arguments.prompt:
        problems.append("generate needs at least one --prompt TEXT.")
    problems += [f"--prompt {text!a} is not text: it has half a character." for text in filter(_half, arguments.prompt)]
    if arguments.max_new_tokens < 1:
        problems.append(f"--max-new-tokens must be at least 1, got {arguments.max_new_tokens}.")
    temperature = arguments.temperature
    if temperature != 0 and not LEAST_TEMPERATURE <= temperature < float("inf"):
        problems.append(f"--temperature is 0, or a number of at least {LEAST_TEMPERATURE:g}; got {temperature:g}.")
    if arguments.seed is not None and arguments.seed not in SEEDS:
        problems.append(f"--seed is a number from 0 to {SEEDS[-1]}; got {arguments.seed}.")
    if arguments.h2o is not None and not 0 < arguments.h2o <= 1:
        problems.append(f"--h2o is a share of the prompt's tokens, above 0 and at most 1; got {arguments.h2o:g}.")
    if arguments.h2o is not None and arguments.compile:
        problems.append(
            "--compile needs a cache of fixed size, and --h2o gives tokens of it up; leave one of them out."
        )
    if arguments.quantization not in (None, *QUANTIZATIONS):
        problems.append(no_such_quantization(arguments.quantization))
    if problems:
        raise UserError(*problems)
    folder = find_model_folder(arguments)
    if arguments.dry_run:
        from uniattn_pl.modeling.loading.pretrained import check_folder

        check_folder(folder)
        print(f"dry run: would generate up to {arguments.max_new_tokens} tokens for each prompt with {folder}.")
        return 0
    from transformers.utils.logging import disable_progress_bar

    from uniattn_pl.inference.generation import generate

    disable_progress_bar()  # of single-file transfers, which take a moment
    texts = generate(
        folder,
        arguments.prompt,
        max_new_tokens=arguments.max_new_tokens,
        temperature=arguments.temperature,
        seed=arguments.seed,
        instruction=arguments.instruction,
        quantization=arguments.quantization,
        h2o_retain_rate=arguments.h2o,
        compiled=arguments.compile,
    )
    for text in texts:
        print(text)
    return 0


def _half(text: str) -> bool:
    """Whether a text has half of a surrogate pair, or bytes that are no UTF-8, which no tokenizer can read."""
    return any("\ud800" <= character <= "\udfff" for character in text)
