"""What is wrong with a row, in the words that every format uses."""

from __future__ import annotations

from collections.abc import Iterable

from uniattn_pl.errors import did_you_mean

LONGEST_SHOWN = 200  # characters of what is wrong in a row


class BadRow(ValueError):
    """A row that cannot be mapped; the reader adds the file and the line."""


def nearest_key(keys: Iterable[object], missing: tuple[str, ...]) -> str:
    """Return " (is 'outptu' meant to be 'output'?)" when a key that is there resembles one that is missing."""
    for key in missing:
        for candidate in sorted(map(str, keys)):
            if candidate != key and did_you_mean(candidate, (key,)):
                return f" (is '{candidate}' meant to be '{key}'?)"
    return ""


def kind_of(value: object) -> str:
    """What JSON calls a value."""
    names = {
        type(None): "null",
        bool: "a boolean",
        int: "a number",
        float: "a number",
        str: "a string",
        list: "a list",
        dict: "an object",
    }
    return names.get(type(value), f"a {type(value).__name__}")


def shown(value: object) -> str:
    """A wrong value in a message; of a long one its beginning."""
    return repr(shortened(value)) if isinstance(value, str) else shortened(repr(value))


def shortened(text: str) -> str:
    """A text, or the beginning of a long one."""
    return text if len(text) <= LONGEST_SHOWN else f"{text[:LONGEST_SHOWN]}..."


def check_unicode(text: str, what: str) -> None:
    """Refuse half characters (`"\\ud83d"`), which JSON can say and no tokenizer can read.

    Raises:
        BadRow: there is one in `text`, which is `what` of the row.
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        half = f"\\u{ord(text[error.start]):04x}"
        raise BadRow(
            f"the text of its {what} has half a character ({half}, at character {error.start + 1}): a surrogate "
            "without its other half, as when a text is cut inside an emoji"
        ) from None
