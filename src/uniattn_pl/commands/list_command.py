"""`list`: the names that a config may use, taken from the code that enforces them."""

from __future__ import annotations

import argparse

from uniattn_pl.commands.arguments import Parser
from uniattn_pl.commands.family_table import print_families, print_possibilities
from uniattn_pl.commands.option_listing import FORMATS, TEXT, print_options, print_sections
from uniattn_pl.config.loaded_config import ARCHITECTURE
from uniattn_pl.config.option_reference import find_sections
from uniattn_pl.display.text_table import print_table, print_text
from uniattn_pl.errors import UserError, did_you_mean

DESCRIPTION = """\
Lists what a config may name: architectures with their options, model families and what their layers can be, models
known by name, initialisers; every key of an experiment file; and which engine serves which kind of layer."""
SHOWS_TABLES = True
EXAMPLE = """\
  uniattn-pl list architectures
  uniattn-pl list options training.stage2
  uniattn-pl list families --model tiny-t5"""
OPTIONS = "options"
TOPICS = {
    "architectures": "what can be made of a model, and the options of each",
    "families": "model families that are tested, and what their layers can be",
    "models": "names that model.source takes besides hub ids, folders and files",
    "initialisers": "how W_c is fitted",
    "engines": "what serves which kind of layer",
    "api": "the public names of Python, as a page of Markdown",
    OPTIONS: "every key of an experiment file: type, default, bounds, meaning",
}


def add_arguments(parser: Parser) -> None:
    """Add the options of `list`."""
    topics = "; ".join(f"{topic}: {text}" for topic, text in TOPICS.items())
    parser.add_argument("topic", metavar="TOPIC", help=topics)
    parser.add_argument(
        "section", nargs="?", metavar="SECTION", help="with options: a section, a key or an architecture"
    )
    parser.add_argument(
        "--format", choices=FORMATS, default=TEXT, help="with options: a page of Markdown, or a JSON schema for editors"
    )
    parser.add_argument(
        "--model",
        metavar="MODEL",
        help="with families: what can be made of this model (a name, hub id, folder or config.json), and why not more",
    )


def run(arguments: argparse.Namespace) -> int:
    """Print the table of one topic."""
    topic, model = arguments.topic, arguments.model
    if topic not in TOPICS:
        raise UserError(f"cannot list '{topic}'.{did_you_mean(topic, TOPICS)} Topics: {', '.join(TOPICS)}.")
    if model is not None and topic != "families":
        raise UserError(f"--model is for `list families`, not for `list {topic}`.")
    if topic == OPTIONS:
        print_options(arguments.section, arguments.format)
        return 0
    if arguments.section is not None or arguments.format != TEXT:
        raise UserError(f"SECTION and --format are for `list options`, not for `list {topic}`.")
    if model is not None:
        print_possibilities(model)
        return 0
    tables = {
        "architectures": _architectures,
        "families": print_families,
        "models": _models,
        "initialisers": _initialisers,
        "engines": _engines,
        "api": _api,
    }
    tables[topic]()
    return 0


def _architectures() -> None:
    from uniattn_pl.architectures import available, get_architecture

    kinds = [get_architecture(name) for name in available()]
    print_table("Architectures", ("name", "what it does"), [(kind.name, kind.summary) for kind in kinds])
    print("\nOptions (architecture.OPTION=VALUE)\n")
    print_sections([one for one in find_sections(ARCHITECTURE) if one.keys and one.name != ARCHITECTURE])


def _api() -> None:
    from uniattn_pl.api.api_page import api_page
    from uniattn_pl.extras import require_extra

    require_extra("training", "the page of all names")
    print(api_page(), end="")


def _models() -> None:
    from uniattn_pl.families.catalogue import MODELS

    print_table("Models (model.source=NAME)", ("name", "what it is"), [(n, e.summary) for n, e in MODELS.items()])
    print()
    print_text("model.source also takes a hub id, a local folder or a .gguf file.")


def _initialisers() -> None:
    from uniattn_pl.config.sections.calibration_section import INITIALISERS

    rows = list(INITIALISERS.items())
    print_table("Initialisers of W_c (calibration.initialiser=NAME)", ("name", "what it does"), rows)


def _engines() -> None:
    from uniattn_pl.commands.engine_table import engine_rows

    columns, rows = engine_rows()
    print_table("Engines, and the layers of a Llama that they serve", tuple(columns), [tuple(row) for row in rows])
    print()
    print_text("`not run`: written, and tried by nobody yet. docs/serving.md says how each engine gets the model.")
