"""A chat template: conversations as the text that a model reads, and which of it the assistant says.

Where the template marks what the assistant says (`{% generation %}`), that is what is learned. Where it does not, a
turn is what it adds to the text of the turns before it and the header of an answer; the text so far must not change by
it, which is looked at for every turn.
"""

from __future__ import annotations

import datetime
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from jinja2 import TemplateError, TemplateSyntaxError

from uniattn_pl.config.sections.data_section import CHAT, PAPER, DataConfig
from uniattn_pl.data.chat_turns import ASSISTANT, Message
from uniattn_pl.data.chats import Chat
from uniattn_pl.data.prompt_ids import special_text
from uniattn_pl.errors import UserError
from uniattn_pl.families.encoder_decoder import decoder_start
from uniattn_pl.file_contents import unreadable
from uniattn_pl.resilience.identity import TEMPLATE, Contents

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Span = tuple[int, int]
_TAG = re.compile(r"\{%-?\s*generation\s*-?%\}")
_FORMAT = re.compile(r"""strftime_now\(\s*(?:"([^"]*)"|'([^']*)')\s*\)""")
# What a template that writes today's date is told, so that rows are the same ones tomorrow: Llama-3's own default.
_DATE = datetime.datetime(2024, 7, 26)
# What the code of a template may raise on a conversation that it was not written for.
TEMPLATE_RAISES = (TemplateError, TypeError, ValueError, LookupError, ArithmeticError, AttributeError, RecursionError)


class RefusedChat(ValueError):
    """A conversation that the template cannot write, or in which nothing tells what the assistant says."""


@dataclass(frozen=True)
class ChatTemplate:
    """How conversations become text for one tokenizer's model.

    Args:
        tokenizer: of the model.
        jinja: the template, or several by name, as transformers keeps it.
        place: where it is from, in words.
        last_only: the last turn alone is learned.
    """

    tokenizer: PreTrainedTokenizerBase
    jinja: str | Mapping[str, str]
    place: str
    last_only: bool = False

    @classmethod
    def of(cls, config: DataConfig, tokenizer: PreTrainedTokenizerBase) -> ChatTemplate | None:
        """The template that an experiment's rows are put into; None: the paper's prompt.

        Raises:
            UserError: there is no such file, it is no template, or the model cannot be taught by one.
        """
        if config.template == PAPER:
            return None
        last_only = config.loss_turns == "last"
        if config.template == CHAT:
            jinja, place = getattr(tokenizer, "chat_template", None), "the model's chat template"
            if not jinja:
                raise UserError(
                    f"data.template={CHAT}: the model has no chat template; give one as a Jinja file "
                    f"(data.template=FILE), or use the paper's prompt (data.template={PAPER})."
                )
        else:
            jinja, place = read_template(Path(config.template)), f"the chat template '{config.template}'"
        if not getattr(tokenizer, "is_fast", False):
            raise UserError(
                f"data.template={config.template}: this model's tokenizer does not tell which characters a token is "
                "of, so that turns cannot be found among tokens; it needs a tokenizer.json."
            )
        if decoder_start(tokenizer) is not None and not last_only:
            raise UserError(
                "data.loss_turns=all: this model has an encoder, which reads all in front of the one turn that its "
                "decoder writes; set data.loss_turns=last."
            )
        return cls(tokenizer, jinja, place, last_only)

    @property
    def contents(self) -> Contents:
        """What rows depend on beside themselves."""
        named = {"default": self.jinja} if isinstance(self.jinja, str) else self.jinja
        parts = {name: text.encode() for name, text in named.items()}
        return Contents.named(self.place, parts | {"learned turns": b"last" if self.last_only else b"all"})

    @cached_property
    def special(self) -> re.Pattern[str]:
        """Finds the text of a special token."""
        return special_text(self.tokenizer)

    def render(
        self, messages: Sequence[Message], tools: list[Message] | None, *, prompt: bool = False, continues: bool = False
    ) -> tuple[str, list[Span]]:
        """Return the text of a conversation, and the characters that the template marks as the assistant's.

        Args:
            prompt: with the header of the answer that comes next.
            continues: the last turn is not over: nothing follows its text.

        Raises:
            RefusedChat: with the template's reason.
        """
        from transformers.utils.chat_template_utils import render_jinja_template

        template, render = self.for_tools(tools), cast(Any, render_jinja_template)
        try:
            texts, blocks = render(
                [list(messages)],
                tools,
                chat_template=template,
                return_assistant_tokens_mask=_TAG.search(template) is not None,
                add_generation_prompt=prompt,
                continue_final_message=continues,
                **self.tokenizer.special_tokens_map,
            )
        except TEMPLATE_RAISES as error:
            reason = " ".join(str(error).split()) or type(error).__name__
            raise RefusedChat(f"{self.place} refuses this conversation ({reason[:300]})") from error
        return texts[0], blocks[0] if blocks else []

    def prompt_ids(self, messages: Sequence[Message], tools: list[Message] | None = None) -> list[int]:
        """The tokens of a conversation up to where the next answer begins. Raises RefusedChat."""
        text, _ = self.render(messages, tools, prompt=True)
        return list(self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])  # type: ignore[arg-type]

    def for_tools(self, tools: list[Message] | None) -> str:
        """The template of conversations with, or without, tools; its dates are those of one day."""
        jinja = self.jinja
        if not isinstance(jinja, str):
            name = "tool_use" if tools and "tool_use" in jinja else "default"
            jinja = jinja.get(name, next(iter(jinja.values())))
        return of_one_day(jinja)

    def learned(self, chat: Chat, *, continues: bool = False) -> tuple[str, list[Span]]:
        """Return a conversation's text and the characters of each turn that is learned.

        Raises:
            RefusedChat: as `render`; turns cannot be told apart.
        """
        text, blocks = self.render(chat.messages, chat.tools, continues=continues)
        numbers = chat.learned[-1:] if self.last_only else chat.learned
        if continues or _TAG.search(self.for_tools(chat.tools)) is None:
            return text, [self._added(chat, number, text, trimmed=not continues) for number in numbers]
        if not blocks:
            raise RefusedChat(f"{self.place} marks nothing of this conversation by {{% generation %}}")
        spoken = tuple(number for number, message in enumerate(chat.messages) if message["role"] == ASSISTANT)
        if numbers == spoken:
            return text, blocks
        if len(blocks) == len(spoken):
            return text, [blocks[spoken.index(number)] for number in numbers]
        return text, [block for number in numbers for block in blocks if self._is_of(chat, number, text, block)]

    def _added(self, chat: Chat, number: int, text: str, *, trimmed: bool) -> Span:
        """The characters that a turn adds, up to the special token that closes it."""
        before = self._before(chat, number, prompt=True)
        through = text
        if number + 1 < len(chat.messages):
            through, _ = self.render(chat.messages[: number + 1], chat.tools)
        for shorter, longer in ((through, text), (before, through)):
            if not longer.startswith(shorter):
                raise RefusedChat(self._changes(number, shorter, longer))
        said = through[len(before) :]
        closed = said.rstrip()
        ends = [match.end() for match in self.special.finditer(closed)]
        return len(before), len(before) + len(closed if trimmed and ends and ends[-1] == len(closed) else said)

    def _before(self, chat: Chat, number: int, *, prompt: bool) -> str:
        try:
            return self.render(chat.messages[:number], chat.tools, prompt=prompt)[0]
        except RefusedChat as error:
            raise RefusedChat(
                f"{error}, cut in front of turn {number + 1}, so that nothing tells where that turn begins" + _MARKED
            ) from None

    def _is_of(self, chat: Chat, number: int, text: str, block: Span) -> bool:
        """Whether marked characters are of one message."""
        before = self._before(chat, number, prompt=False)
        through, _ = self.render(chat.messages[: number + 1], chat.tools)
        for shorter in (before, through):
            if not text.startswith(shorter):
                raise RefusedChat(self._changes(number, shorter, text))
        return len(before) <= block[0] and block[1] <= len(through)

    def _changes(self, number: int, shorter: str, longer: str) -> str:
        at = next((i for i, (a, b) in enumerate(zip(shorter, longer, strict=False)) if a != b), len(longer))
        return (
            f"{self.place} writes what is in front of the end of turn {number + 1} otherwise once more follows "
            f"({shorter[at : at + 20]!r} becomes {longer[at : at + 20]!r}), so that nothing tells what the assistant "
            "says there; data.loss_turns=last learns the last turn alone" + _MARKED
        )


def template_contents(template: ChatTemplate | None) -> dict[str, Contents]:
    """A chat template by content, under its name in `resilience.identity`; nothing of the paper's prompt."""
    return {} if template is None else {TEMPLATE: template.contents}


_MARKED = (
    "; or mark what it says by {% generation %} and {% endgeneration %} in a template of your own (data.template=FILE)"
)


def use_template(config: DataConfig, tokenizer: PreTrainedTokenizerBase) -> None:
    """Let a tokenizer have the template of an experiment's file, with which it is then saved.

    Raises:
        UserError: as `read_template`.
    """
    if config.template not in (PAPER, CHAT):
        tokenizer.chat_template = read_template(Path(config.template))


def read_template(file: Path) -> str:
    """Return the Jinja template in a file.

    Raises:
        UserError: it cannot be read, or is no template; names the line.
    """
    from transformers.utils.chat_template_utils import render_jinja_template

    try:
        text = file.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise UserError(f"data.template: {unreadable(file, error)}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"data.template: '{file}' is no UTF-8 text: byte {error.start} is not.") from error
    if not text.strip():
        raise UserError(f"data.template: '{file}' is empty; it must hold a Jinja template of `messages`.")
    try:
        render_jinja_template([[]], chat_template=text)
    except TemplateSyntaxError as error:
        raise UserError(
            f"data.template: '{file}', line {error.lineno}: no Jinja template ({error.message})."
        ) from error
    except TEMPLATE_RAISES:  # no conversation is empty: the template can be read, which is what is looked at
        pass
    return text


def of_one_day(template: str) -> str:
    """The template with a date of its own in the place of today's; any other as it is."""
    found = _FORMAT.findall(template)
    if not found or len(found) < template.count("strftime_now("):  # a format that the template makes up as it goes
        return template
    formats = dict.fromkeys(first or second for first, second in found)
    cases = "".join(
        f"{'{% elif' if number else '{% if'} format == {given!r} %}}{_DATE.strftime(given)}"
        for number, given in enumerate(formats)
    )
    return f"{{% macro strftime_now(format) %}}{cases}{{% endif %}}{{% endmacro +%}}{template}"
