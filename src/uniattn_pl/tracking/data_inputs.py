"""The rows of a run as MLflow's inputs: where they come from, a digest of what they say, how many there are."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from uniattn_pl.config.sections.data_section import MADE, SELF, DataConfig
from uniattn_pl.config.source_paths import is_pattern
from uniattn_pl.tracking.tags import short_name

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

TRAINING, VALIDATION, EVALUATION = "training", "validation", "evaluation"
CONTEXT = "mlflow.data.context"  # the tag by which MLflow's pages and filters tell what a data set is for
SHOWN = 12  # characters of a digest: MLflow takes 36, and shows them in its tables

MOST_NAMES, LONGEST_SOURCE = 3, 10_000  # of sources that a name joins; characters


@dataclass(frozen=True)
class DataInput:
    """Rows that a run has read.

    Attributes:
        name: for people.
        digest: of the contents of the rows in their order.
        rows: how many; None: they are no rows, as a long text.
        context: what for: `TRAINING`, `VALIDATION` or `EVALUATION`.
        kind, source: MLflow's type of a source and its fields, by which `mlflow.data.get_source` finds it again.
    """

    name: str
    digest: str
    rows: int | None
    context: str
    kind: str
    source: dict[str, Any]

    @classmethod
    def of(
        cls,
        sources: Sequence[str],
        digest: str,
        rows: int | None,
        context: str,
        *,
        split: str = "train",
        name: str | None = None,
    ) -> DataInput:
        """Describe rows by where a config says they are.

        Args:
            sources: `data.source` and the like; of several the rows are joined.
            digest: a whole SHA-256 of the contents.
            split: of a hub's data set.
            name: default: those of the sources.
        """
        kind, source = _source(sources, split)
        return cls(name or _joined_names(sources), digest[:SHOWN], rows, context, kind, source)

    @property
    def key(self) -> tuple[str, str]:
        """Name and digest, by which MLflow knows a data set."""
        return self.name, self.digest

    def to_dict(self) -> dict[str, Any]:
        """Plain data for the journal."""
        return asdict(self)


def training_rows(config: DataConfig, digest: str, count: int) -> DataInput:
    """The rows that a fit trains on; `digest` is of their contents, of a stream of its shards: its rows are unknown."""
    first, *others = config.training_sources
    sources = [*_files(config, first), *others]
    return DataInput.of(sources, digest, None if config.streaming else count, TRAINING, split=_split(config))


def held_out_rows(config: DataConfig, digest: str, count: int, context: str = VALIDATION) -> DataInput:
    """The rows that are held out of training."""
    if config.validation_source is None and config.sources is not None:
        sources = [source for source in config.training_sources if source != SELF]
        return DataInput.of(sources, digest, count, context, split=_split(config))
    source = config.validation_source or config.split_source or SELF
    return DataInput.of(_files(config, source), digest, count, context, split=config.split)


def _split(config: DataConfig) -> str:
    """Of a hub data set that is trained on alone."""
    return config.sources[0].split if config.sources else config.split


def _files(config: DataConfig, source: str) -> list[str]:
    """A source with the files that are read as one with it."""
    return [source, *((config.more_files or []) if source == config.source else [])]


def _joined_names(sources: Sequence[str]) -> str:
    names = list(map(short_name, sources))
    rest = len(names) - MOST_NAMES
    return " + ".join(names) if rest <= 0 else f"{' + '.join(names[:MOST_NAMES])} + {rest} more"


def _source(sources: Sequence[str], split: str) -> tuple[str, dict[str, Any]]:
    (first, *others) = sources
    if others or first in (*MADE, SELF) or is_pattern(first):
        return "code", {
            "tags": {"mlflow.source.name": f"uniattn_pl data.source={' + '.join(sources)}"[:LONGEST_SOURCE]}
        }
    path = Path(first).expanduser()
    if path.exists():
        return "local", {"uri": str(path.resolve())}
    fields = {"config_name": None, "data_dir": None, "data_files": None, "revision": None}
    return "hugging_face", {"path": first, "split": split, **fields}


def send_input(client: MlflowClient, run_id: str, operation: dict[str, Any]) -> None:
    """Log a journaled input to a run that may have it already."""
    from mlflow.entities import Dataset, DatasetInput, InputTag

    inputs = client.get_run(run_id).inputs
    logged = [] if inputs is None else inputs.dataset_inputs
    if any((one.dataset.name, one.dataset.digest) == (operation["name"], operation["digest"]) for one in logged):
        return
    source, rows = json.dumps(operation["source"]), operation["rows"]
    profile = None if rows is None else json.dumps({"num_rows": rows})
    dataset = Dataset(operation["name"], operation["digest"], operation["kind"], source, profile=profile)
    client.log_inputs(run_id, [DatasetInput(dataset, [InputTag(CONTEXT, operation["context"])])])
