"""`list options`: the keys of an experiment file, for people, as a page, or as a JSON schema for editors."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Sequence
from typing import Any

from uniattn_pl.config.option_reference import ITEM, SectionReference, find_sections, reference
from uniattn_pl.display.text_table import print_table, print_text
from uniattn_pl.display.text_width import output_width

TEXT, MARKDOWN, JSON_SCHEMA = FORMATS = ("text", "markdown", "json-schema")
UNLIMITED = 10_000  # columns, of a pipe
_FURTHER: dict[str, Any] = {"initial_indent": " " * 6, "subsequent_indent": " " * 6, "break_on_hyphens": False}


def print_options(section: str | None, form: str) -> None:
    """Print all sections in a table, one section's keys, or the whole reference in another form.

    Raises:
        UserError: there is no such section or key.
    """
    if form == MARKDOWN:
        from uniattn_pl.config.reference_page import reference_page

        print(reference_page(), end="")
    elif form == JSON_SCHEMA:
        from uniattn_pl.config.json_schema import experiment_schema

        print(json.dumps(experiment_schema(), indent=1))
    elif section is None:
        _print_sections()
    else:
        print_sections(find_sections(section))


def print_sections(sections: Sequence[SectionReference]) -> None:
    """Print the keys of sections: default, type and limits, meaning."""
    print("\n\n".join(map(_in_words, sections)))


def _print_sections() -> None:
    rows = [(one.name or "(top)", str(len(one.keys)), one.summary) for one in reference() if ITEM not in one.name]
    print_table("Sections of an experiment file", ("section", "keys", "what it is for"), rows)
    print()
    print_text("`list options SECTION` shows its keys, `list options KEY` one key; docs/configuration.md has all.")


def _in_words(section: SectionReference) -> str:
    """A section as paragraphs, a key as it is written on the command line with its meaning below it."""
    width = output_width() or UNLIMITED
    lines = textwrap.wrap(f"{section.name}: {section.summary}" if section.name else section.summary, width)
    for key in section.keys:
        kind = key.limits if key.allowed else ", ".join(filter(None, (key.kind, key.limits)))
        head = f"  {key.key}={key.default}"
        beside = f"{head}  # {kind}"
        lines += [beside] if len(beside) <= width else [head, *textwrap.wrap(f"# {kind}", width, **_FURTHER)]
        lines += textwrap.wrap(key.help, width, **_FURTHER)
    return "\n".join(lines)
