"""Every key of an experiment file: type, default, bounds and meaning, read from the schema that enforces them."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, get_args

from uniattn_pl.config.loaded_config import ARCHITECTURE
from uniattn_pl.config.schema import ExperimentConfig
from uniattn_pl.config.section_fields import section_fields
from uniattn_pl.config.section_lists import section_of
from uniattn_pl.config.typing_rules import default_of, describe, field_hints
from uniattn_pl.config.yaml_scalars import dump_value
from uniattn_pl.errors import UserError, did_you_mean
from uniattn_pl.options import LARGEST

REQUIRED = "required"
ITEM = "[]"  # behind the key of a list whose items are mappings


@dataclass(frozen=True)
class KeyReference:
    """One key.

    Attributes:
        key: dotted, as on the command line.
        hint: its type hint.
        kind: the type in words.
        default: as YAML, or `REQUIRED`.
        limits: allowed values or bounds in words, "" for none.
        help: what it means.
        allowed, minimum, maximum: the same limits, for programs.
    """

    key: str
    hint: Any
    kind: str
    default: str
    limits: str
    help: str
    allowed: tuple[Any, ...] = ()
    minimum: float | None = None
    maximum: float | None = None


@dataclass(frozen=True)
class SectionReference:
    """The keys directly in one section; those of the sections inside it have their own.

    Attributes:
        name: dotted; "" is the top of a file, `architecture.NAME` the options of one architecture.
        summary: what the section is for.
    """

    name: str
    summary: str
    keys: tuple[KeyReference, ...]


def reference() -> list[SectionReference]:
    """Every section in the order of the schema, with those of each architecture behind `architecture`."""
    return [one for section in _sections(ExperimentConfig, ()) for one in (section, *_architectures_behind(section))]


def find_sections(name: str) -> list[SectionReference]:
    """The sections that a name stands for: itself and those inside it; or one with the single key of that name.

    Raises:
        UserError: it is neither.
    """
    sections = reference()
    found = [section for section in sections if section.name == name or section.name.startswith(f"{name}.")]
    if found:
        return found
    for section in sections:
        keys = tuple(key for key in section.keys if key.key == name)
        if keys:
            items = [other for other in sections if other.name == f"{name}{ITEM}"]
            return [dataclasses.replace(section, keys=keys), *items]
    by_architecture = [section for section in sections if section.name == f"{ARCHITECTURE}.{name}"]
    if by_architecture:
        return by_architecture
    names = [section.name for section in sections if section.name]
    keys_there = {key.key: key for section in sections for key in section.keys}
    elsewhere = [key for key in keys_there if key.rpartition(".")[2] == name]
    near = f" Did you mean {' or '.join(elsewhere)}?" if elsewhere else did_you_mean(name, [*names, *keys_there])
    top = ", ".join(name for name in names if "." not in name)
    raise UserError(f"no section and no key is named '{name}'.{near} Sections: {top}.")


def key_names() -> list[str]:
    """Every dotted key that an override may set, those of all architectures included."""
    keys = (key.key for section in reference() for key in section.keys)
    return list(dict.fromkeys(key for key in keys if ITEM not in key))


def _sections(cls: Any, path: tuple[str, ...]) -> Iterator[SectionReference]:
    fields = dict(section_fields(ExperimentConfig))
    own, inner = [], []
    for name, (hint, _) in field_hints(cls).items():
        if dataclasses.is_dataclass(hint):
            inner.append((name, hint))
        else:
            own.append(_key((*path, name), *fields[(*path, name)]))
    yield SectionReference(".".join(path), _first_line(cls), tuple(k for k in own if k.key != ARCHITECTURE))
    for key in own:
        item = section_of(key.hint)
        if item is not None:
            keys = tuple(
                _key((*path, f"{key.key.rpartition('.')[2]}{ITEM}", n), *f) for n, f in field_hints(item).items()
            )
            yield SectionReference(f"{key.key}{ITEM}", _first_line(item), keys)
    for name, hint in inner:
        yield from _sections(hint, (*path, name))
        if not path and name == "model":  # the place it has in the schema
            yield _architecture()


def _architecture() -> SectionReference:
    from uniattn_pl.architectures import available

    names = tuple(available())
    help = "which architecture; in short `architecture: NAME`"
    key = KeyReference(f"{ARCHITECTURE}.name", str, describe(str), "uniattn", _listed(names), help, names)
    return SectionReference(ARCHITECTURE, "Which layers share what; each architecture has its own options.", (key,))


def _architectures_behind(section: SectionReference) -> Iterator[SectionReference]:
    """The options of every architecture, behind the section that names one."""
    if section.name != ARCHITECTURE:
        return
    from uniattn_pl.architectures import available, get_architecture

    for name in available():
        kind = get_architecture(name)
        keys = tuple(_key((ARCHITECTURE, option), *field) for option, field in field_hints(kind).items())
        yield SectionReference(f"{ARCHITECTURE}.{name}", f"{kind.summary[:1].upper()}{kind.summary[1:]}.", keys)


def _key(path: tuple[str, ...], hint: Any, field: dataclasses.Field[Any]) -> KeyReference:
    metadata, default, item = field.metadata, default_of(field), section_of(hint)
    allowed, minimum, maximum = metadata.get("allowed") or (), metadata.get("minimum"), metadata.get("maximum")
    if maximum is None and int in (hint, *get_args(hint)):
        maximum = LARGEST
    return KeyReference(
        ".".join(path),
        hint,
        describe(hint) if item is None else "a list of mappings, or null",
        REQUIRED if default is dataclasses.MISSING else dump_value(default),
        _listed(allowed) or _between(minimum, maximum),
        str(metadata.get("help", "")),
        allowed,
        minimum,
        maximum,
    )


def _listed(values: tuple[Any, ...]) -> str:
    return "" if not values else f"one of {', '.join(map(str, values))}"


def _between(minimum: float | None, maximum: float | None) -> str:
    """Bounds in words; the largest whole number that is read at all is nobody's bound."""
    least = "" if minimum is None else f"at least {minimum:g}"
    most = "" if maximum in (None, LARGEST) else f"at most {maximum:,}"
    return ", ".join(part for part in (least, most) if part)


def _first_line(cls: Any) -> str:
    return (cls.__doc__ or "").partition("\n")[0]
