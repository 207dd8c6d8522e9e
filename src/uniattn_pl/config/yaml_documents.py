"""YAML files, their includes and command-line overrides, read into flat entries that know where they stand.

Nothing is evaluated here: files go through a safe YAML loader, and interpolations stay text.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import yaml

from uniattn_pl.config.presets import SCHEME, preset_file, presets
from uniattn_pl.config.yaml_scalars import UNREADABLE, Loader, dump_value, repeated_keys
from uniattn_pl.errors import UserError, did_you_mean, nearest_path

KeyPath = tuple[str, ...]
INCLUDE = "include"
DEFAULT = "default"
ARGUMENTS = "argument"  # where a value of a dictionary stands
SHOWN = 200  # characters of an override in a message


@dataclass(frozen=True)
class Entry:
    """One value a user wrote, its place (`origins[i]` is where the i-th key of `path` stands) and its raw text."""

    path: KeyPath
    origins: tuple[str, ...]
    value: Any
    text: str | None

    @property
    def key(self) -> str:
        """The dotted key."""
        return ".".join(self.path)

    @property
    def origin(self) -> str:
        """Where the value itself was written: `file:line`, or the override."""
        return self.origins[-1]


@dataclass(frozen=True)
class Layer:
    """The entries of one file, or of all overrides together; later layers win."""

    entries: tuple[Entry, ...]


def read_file(file: Path, is_leaf: Callable[[KeyPath], bool], problems: list[str]) -> list[Layer]:
    """Return the layers of a file, preceded by those of what it includes; problems are appended."""
    return _Reader(is_leaf, problems).read(file, (), None)


def read_mapping(values: Mapping[str, Any], is_leaf: Callable[[KeyPath], bool], problems: list[str]) -> list[Layer]:
    """Return the layers of a dictionary that says what a file would; dotted keys are those that they name.

    What it includes is found from the present folder.
    """
    try:
        root = yaml.compose(dump_value(_nested(values)), Loader=Loader)
    except (TypeError, ValueError, yaml.YAMLError) as error:
        problems.append(f"{ARGUMENTS}: not what a YAML file can hold: {_reason(error)}.")
        return []
    if not isinstance(root, yaml.MappingNode):
        return []
    return _Reader(is_leaf, problems).layers(Path(ARGUMENTS), root, (), partial(_same, ARGUMENTS))


def _nested(values: Mapping[str, Any]) -> dict[str, Any]:
    root: dict[str, Any] = {}
    for key, value in values.items():
        *sections, last = str(key).split(".")
        node = root
        for section in sections:
            node = node.setdefault(section, {})
        value = _nested(value) if isinstance(value, Mapping) else str(value) if isinstance(value, Path) else value
        old = node.get(last)
        node[last] = {**old, **value} if isinstance(old, dict) and isinstance(value, dict) else value
    return root


def read_overrides(overrides: Sequence[str], is_leaf: Callable[[KeyPath], bool], problems: list[str]) -> Layer:
    """Return `key.path=value` words as one layer, so that their order matters only for the same key."""
    reader = _Reader(is_leaf, problems)
    entries: list[Entry] = []
    for override in overrides:
        key, equals, text = override.partition("=")
        origin = f"override '{override if len(override) <= SHOWN else override[:SHOWN] + '...'}'"
        if not equals or not key.strip():
            problems.append(f"{origin}: expected key.path=value, for example seed=1.")
            continue
        path = tuple(part.strip() for part in key.split("."))
        if path == (INCLUDE,):
            problems.append(f"{origin}: include works inside a file only; use --config {text}.")
            continue
        try:
            node = yaml.compose(text, Loader=Loader) or yaml.ScalarNode("tag:yaml.org,2002:null", "")
            entries += reader.flatten(node, path, (origin,) * len(path), partial(_same, origin))
        except UNREADABLE as error:
            problems.append(f"{origin}: not a YAML value ({_reason(error)}); quote the value.")
    return Layer(tuple(entries))


class _Reader:
    """Reads one `--config` file and what it includes."""

    def __init__(self, is_leaf: Callable[[KeyPath], bool], problems: list[str]) -> None:
        self.is_leaf = is_leaf
        self.problems = problems

    def read(self, file: Path, including: tuple[Path, ...], included_at: str | None) -> list[Layer]:
        """Return the layers of one file; `including` is the chain of files that led to it."""
        named_by = f"{included_at}: include" if included_at else "--config"
        if file.resolve() in [parent.resolve() for parent in including]:
            chain = " -> ".join(str(f) for f in (*including, file))
            self.problems.append(f"{named_by} '{file}': the file includes itself ({chain}).")
            return []
        root = self._compose(file, named_by)
        if root is None:
            return []
        if not isinstance(root, yaml.MappingNode):
            line = root.start_mark.line + 1
            self.problems.append(f"{file}:{line}: a config file holds `key: value` lines, not {_kind(root)}.")
            return []
        try:
            return self.layers(file, root, including, partial(_line_of, file))
        except UNREADABLE as error:
            self.problems.append(f"{_place(file, error)}: {_reason(error)}.")
            return []

    def _compose(self, file: Path, named_by: str) -> yaml.Node | None:
        if not file.is_file():
            hint = "" if file.is_dir() else nearest_path(file) or did_you_mean(str(file), presets())
            problem = "is a folder, not a file." if file.is_dir() else f"does not exist.{hint}"
            self.problems.append(f"{named_by} '{file}' {problem}")
            return None
        try:
            root = yaml.compose(file.read_text(encoding="utf-8"), Loader=Loader)
        except yaml.YAMLError as error:
            self.problems.append(f"{_place(file, error)}: not valid YAML: {_reason(error)}.")
        except (OSError, UnicodeDecodeError, RecursionError) as error:
            self.problems.append(f"{named_by} '{file}' cannot be read: {error}.")
        else:
            if root is None:
                self.problems.append(f"{file}: the file is empty; it needs at least one `key: value` line.")
            return root
        return None

    def layers(
        self, file: Path, root: yaml.MappingNode, including: tuple[Path, ...], place: Callable[[yaml.Node], str]
    ) -> list[Layer]:
        """Return the layers of a file's contents: what it includes, and itself."""
        entries = self.flatten(root, (), (), place)
        layers: list[Layer] = []
        for entry in (e for e in entries if e.path == (INCLUDE,)):
            names = entry.value if isinstance(entry.value, list) else [entry.value]
            if not all(isinstance(name, str) for name in names):
                self.problems.append(f"{entry.origin}: include: expected a file name or a list of file names.")
                continue
            for name in names:
                target = self._included(file, name, entry.origin)
                layers += [] if target is None else self.read(target, (*including, file), entry.origin)
        return [*layers, Layer(tuple(e for e in entries if e.path != (INCLUDE,)))]

    def _included(self, file: Path, name: str, origin: str) -> Path | None:
        if not name.startswith(SCHEME):
            return Path(os.path.normpath(file.parent / Path(name).expanduser()))
        try:
            return preset_file(name)
        except UserError as error:
            self.problems += [f"{origin}: include: {problem}" for problem in error.problems]
            return None

    def flatten(
        self, node: yaml.Node, path: KeyPath, origins: tuple[str, ...], place: Callable[[yaml.Node], str]
    ) -> list[Entry]:
        """Turn a YAML node into entries; mappings are opened until `is_leaf(path)`."""
        if path == (INCLUDE,) or self.is_leaf(path) or not isinstance(node, yaml.MappingNode):
            if path and node.value == "" and node.tag.endswith(":null") and not self.is_leaf(path):
                return []  # a section whose keys are all commented out
            return [Entry(path, origins, _construct(node), node.value if isinstance(node, yaml.ScalarNode) else None)]
        for first, again in repeated_keys(node):
            name = ".".join((*path, again.value))
            self.problems.append(f"{place(again)}: '{name}' is set twice, first at {place(first)}.")
        Loader("").flatten_mapping(node)  # resolves `<<: *anchor`; what it brings in comes first and is replaced
        entries: dict[str, list[Entry]] = {}
        for key_node, value_node in node.value:
            origin, key = place(key_node), key_node.value
            if not isinstance(key_node, yaml.ScalarNode) or not key:
                self.problems.append(f"{origin}: a key must be a word.")
                continue
            entries[key] = self.flatten(value_node, (*path, key), (*origins, origin), place)
        return [entry for of_key in entries.values() for entry in of_key]


def _line_of(file: Path, node: yaml.Node) -> str:
    return f"{file}:{node.start_mark.line + 1}"


def _same(origin: str, _node: yaml.Node) -> str:
    return origin


def at(origin: str) -> str:
    """Return the beginning of a message about a value that was set at `origin`."""
    return "" if origin == DEFAULT else f"{origin}: "


def _construct(node: yaml.Node) -> Any:
    return Loader("").construct_document(node)


def _kind(node: yaml.Node) -> str:
    return "a list" if isinstance(node, yaml.SequenceNode) else "only text"  # which may be a secret


def _place(file: Path, error: BaseException) -> str:
    mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
    return f"{file}:{mark.line + 1}" if mark else str(file)


def _reason(error: BaseException) -> str:
    parts = [getattr(error, "context", None), getattr(error, "problem", None)]
    return ", ".join(part for part in parts if part) or str(error) or type(error).__name__
