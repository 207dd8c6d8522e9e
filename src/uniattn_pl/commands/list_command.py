"""`list`: the names that a config may use, taken from the code that enforces them."""

from __future__ import annotations

import argparse
import dataclasses

from uniattn_pl.commands.arguments import Parser
from uniattn_pl.commands.family_table import print_families, print_possibilities
from uniattn_pl.config.typing_rules import default_of
from uniattn_pl.display.text_table import print_table
from uniattn_pl.errors import UserError, did_you_mean

DESCRIPTION = """\
Lists what a config may name: architectures with their options, model families and what their layers can be, models
known by name, initialisers; and which engine serves which kind of layer."""
EXAMPLE = "  uniattn-pl list architectures"
TOPICS = ("architectures", "families", "models", "initialisers", "engines")


def add_arguments(parser: Parser) -> None:
    """Add the options of `list`."""
    parser.add_argument("topic", metavar="{" + ",".join(TOPICS) + "}", help="what to list")
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
    if model is not None:
        print_possibilities(model)
        return 0
    tables = {
        "architectures": _architectures,
        "families": print_families,
        "models": _models,
        "initialisers": _initialisers,
        "engines": _engines,
    }
    tables[topic]()
    return 0


def _architectures() -> None:
    from uniattn_pl.architectures import available, get_architecture

    kinds = [get_architecture(name) for name in available()]
    print_table("Architectures", ("name", "what it does"), [(kind.name, kind.summary) for kind in kinds])
    options = [
        (kind.name, field.name, str(field.type), _default(field), str(field.metadata.get("help", "")))
        for kind in kinds
        for field in dataclasses.fields(kind)  # type: ignore[arg-type]  # every architecture is a dataclass
    ]
    print()
    print_table("Options (architecture.OPTION=VALUE)", ("of", "option", "type", "default", "meaning"), options)


def _default(field: dataclasses.Field[object]) -> str:
    value = default_of(field)
    return "required" if value is dataclasses.MISSING else str(value)


def _models() -> None:
    from uniattn_pl.families.catalogue import MODELS

    print_table("Models (model.source=NAME)", ("name", "what it is"), [(n, e.summary) for n, e in MODELS.items()])
    print("\nmodel.source also takes a hub id, a local folder or a .gguf file.")


def _initialisers() -> None:
    from uniattn_pl.config.sections.calibration_section import INITIALISERS

    rows = list(INITIALISERS.items())
    print_table("Initialisers of W_c (calibration.initialiser=NAME)", ("name", "what it does"), rows)


def _engines() -> None:
    from uniattn_pl.commands.engine_table import engine_rows

    columns, rows = engine_rows()
    print_table("Engines, and the layers of a Llama that they serve", tuple(columns), [tuple(row) for row in rows])
    print("\n`not run`: written, and tried by nobody yet. docs/serving.md says how each engine gets the model.")
