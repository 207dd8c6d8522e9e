"""An experiment as it was loaded: typed, checked, and able to say where each value came from."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from uniattn_pl.config.interpolation import escape
from uniattn_pl.config.schema import ExperimentConfig
from uniattn_pl.config.yaml_documents import KeyPath
from uniattn_pl.config.yaml_scalars import dump_value
from uniattn_pl.redaction import redact

if TYPE_CHECKING:
    from uniattn_pl.architectures import Architecture

ARCHITECTURE = "architecture"


OPEN_SECTIONS = (ARCHITECTURE, "sweep", "report")  # a mapping in these is a value, not a section


@dataclass(frozen=True)
class LoadedConfig:
    """A checked experiment: typed values, the architecture with its options, and where each value came from."""

    config: ExperimentConfig
    architecture: Architecture
    provenance: dict[str, str]

    def to_yaml(self, *, provenance: bool = True) -> str:
        """Return the resolved config as YAML, with the origin of each value behind it.

        It loads to the same config but for credentials, which are ***.
        """
        return "".join(_lines(dataclasses.asdict(self.config), (), self.provenance if provenance else {}))

    def flatten(self) -> dict[str, Any]:
        """Return dotted key -> value, for instance as parameters of a tracked run."""
        return flatten(dataclasses.asdict(self.config))


def flatten(config: Mapping[str, Any], path: KeyPath = ()) -> dict[str, Any]:
    """Return a config's plain data as dotted key -> value; an option of an architecture or a sweep is one value."""
    flat: dict[str, Any] = {}
    for key, value in config.items():
        if _is_section(value, path):
            flat.update(flatten(value, (*path, key)))
        else:
            flat[".".join((*path, key))] = value
    return flat


def plain_config(loaded: LoadedConfig) -> dict[str, Any]:
    """The experiment as plain data without credentials, as the manifest keeps it."""
    plain: dict[str, Any] = redact(dataclasses.asdict(loaded.config))
    return plain


def _is_section(value: Any, path: KeyPath) -> bool:
    """Whether the value of a key below `path` has keys of its own."""
    return isinstance(value, dict) and not (path and path[0] in OPEN_SECTIONS)


def _lines(node: dict[str, Any], path: KeyPath, provenance: dict[str, str]) -> Iterable[str]:
    indent = "  " * len(path)
    for key, value in node.items():
        inner = (*path, key)
        if _is_section(value, path):
            yield f"{indent}{key}:\n"
            yield from _lines(value, inner, provenance)
        else:
            origin = provenance.get(".".join(inner))
            comment = f"  # {' '.join(redact(origin).split())}" if origin else ""
            yield f"{indent}{key}: {dump_value(escape(redact(value)))}{comment}\n"
