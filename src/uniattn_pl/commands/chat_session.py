"""A conversation at the terminal: what was said is kept, an answer comes word by word, Ctrl-C ends it."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from uniattn_pl.inference.chat_prompt import chat_ids

if TYPE_CHECKING:
    from uniattn_pl.inference.generation import TextModel
    from uniattn_pl.inference.token_choice import Sampling

EXIT, NEW = "/exit", "/new"
HELP = f"Say something; {EXIT} or Ctrl-D ends the chat, {NEW} begins another, Ctrl-C ends an answer."


def converse(
    model: TextModel, sampling: Sampling, *, system: str | None, max_new_tokens: int, stop: list[str], most: int | None
) -> None:
    """Read what is said from the terminal (or a pipe, a line each) until it ends, and answer it.

    Args:
        system: the system's message that a conversation begins with; None: the template's own, if it has one.
        most: tokens that the model has positions for; None: it names no limit.

    Raises:
        UserError: the chat template refuses the conversation.
    """
    people = sys.stdin.isatty()
    if people:
        import readline  # noqa: F401  # lines can be edited, and former ones come back

        print(HELP)
    beginning = [] if system is None else [{"role": "system", "content": system}]
    messages, number = list(beginning), 0
    while True:
        try:
            said = input("> " if people else "").strip()
        except (EOFError, KeyboardInterrupt):
            print()
            return
        if said == EXIT:
            return
        if said == NEW:
            messages = list(beginning)
            continue
        if not said:
            continue
        asked = [*messages, {"role": "user", "content": said}]
        ids = chat_ids(model.tokenizer, asked)
        room = max_new_tokens if most is None else min(max_new_tokens, most - len(ids))
        if room < 1:
            print(f"note: {len(ids)} tokens are all that this model has positions for; {NEW} begins another chat.")
            continue
        answer = _answer(model, ids, sampling, room, stop, number)
        messages, number = [*asked, {"role": "assistant", "content": answer}], number + 1


def _answer(
    model: TextModel, ids: list[int], sampling: Sampling, max_new_tokens: int, stop: list[str], number: int
) -> str:
    """Print an answer as it comes and return it; at Ctrl-C what there is of it."""
    said = []
    try:
        for piece in model.stream(ids, sampling, max_new_tokens=max_new_tokens, stop=stop, number=number):
            print(piece, end="", flush=True)
            said.append(piece)
    except KeyboardInterrupt:
        pass
    print()
    return "".join(said)
