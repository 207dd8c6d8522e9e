"""The options of `generate`, and what is wrong with them."""

from __future__ import annotations

import argparse
from collections.abc import Iterator

from uniattn_pl.commands.arguments import Parser, whole_number
from uniattn_pl.config.paths import path_argument
from uniattn_pl.modeling.loading.quantization import QUANTIZATIONS, no_such_quantization

SEEDS = range(2**32)  # of one process: no rank or stage adds to it, as to a config's
NEW_TOKENS, CHAT_TOKENS = 64, 512
LEAST_TEMPERATURE = 1e-6  # far below, logits divided by it are infinite


def add_prompt_arguments(parser: Parser) -> None:
    """Add what is generated from."""
    parser.add_argument("--prompt", action="append", default=[], metavar="TEXT", help="may be repeated")
    parser.add_argument(
        "--input", metavar="TEXT", help="what an instruction is about, as the input of a row; with --instruction"
    )
    parser.add_argument(
        "--row",
        action="append",
        default=[],
        type=whole_number,
        metavar="N",
        help="the N-th held-out row of the run, or of --config, from 0, as it was put to the model; may be repeated",
    )
    parser.add_argument(
        "--prompts",
        type=path_argument,
        metavar="FILE",
        help=".txt: a prompt a line; .jsonl: rows with 'prompt', 'instruction' and 'input', or 'messages'",
    )
    parser.add_argument(
        "--instruction", action="store_true", help="put each prompt into the template that the training rows use"
    )
    parser.add_argument("--chat", action="store_true", help="talk to the model, by its chat template; /exit ends it")
    parser.add_argument("--system", metavar="TEXT", help="what a chat begins with, as the system's message")
    parser.add_argument(
        "--beside",
        type=path_argument,
        metavar="MODEL",
        help="another model's text beside it, tokens/s and bytes of cache: original, the model that the run was made "
        "from, or as --from",
    )


def add_decoding_arguments(parser: Parser) -> None:
    """Add how tokens are chosen, and when a text ends."""
    parser.add_argument(
        "--max-new-tokens",
        type=whole_number,
        metavar="N",
        help=f"default: {NEW_TOKENS}; of a chat's answer {CHAT_TOKENS}",
    )
    parser.add_argument(
        "--temperature", type=float, default=0.0, metavar="T", help="0 (default): always the likeliest token"
    )
    parser.add_argument(
        "--top-p", type=float, default=1.0, metavar="P", help="draw from the likeliest of this probability; default: 1"
    )
    parser.add_argument(
        "--top-k", type=whole_number, default=0, metavar="K", help="draw from the K likeliest; 0 (default): from all"
    )
    parser.add_argument(
        "--seed", type=int, metavar="N", help="of what is drawn above temperature 0; default: another text every time"
    )
    parser.add_argument(
        "--stop", action="append", default=[], metavar="TEXT", help="end a text in front of this; may be repeated"
    )


def add_cost_arguments(parser: Parser) -> None:
    """Add what makes generation cheaper."""
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


def option_problems(given: argparse.Namespace) -> Iterator[str]:
    """What is wrong with the options themselves, before any file is looked at."""
    if given.chat and (given.prompt or given.prompts or given.row):
        yield "--chat asks you for what to say; leave --prompt, --prompts and --row out."
    elif not given.chat and not (given.prompt or given.prompts or given.row):
        yield "generate needs at least one --prompt TEXT, or --prompts FILE, or --row N, or --chat."
    if given.input is not None and not (given.instruction and given.prompt):
        yield "--input is that of an instruction; it needs --instruction and --prompt TEXT."
    if given.system is not None and not given.chat:
        yield "--system is of --chat; leave it out, or put it into the prompt."
    if given.chat and (given.instruction or given.beside or given.compile):
        yield "--chat takes neither --instruction, --beside nor --compile."
    if given.beside and (given.quantization or given.h2o is not None or given.compile):
        yield "--beside runs both models as they are; leave --quantization, --h2o and --compile out."
    texts = {"--prompt": given.prompt, "--stop": given.stop, "--system": [given.system], "--input": [given.input]}
    for option, values in texts.items():
        yield from (
            f"{option} {text!a} is not text: it has half a character." for text in filter(_half, filter(None, values))
        )
    if "" in given.stop:
        yield "--stop needs a text that is not empty."
    yield from _number_problems(given)
    if given.h2o is not None and given.compile:
        yield "--compile needs a cache of fixed size, and --h2o gives tokens of it up; leave one of them out."
    if given.quantization not in (None, *QUANTIZATIONS):
        yield no_such_quantization(given.quantization)


def _number_problems(given: argparse.Namespace) -> Iterator[str]:
    yield from (f"--row is a number from 0; got {number}." for number in given.row if number < 0)
    if given.max_new_tokens is not None and given.max_new_tokens < 1:
        yield f"--max-new-tokens must be at least 1, got {given.max_new_tokens}."
    if given.temperature != 0 and not LEAST_TEMPERATURE <= given.temperature < float("inf"):
        yield f"--temperature is 0, or a number of at least {LEAST_TEMPERATURE:g}; got {given.temperature:g}."
    if not 0 < given.top_p <= 1:
        yield f"--top-p is a probability, above 0 and at most 1; got {given.top_p:g}."
    if given.top_k < 0:
        yield f"--top-k must be at least 0, got {given.top_k}."
    if given.temperature == 0 and (given.top_p != 1 or given.top_k):
        yield "--top-p and --top-k say what is drawn from; they need --temperature T above 0."
    if given.seed is not None and given.seed not in SEEDS:
        yield f"--seed is a number from 0 to {SEEDS[-1]}; got {given.seed}."
    if given.h2o is not None and not 0 < given.h2o <= 1:
        yield f"--h2o is a share of the prompt's tokens, above 0 and at most 1; got {given.h2o:g}."


def _half(text: str) -> bool:
    """Whether a text has half of a surrogate pair, or bytes that are no UTF-8, which no tokenizer can read."""
    return any("\ud800" <= character <= "\udfff" for character in text)
