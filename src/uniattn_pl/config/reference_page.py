"""The configuration reference as a page of Markdown, docs/configuration.md."""

from __future__ import annotations

from collections.abc import Iterator

from uniattn_pl.config.option_reference import KeyReference, SectionReference, reference

SCHEMA_FILE = "experiment.schema.json"

HEAD = f"""\
# Configuration

Every key of an experiment file, generated from the schema by `uniattn-pl list options --format markdown`. On the
command line a key is written with dots, `training.stage2.learning_rate=1e-5`; in a file it is nested. `--print-config`
shows what a command line comes to and where each value is from; `uniattn-pl list options data` prints a section of this
page.

A whole number is at most 2,147,483,647 where nothing less is said. A value may refer to another (`${{name}}`) or to the
environment (`${{oc.env:VARIABLE,default}}`). `include: [FILE, ...]` at the top of a file puts other files below it.

**In an editor.** [{SCHEMA_FILE}]({SCHEMA_FILE}) is the same as a JSON schema: with the YAML language server (VS Code's
YAML extension, Neovim, Emacs, JetBrains) keys are completed, explained and checked as you type. Name it in a file's
first line:

```yaml
# yaml-language-server: $schema=../docs/{SCHEMA_FILE}
```

The path is relative to the file. Without a checkout, `uniattn-pl list options --format json-schema` prints it.

**In a shell**, `eval "$(uniattn-pl completion bash)"` (or `zsh`) completes commands, options, keys and their values.

"""


def reference_page() -> str:
    """The whole page."""
    return HEAD + "\n".join(line for section in reference() for line in _section(section))


def _section(section: SectionReference) -> Iterator[str]:
    yield f"## {section.name or 'The top of a file'}"
    yield ""
    yield section.summary
    yield ""
    if section.keys:
        yield option_table(section)
        yield ""


def option_table(section: SectionReference) -> str:
    """The keys of one section as a table of Markdown."""
    return "\n".join(["| key | value | default | meaning |", "|---|---|---|---|", *map(_row, section.keys)])


def _row(key: KeyReference) -> str:
    name = key.key.rpartition(".")[2]
    value = key.limits if key.allowed else f"{key.kind}{', ' if key.limits else ''}{key.limits}"
    cells = (f"`{name}`", value, f"`{key.default}`", key.help)
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"
