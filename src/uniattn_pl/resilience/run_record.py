"""How far a run has come, on every rank: the manifest of its folder, which rank 0 locks, reads and writes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from uniattn_pl.config import LoadedConfig
from uniattn_pl.config.loaded_config import plain_config
from uniattn_pl.resilience.cluster import Cluster
from uniattn_pl.resilience.manifest import Manifest, exclusive
from uniattn_pl.run_folder import check_run_folder


class RunRecord:
    """The phases of a fit that are finished, and their results.

    Each phase writes its products, then commits here in one atomic step; killed before the commit it runs again,
    killed after it never does.

    Args:
        manifest: as read from the folder, or a new one.
        folder: of the run.
        cluster: the ranks, which must all commit.
    """

    def __init__(self, manifest: Manifest, folder: Path, cluster: Cluster) -> None:
        self.manifest, self.folder, self.cluster = manifest, folder, cluster

    @classmethod
    @contextmanager
    def opened(cls, loaded: LoadedConfig, cluster: Cluster, *, allow_changes: bool) -> Iterator[RunRecord]:
        """The record of an experiment's folder, which is held for this process alone.

        Raises:
            UserError: the folder is in use, leads elsewhere, or was started with another config and changes are not
                allowed.
        """
        folder, config = Path(loaded.config.trainer.default_root_dir), plain_config(loaded)
        manifest = Manifest(config)
        with ExitStack() as stack:
            if cluster.is_main:
                check_run_folder(folder)
                stack.enter_context(exclusive(folder))
                manifest = Manifest.read(folder) or manifest
                if not allow_changes:
                    manifest.check_same_config(config, folder)
                manifest.config = config
                manifest.write(folder)
            yield cls(manifest, folder, cluster)

    def agree(self) -> None:
        """Take rank 0's manifest on every rank."""
        self.manifest = self.cluster.broadcast(self.manifest)

    @property
    def phase(self) -> str:
        """What is to be run next, one of `PHASES`."""
        return self.manifest.phase

    @property
    def finished(self) -> bool:
        return self.manifest.phase == "done"

    def result(self, phase: str) -> dict[str, Any]:
        """What a finished phase has measured, or what it took over from another point of a sweep; else nothing."""
        return self.manifest.results.get(phase, {})

    def commit(self, results: Mapping[str, Any], *, step_offset: int | None = None) -> None:
        """Finish the current phase on every rank; rank 0 writes the manifest once all of them are through."""
        self.cluster.barrier()
        self.manifest.advance(results, step_offset=step_offset)
        if self.cluster.is_main:
            self.manifest.write(self.folder)
        self.cluster.barrier()

    def rewind(self, phase: str) -> None:
        """Go back to a phase on every rank, because what it wrote was lost."""
        self.manifest.rewind(phase)
        if self.cluster.is_main:
            self.manifest.write(self.folder)
        self.cluster.barrier()
