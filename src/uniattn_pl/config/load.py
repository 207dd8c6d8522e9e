"""Files, includes and overrides become one typed experiment; all problems are reported at once.

Order, later wins: schema defaults, for each `--config` its includes and then itself, the overrides.
Interpolations resolve last. A layer that names another architecture drops the options that earlier
layers gave to the former one.
"""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf

from uniattn_pl.config.checks import cross_check
from uniattn_pl.config.environment_layer import environment_layer
from uniattn_pl.config.interpolation import refers, resolve, syntax_problem
from uniattn_pl.config.loaded_config import ARCHITECTURE, LoadedConfig
from uniattn_pl.config.plain_layer import PLACES
from uniattn_pl.config.presets import config_argument
from uniattn_pl.config.schema import ExperimentConfig
from uniattn_pl.config.section_fields import Field, section_fields
from uniattn_pl.config.section_lists import fit_sections, section_of
from uniattn_pl.config.sections.data_section import SELF
from uniattn_pl.config.typing_rules import default_of, field_hints, fit_to_type, show
from uniattn_pl.config.yaml_documents import DEFAULT, Entry, KeyPath, Layer, at, read_file, read_mapping, read_overrides
from uniattn_pl.config.yaml_scalars import dump_value, parse_value
from uniattn_pl.errors import UserError, did_you_mean

if TYPE_CHECKING:
    from uniattn_pl.architectures import Architecture

NAME = (ARCHITECTURE, "name")
DATA_SOURCE, SELF_TEXT, MORE_FILES = ("data", "source"), ("data", "self_text"), ("data", "more_files")

Files = Sequence[Path | str | Mapping[str, Any]]


def load_config(
    files: Files, overrides: Sequence[str] = (), *, base: Layer | None = None, unread: Collection[str] = ()
) -> LoadedConfig:
    """Read, merge, resolve and check an experiment.

    Args:
        files: YAML files, names of presets, or dictionaries that say what a file would; later ones win.
        overrides: `key.path=value` words, they win over files.
        base: values of an earlier run; keys that are not known are left out, and what it was made from may be gone.
        unread: keys of what the command does not read, and that need not be there.

    Raises:
        UserError: with every problem of the files, the overrides and the resulting config.
    """
    named = [file if isinstance(file, Mapping) else config_argument(str(file)) for file in files]
    return _Assembly(unread).load(named, overrides, base)


class _Assembly:
    """The state of one `load_config`: what was set, where, and what is wrong with it."""

    def __init__(self, unread: Collection[str]) -> None:
        self.fields: dict[KeyPath, Field] = dict(section_fields(ExperimentConfig))
        self.sections = {path[:depth] for path in self.fields for depth in range(len(path))}
        self.entries: dict[KeyPath, Entry] = {}
        self.problems: list[str] = []
        self.reported: set[str] = set()
        self.unread = set(unread)
        self.tree: DictConfig | None = None  # all values, in which references are looked up

    def load(
        self, files: Sequence[Path | Mapping[str, Any]], overrides: Sequence[str], base: Layer | None
    ) -> LoadedConfig:
        self._apply(environment_layer())
        if base is not None:
            self._apply(Layer(tuple(entry for entry in base.entries if self._is_leaf(entry.path))))
        former = list(self.entries.values())
        layers = [layer for file in files for layer in self._read(file)]
        layers.append(read_overrides(overrides, self._is_leaf, self.problems))
        for layer in layers:
            self._apply(layer)
        values = {path: default_of(field) for path, (_, field) in self.fields.items()}
        del values[(ARCHITECTURE,)]
        values[NAME] = default_of(self.fields[(ARCHITECTURE,)][1])["name"]
        values.update((path, self._literal(entry)) for path, entry in self.entries.items())
        kind = self._architecture_class(values)
        if kind is not None:
            self._add_options(kind, values)
        # What the user wrote comes first: a default that refers to it must not repeat its problem.
        resolved = {path: self._resolved(path, values) for path in sorted(values, key=lambda p: p not in self.entries)}
        architecture = self._build_architecture(kind, resolved)
        config = _to_config(resolved)
        unchecked = {entry.key for entry in former if entry.key in PLACES and self.entries[entry.path] is entry}
        self.problems += cross_check(config, self.reported | unchecked | self.unread, self._origin)
        if self.problems or architecture is None:
            raise UserError(*dict.fromkeys(self.problems))
        return LoadedConfig(config, architecture, {".".join(path): self._origin(".".join(path)) for path in resolved})

    def _read(self, file: Path | Mapping[str, Any]) -> list[Layer]:
        read = read_mapping if isinstance(file, Mapping) else read_file
        return read(file, self._is_leaf, self.problems)  # type: ignore[arg-type]

    def _is_leaf(self, path: KeyPath) -> bool:
        return (path in self.fields and path != (ARCHITECTURE,)) or (path[:1] == (ARCHITECTURE,) and len(path) == 2)

    def _origin(self, key: str) -> str:
        entry = self.entries.get(tuple(key.split(".")))
        return entry.origin if entry else DEFAULT

    def _report(self, entry: Entry, problem: str) -> None:
        self.problems.append(f"{at(entry.origin)}{entry.key}: {problem}")
        self.reported.add(entry.key)

    def _apply(self, layer: Layer) -> None:
        """Lay one layer over what is set so far."""
        accepted = [entry for short in layer.entries for entry in _spell_out(short) if self._is_known(entry)]
        name = next((entry for entry in reversed(accepted) if entry.path == NAME), None)
        former = self.entries[NAME].value if NAME in self.entries else "uniattn"
        if name is not None and name.value != former:
            self.entries = {path: entry for path, entry in self.entries.items() if path[0] != ARCHITECTURE}
        self.entries.update((entry.path, entry) for entry in accepted)

    def _is_known(self, entry: Entry) -> bool:
        if self._is_leaf(entry.path):
            return True
        if entry.path in self.sections or entry.path == (ARCHITECTURE,):
            self._report(entry, f"expected keys below it (a section), got {show(entry.value)}.")
            return False
        leads_on = [self._opens(entry.path[:d]) or self._is_leaf(entry.path[:d]) for d in range(1, len(entry.path))]
        depth = leads_on.index(False) + 1 if False in leads_on else len(entry.path)
        self.problems.append(f"{entry.origins[depth - 1]}: {self._unknown(entry.path[:depth])}")
        return False

    def _opens(self, path: KeyPath) -> bool:
        return path in self.sections or path == (ARCHITECTURE,)

    def _unknown(self, path: KeyPath) -> str:
        parent, word = path[:-1], path[-1]
        if self._is_leaf(parent):
            return f"unknown key '{'.'.join(path)}': '{'.'.join(parent)}' has no keys below it."
        siblings = {other[len(parent)] for other in self.fields if other[: len(parent)] == parent and other != parent}
        hint = did_you_mean(word, sorted(siblings))
        hint = hint.replace(" '", f" '{'.'.join((*parent, ''))}", 1)
        elsewhere = self._places_of(word.split(".")[-1], parent)
        if elsewhere and not hint:
            hint = f" Did you mean {' or '.join(map(repr, elsewhere))}?"
            hint += " In a file, keys are nested, not dotted." if "." in word else ""
        if not hint:
            hint = f" Known here: {', '.join(sorted(siblings))}."
        return f"unknown key '{'.'.join(path)}'.{hint}"

    def _places_of(self, name: str, parent: KeyPath) -> list[str]:
        """The keys of this name, or of the most similar one, wherever they are; first those below `parent`."""
        names = {path[-1] for path in self.fields}
        near = difflib.get_close_matches(name, sorted(names), n=1, cutoff=0.8)
        paths = [path for path in self.fields if path[-1] in near]
        return [".".join(path) for path in sorted(paths, key=lambda path: path[: len(parent)] != parent)]

    def _literal(self, entry: Entry) -> Any:
        """Return the value as written, already converted where its type is known and it refers to nothing."""
        problem = syntax_problem(entry.value) if refers(entry.value) else None
        if entry.value == "???":
            problem = "a value must be given in place of '???'."
        if problem:
            self._report(entry, problem)
            return self._fallback(entry.path)
        if entry.path not in self.fields or refers(entry.value):
            return entry.text if entry.path == NAME else entry.value
        return self._fitted(entry, entry.value, entry.text, self.fields[entry.path])

    def _fallback(self, path: KeyPath) -> Any:
        """Return what stands in for an unusable value, so that the other checks can go on."""
        default = default_of(self.fields[path][1]) if path in self.fields else None
        return None if default is dataclasses.MISSING else default

    def _fitted(self, entry: Entry, value: Any, text: str | None, field: Field) -> Any:
        section = section_of(field[0])
        if section is not None:
            value, problems = fit_sections(value, section)
        else:
            value, problem = fit_to_type(value, text, *field)
            problems = [problem] if problem else []
        for problem in problems:
            self._report(entry, problem)
        return self._fallback(entry.path) if problems else value

    def _architecture_class(self, values: dict[KeyPath, Any]) -> type[Architecture] | None:
        from uniattn_pl.architectures import get_architecture

        values[NAME] = self._resolved(NAME, values)
        if ".".join(NAME) in self.reported:
            return None
        try:
            return get_architecture(str(values[NAME]))
        except UserError as error:
            self.problems += [f"{at(self._origin('architecture.name'))}architecture.name: {p}" for p in error.problems]
            self.reported.add(".".join(NAME))
            return None

    def _add_options(self, kind: type[Architecture], values: dict[KeyPath, Any]) -> None:
        """Add the options of the chosen architecture to the known fields, with their defaults; report unknown ones."""
        options = field_hints(kind)
        self.tree = None
        for name, field in options.items():
            path: KeyPath = (ARCHITECTURE, name)
            self.fields[path] = field
            if path in self.entries:
                values[path] = self._literal(self.entries[path])
            elif default_of(field[1]) is dataclasses.MISSING:
                origin = self._origin(".".join(NAME))
                self.problems.append(f"{at(origin)}architecture: '{kind.name}' needs the option '{name}'.")
                self.reported.add(".".join(path))
                values[path] = None
            else:
                values[path] = default_of(field[1])
        for unknown in [p for p in values if p[0] == ARCHITECTURE and p != NAME and p[1] not in options]:
            entry, allowed = self.entries[unknown], ", ".join(options) or "none"
            near = did_you_mean(entry.key, [f"{ARCHITECTURE}.{name}" for name in options])
            near = near or f" Its options: {allowed}."
            self.problems.append(f"{entry.origin}: unknown key '{entry.key}': no option of '{kind.name}'.{near}")
            del values[unknown]

    def _resolved(self, path: KeyPath, values: dict[KeyPath, Any]) -> Any:
        value = values[path]
        key = ".".join(path)
        if not refers(value) or key in self.reported:
            return value
        if self.tree is None:
            self.tree = OmegaConf.create(_nest(values))
        value, problem = resolve(self.tree, path, [".".join(p) for p in values])
        entry = self.entries.get(path) or Entry(path, (DEFAULT,), value, None)
        if problem:
            self._report(entry, problem)
            values[path] = self._fallback(path)
            self.tree = None
            return values[path]
        if path not in self.fields:
            return value
        text = value if isinstance(value, str) else dump_value(value)
        return self._fitted(entry, parse_value(value) if isinstance(value, str) else value, text, self.fields[path])

    def _build_architecture(self, kind: type[Architecture] | None, resolved: dict[KeyPath, Any]) -> Architecture | None:
        options = {p[1]: v for p, v in resolved.items() if p[0] == ARCHITECTURE and p != NAME}
        if kind is None or self.reported.intersection(f"{ARCHITECTURE}.{name}" for name in options):
            return None
        try:
            return kind(**options)
        except (UserError, ValueError) as error:
            reasons = error.problems if isinstance(error, UserError) else [str(error)]
            self.problems += [f"{at(self._origin('architecture.name'))}architecture: {reason}" for reason in reasons]
            return None


def _spell_out(entry: Entry) -> list[Entry]:
    """Read the short forms: `architecture: cla`, `data.source: {self: 500}` for `data.self_text: {rows: 500}`, and
    `data.source: [a.jsonl, b.jsonl]` for `data.more_files: [b.jsonl]`."""
    if entry.path == (ARCHITECTURE,) and isinstance(entry.value, str):
        return [dataclasses.replace(entry, path=NAME, origins=entry.origins * 2)]
    if entry.path == DATA_SOURCE and isinstance(entry.value, Mapping):
        options = {"rows" if key == SELF else str(key): value for key, value in entry.value.items()}
        spelled = [
            Entry((*SELF_TEXT, key), (*entry.origins, entry.origin), value, value if isinstance(value, str) else None)
            for key, value in options.items()
        ]
        return [dataclasses.replace(entry, value=SELF, text=SELF), *spelled]
    if entry.path == DATA_SOURCE:  # other files than those that a layer below lists
        first, *more = entry.value if isinstance(entry.value, list) and entry.value else [entry.value]
        text = entry.text if first is entry.value else first if isinstance(first, str) else None
        named = dataclasses.replace(entry, value=first, text=text)
        return [named, dataclasses.replace(entry, path=MORE_FILES, value=more or None, text=None)]
    return [entry]


def _nest(values: dict[KeyPath, Any]) -> dict[str, Any]:
    root: dict[str, Any] = {}
    for path, value in values.items():
        node = root
        for key in path[:-1]:
            node = node.setdefault(key, {})
        node[path[-1]] = value
    return root


def _to_config(values: dict[KeyPath, Any]) -> ExperimentConfig:
    """The typed experiment; every value has been fitted to its field before."""
    config = _build(ExperimentConfig, _nest(values))
    assert isinstance(config, ExperimentConfig)
    return config


def _build(cls: type, values: Mapping[str, Any]) -> Any:
    hints = {key: hint for key, (hint, _) in field_hints(cls).items()}
    return cls(**{k: _build(hints[k], v) if dataclasses.is_dataclass(hints[k]) else v for k, v in values.items()})
