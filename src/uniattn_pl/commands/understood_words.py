"""What people type who come from other programs, as this one's words: `--training.batch_size=8`, `fit exp.yaml`."""

from __future__ import annotations

import re
from collections.abc import Sequence

YAML_SUFFIXES = (".yaml", ".yml")
_DOTTED = re.compile(r"--([A-Za-z_]\w*(?:\.[\w-]+)+)(=.*)?", re.DOTALL)
_TOP_KEYS = ("name", "seed", "architecture")  # keys without a dot


def understood(words: Sequence[str], options: Sequence[str], valued: Sequence[str]) -> list[str]:
    """The words of a command that takes a config, with keys and files in the form that its parser reads.

    Args:
        words: as typed.
        options: the command's own, `--dry-run` for instance; they stay what they are.
        valued: those of them that are followed by a value, which is not looked at.
    """
    result: list[str] = []
    rest = list(words)
    while rest:
        word = rest.pop(0)
        key = _key(word, options)
        if key is not None:
            _, equals, value = word.partition("=")
            if not equals and rest and not rest[0].startswith("--"):
                value = rest.pop(0)
            # without a value it is read as an override that lacks one, which says what is expected
            result.append(f"{key}={value}" if equals or value else key)
        elif word.endswith(YAML_SUFFIXES) and "=" not in word and not word.startswith("-"):
            result += ["--config", word]
        else:
            result.append(word)
            if word in valued and rest:
                result.append(rest.pop(0))
    return result


def _key(word: str, options: Sequence[str]) -> str | None:
    """The config key that a word begins with as if it were an option; None: it does not."""
    name = word.partition("=")[0]
    if name in options:
        return None
    dotted = _DOTTED.fullmatch(word)
    if dotted:
        return dotted[1].replace("-", "_")
    return name[2:] if name[:2] == "--" and name[2:] in _TOP_KEYS else None


def keys_like(option: str) -> str:
    """A hint at the config keys that an unknown option such as `--batch_size` may mean, "" for none."""
    from uniattn_pl.config.option_reference import key_names

    name = option.lstrip("-").replace("-", "_")
    keys = [key for key in key_names() if key.rpartition(".")[2] == name]
    return (
        f" Keys of the config are written without dashes: {' or '.join(f'{key}=...' for key in keys)}." if keys else ""
    )
