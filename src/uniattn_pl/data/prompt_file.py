"""Prompts from a file: a line each, or JSON rows as training has them."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from uniattn_pl.data.chat_turns import Message, read_turns
from uniattn_pl.data.prompts import format_prompt
from uniattn_pl.data.row_problems import shown
from uniattn_pl.data.rows import Row
from uniattn_pl.errors import UserError, did_you_mean

SUFFIXES = (".txt", ".jsonl")
FIELDS = ("prompt", "instruction", "input", "messages")


@dataclass(frozen=True)
class AskedPrompt:
    """A prompt as the model reads it, and as people know it.

    Attributes:
        text: with the paper's prompt, where a template is asked for; empty: it is a conversation.
        shown: without.
        messages: what a chat template is given, where a template is asked for; None: there is none.
    """

    text: str
    shown: str
    messages: tuple[Message, ...] | None = None

    @classmethod
    def of(cls, text: str, *, instruction: bool = False, context: str = "") -> AskedPrompt:
        """Of a text; as an instruction, with its input, it is put into the training template."""
        return cls.of_row(Row(text, context, "")) if instruction else cls(text, text)

    @classmethod
    def of_row(cls, row: Row) -> AskedPrompt:
        """Of a row without its answer."""
        return cls(format_prompt(row.instruction, row.input), row.instruction, tuple(row.conversation.asked))


def read_prompts(file: Path, *, instruction: bool = False) -> list[AskedPrompt]:
    """Return the prompts of a file.

    Args:
        file: .txt, where empty lines are left out; .jsonl, where a row has `prompt`, or `instruction` and perhaps
            `input`, which are put into the template that the training rows use, or `messages`, which the model's chat
            template takes. Other fields are not looked at.
        instruction: put plain prompts into that template, too.

    Raises:
        UserError: there is no such file, it is of no such kind, holds no prompt, or naming every line that has none.
    """
    if file.suffix not in SUFFIXES:
        raise UserError(f"--prompts '{file}' ends in '{file.suffix}'; allowed are {', '.join(SUFFIXES)}.")
    if not file.is_file():
        names = [entry.name for entry in file.parent.iterdir()] if file.parent.is_dir() else []
        raise UserError(f"--prompts: there is no file '{file}'.{did_you_mean(file.name, names)}")
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise UserError(f"--prompts '{file}' is no UTF-8 text: byte {error.start} is not.") from error
    prompts, problems = [], []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        if file.suffix == ".txt":
            prompts.append(AskedPrompt.of(line, instruction=instruction))
            continue
        try:
            prompts.append(_of_row(line, instruction))
        except ValueError as error:
            problems.append(f"{file}, line {number}: {error}")
    if problems:
        raise UserError(*problems)
    if not prompts:
        raise UserError(f"--prompts '{file}' holds no prompt.")
    return prompts


def _of_row(line: str, instruction: bool) -> AskedPrompt:
    """The prompt of a JSON line. Raises ValueError where there is none."""
    try:
        row = json.loads(line)
    except ValueError as error:
        raise ValueError(f"no JSON ({error}).") from None
    if not isinstance(row, dict):
        raise ValueError("expected an object with 'prompt', with 'instruction' and 'input', or with 'messages'.")
    given = {name: row[name] for name in FIELDS if row.get(name) is not None}
    turns = given.pop("messages", None)
    wrong = next((name for name, value in given.items() if not isinstance(value, str)), None)
    if wrong is not None:
        raise ValueError(f"'{wrong}' is a text, got {shown(given[wrong])}.")
    if "prompt" in given:
        return AskedPrompt.of(given["prompt"], instruction=instruction)
    if "instruction" in given:
        return AskedPrompt.of_row(Row(given["instruction"], given.get("input", ""), ""))
    if turns is not None:
        messages = [turn.message for turn in read_turns(turns, "messages", {})]
        if not messages:
            raise ValueError("'messages' is empty; it must hold what is asked.")
        return AskedPrompt("", str(messages[-1]["content"]), tuple(messages))
    near = next((hint for key in row if (hint := did_you_mean(str(key), FIELDS))), "")
    raise ValueError(f"a row has 'prompt', 'instruction' and 'input', or 'messages'; this one has none of them.{near}")
