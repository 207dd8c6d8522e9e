"""The schema of experiment files as a JSON schema, for editors that check and complete YAML.

It is as strict as an editor can be: types, allowed values, bounds and unknown keys. Rules between keys are checked by
the program alone (`config/checks.py`).
"""

from __future__ import annotations

import types
from typing import Any, Union, get_args, get_origin

from uniattn_pl.config.loaded_config import ARCHITECTURE
from uniattn_pl.config.option_reference import ITEM, REQUIRED, KeyReference, SectionReference, reference
from uniattn_pl.config.yaml_documents import INCLUDE
from uniattn_pl.config.yaml_scalars import parse_value

DRAFT = "http://json-schema.org/draft-07/schema#"
REFERENCE = {"type": "string", "pattern": r"\$\{"}  # `${name}` may stand for any value
TEXT = ["string", "number"]  # `name: 1.10` is text where text is asked for
TYPES = {bool: "boolean", int: "integer", float: "number", str: TEXT, type(None): "null"}
# Keys that have a short form, or one that lists several: what they may be besides their own type.
SHORT_FORMS: dict[str, list[dict[str, Any]]] = {
    "data.source": [{"type": "array", "items": {"type": "string"}}, {"type": "object"}]
}


def experiment_schema() -> dict[str, Any]:
    """The JSON schema of an experiment file."""
    sections = {section.name: section for section in reference()}
    schema = _object(sections[""], sections)
    files = {"type": "string", "description": "a file, relative to this one"}
    schema["properties"][INCLUDE] = {
        "description": "files whose values are laid below this file's",
        "anyOf": [files, {"type": "array", "items": files}],
    }
    return {"$schema": DRAFT, "title": "uniattn_pl experiment", **schema}


def _object(section: SectionReference, sections: dict[str, SectionReference]) -> dict[str, Any]:
    """The mapping that a section is, with the sections in it."""
    prefix = f"{section.name}." if section.name else ""
    properties = {key.key.rpartition(".")[2]: _value(key, sections) for key in section.keys}
    for name, inner in sections.items():
        word = name.removeprefix(prefix)
        if name.startswith(prefix) and word and "." not in word and ITEM not in word:
            properties[word] = _architecture(sections) if name == ARCHITECTURE else _object(inner, sections)
    # a section whose keys are all commented out is null
    return {
        "type": ["object", "null"],
        "description": section.summary,
        "additionalProperties": False,
        "properties": properties,
    }


def _architecture(sections: dict[str, SectionReference]) -> dict[str, Any]:
    """A name, or a mapping: which options there are depends on the name, which may stand in another file."""
    kinds = {name.rpartition(".")[2]: s for name, s in sections.items() if name.startswith(f"{ARCHITECTURE}.")}
    name_key = sections[ARCHITECTURE].keys[0]
    # an architecture of an installed package has a name that is not here
    names = {"anyOf": [{"enum": list(name_key.allowed)}, {"type": "string"}]}
    every: dict[str, Any] = {"name": names}
    for kind in kinds.values():
        for option in kind.keys:
            every.setdefault(option.key.rpartition(".")[2], {})
    rules = [
        {
            "if": {"required": ["name"], "properties": {"name": {"const": name}}},
            "then": {
                "additionalProperties": False,
                "properties": {"name": {}} | {key.key.rpartition(".")[2]: _value(key, sections) for key in kind.keys},
            },
        }
        for name, kind in kinds.items()
    ]
    mapping = {"type": "object", "properties": every, "allOf": rules}
    return {"description": sections[ARCHITECTURE].summary, "anyOf": [names, mapping]}


def _value(key: KeyReference, sections: dict[str, SectionReference]) -> dict[str, Any]:
    items = sections.get(f"{key.key}{ITEM}")
    if items is not None:
        forms: list[dict[str, Any]] = [
            {"type": "array", "items": _object(items, sections) | {"type": "object"}},
            {"type": "null"},
        ]
    else:
        forms = _forms(key.hint, key)
    forms = [*forms, *SHORT_FORMS.get(key.key, [])]
    if {"type": TEXT} not in forms and not any(form == {} for form in forms):
        forms.append(REFERENCE)
    described: dict[str, Any] = {"description": key.help}
    if key.default != REQUIRED:
        described["default"] = parse_value(key.default)
    return described | (forms[0] if len(forms) == 1 else {"anyOf": forms})


def _forms(hint: Any, key: KeyReference) -> list[dict[str, Any]]:
    """What a value may look like; allowed values are those of text, bounds those of numbers."""
    if hint is Any:
        return [{}]
    origin = get_origin(hint)
    if origin in (Union, types.UnionType):
        return [form for member in get_args(hint) for form in _forms(member, key)]
    if origin is list:
        (item,) = get_args(hint)
        items = _forms(item, key)
        return [{"type": "array", "items": items[0] if len(items) == 1 else {"anyOf": items}}]
    if origin is dict or hint is dict:
        return [{"type": "object"}]
    if key.allowed and hint is not type(None):
        return [{"enum": list(key.allowed)}]
    form: dict[str, Any] = {"type": TYPES[hint]}
    if hint in (int, float):
        bounds = {"minimum": key.minimum, "maximum": key.maximum}
        form |= {name: bound for name, bound in bounds.items() if bound is not None}
    return [form]
