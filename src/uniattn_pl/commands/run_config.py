"""The config of a run that a command looks at: its own, kept in its folder, below what the command line says."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from uniattn_pl.commands.arguments import load
from uniattn_pl.config import LoadedConfig, load_config
from uniattn_pl.config.loaded_config import flatten
from uniattn_pl.config.plain_layer import PLACES, plain_layer
from uniattn_pl.config.published_sets import how_to_build
from uniattn_pl.config.sections.data_section import CHAT, DATA_SUFFIXES, PAPER
from uniattn_pl.config.source_paths import is_there, looks_like_path
from uniattn_pl.errors import UserError
from uniattn_pl.resilience.manifest import OTHERS, TEMPLATE_KEY, Manifest
from uniattn_pl.run_folder import MANIFEST, run_of

STORE = ("tracking.uri", "tracking.artifact_location")
SQLITE = "sqlite:///"
# Sections of other commands, and where the fit ran.
ELSEWHERE = (*OTHERS, "trainer.", "tracking.parent_run")
ROWS = (
    "data.source",
    "data.more_files",
    "data.further_sources",
    "data.sources",
    "data.validation_source",
    "data.self_text.prompts",
)
SOURCE = "source"  # of an entry of data.sources


def load_of_run(arguments: argparse.Namespace, source: Path | None) -> LoadedConfig:
    """Load what a command line names; without `--config`, and where `source` is a run's, on the run's own config.

    The run's folder is then the config's, wherever it was made.

    Raises:
        UserError: with all problems of the config, or the manifest cannot be read.
    """
    run = None if source is None or arguments.config else run_of(source)
    manifest = None if run is None else Manifest.read(run)
    if run is None or manifest is None:
        return load(arguments)
    config = own_config(manifest, run)
    return load_config([], arguments.overrides, base=plain_layer(config, str(run / MANIFEST)))


def own_config(manifest: Manifest, run: Path) -> dict[str, Any]:
    """A run's config as far as it concerns what is done with its model, with its relative paths found from here."""
    root = _project(manifest.config, run)
    at_home = manifest.folder is None or Path(manifest.folder) == run.resolve()
    own: dict[str, Any] = {}
    for key, value in flatten(manifest.config).items():
        former_store = key in STORE and not at_home and _path_in(value).is_absolute()  # a copy writes nothing there
        if not key.startswith(ELSEWHERE) and not former_store:
            _put(own, key, _from_here(key, value, root))
    if flatten(manifest.config).get(TEMPLATE_KEY, PAPER) != PAPER:
        _put(own, TEMPLATE_KEY, CHAT)  # the run's models are saved with what they were trained with
    _put(own, "trainer.default_root_dir", str(run))
    return own


def check_rows(loaded: LoadedConfig) -> None:
    """Check that the rows of a run that is evaluated with its own config are there.

    Raises:
        UserError: naming the file that is gone.
    """
    values = loaded.flatten()
    sources = [(key, place) for key in ROWS for place in _places(values[key])]
    gone = [(key, place) for key, place in sources if looks_like_path(place, DATA_SUFFIXES) and not is_there(place)]
    if gone:
        raise UserError(
            *(
                f"{key}: the rows of this run, '{place}' ({loaded.provenance[key]}), are not there any more; "
                f"give {key}=FILE with the same rows.{how_to_build(place)}"
                for key, place in gone
            )
        )


def _places(value: str | list[Any] | None) -> list[str]:
    """The sources that the value of a key names."""
    items = value if isinstance(value, list) else [value] if value else []
    return [item[SOURCE] if isinstance(item, dict) else item for item in items]


def _project(config: Mapping[str, Any], run: Path) -> Path:
    """The folder that the paths of a run's config are relative to: where `runs/NAME` was made in."""
    recorded, here = Path(str(config["trainer"]["default_root_dir"])), run.resolve()
    parents = recorded.parts[:-1]
    inside = not recorded.is_absolute() and ".." not in parents and here.parts[-1 - len(parents) : -1] == parents
    return here.parents[len(parents)] if inside else Path.cwd()


def _from_here(key: str, value: Any, root: Path) -> Any:
    """A path of a run's config as it is named from the present working folder, where there is something at it."""
    if isinstance(value, list):
        return [_from_here(key, item, root) for item in value]
    if isinstance(value, dict):
        return {**value, SOURCE: _from_here(key, value[SOURCE], root)}
    path = _path_in(value)
    if root == Path.cwd() or key not in (*PLACES, *STORE) or path.is_absolute() or not is_there(str(root / path)):
        return value
    return f"{SQLITE}{root / path}" if str(value).startswith(SQLITE) else str(root / path)


def _path_in(value: Any) -> Path:
    """The path that a place or a local store is; of other stores one that is nowhere."""
    return Path(str(value).removeprefix(SQLITE))


def _put(nested: dict[str, Any], key: str, value: Any) -> None:
    *sections, last = key.split(".")
    for section in sections:
        nested = nested.setdefault(section, {})
    nested[last] = value
