"""How far a run has come, on every rank: the manifest of its folder, which rank 0 locks, reads and writes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from uniattn_pl.config import LoadedConfig
from uniattn_pl.config.loaded_config import plain_config
from uniattn_pl.errors import UserError
from uniattn_pl.resilience.cluster import Cluster
from uniattn_pl.resilience.identity import FILE, Identity, changes, digests_of, write_items
from uniattn_pl.resilience.manifest import PHASES, Manifest, exclusive
from uniattn_pl.resilience.model_folders import lost_files
from uniattn_pl.resilience.moved_run import settle
from uniattn_pl.run_folder import FINAL, check_run_folder


class RunRecord:
    """The phases of a fit that are finished, and their results.

    Each phase writes its products, then commits here in one atomic step; killed before the commit it runs again,
    killed after it never does.

    Args:
        manifest: as read from the folder, or a new one.
        folder: of the run.
        cluster: the ranks, which must all commit.
        moved: what to tell of a folder that was copied since it last ran; on rank 0.
    """

    def __init__(self, manifest: Manifest, folder: Path, cluster: Cluster, moved: str | None = None) -> None:
        self.manifest, self.folder, self.cluster, self.moved = manifest, folder, cluster, moved

    @classmethod
    @contextmanager
    def opened(
        cls,
        loaded: LoadedConfig,
        cluster: Cluster,
        *,
        allow_changes: bool,
        check: Callable[[], object] = lambda: None,
    ) -> Iterator[RunRecord]:
        """The record of an experiment's folder, which is held for this process alone.

        A fit that computed nothing binds its folder to nothing: with another config it is another fit.

        Args:
            check: raises what is wrong with the config itself, which comes before that it was another one.

        Raises:
            UserError: the folder is in use, leads elsewhere, or was started with another config and changes are not
                allowed.
        """
        folder, config = Path(loaded.config.trainer.default_root_dir), plain_config(loaded)
        manifest, moved = Manifest(config), None
        with ExitStack() as stack:
            if cluster.is_main:
                check_run_folder(folder)
                stack.enter_context(exclusive(folder))
                manifest = Manifest.read(folder) or manifest
                if not manifest.has_begun(folder) and manifest.changes(config):
                    manifest.start_anew()
                elif not allow_changes and manifest.changes(config):
                    _refuse_changes(manifest, config, folder, check)
                if manifest.phase != "done" or not manifest.changes(config):  # else that is not what was run
                    manifest.config = config
                moved = settle(manifest, folder, loaded.config.tracking)
                manifest.write(folder)
            yield cls(manifest, folder, cluster, moved)

    def agree(self) -> None:
        """Take rank 0's manifest on every rank."""
        self.manifest = self.cluster.broadcast(self.manifest)

    def rests_on(self, identity: Identity, *, allow_changes: bool) -> list[str]:
        """Check that the run goes on with what it was begun with, and record that; rank 0's identity is looked at.

        Returns:
            What to tell, a line each: which changes were accepted, or that nothing was known.

        Raises:
            UserError: on every rank, naming all that has changed, where changes are not allowed.
        """
        problems: list[str] = []
        lines: list[str] = []
        if self.cluster.is_main:
            changed = changes(identity, self.manifest.identity, self.folder)
            if changed and not self.manifest.has_begun(self.folder):
                self.manifest.start_anew()
                changed = {}
            if changed and not allow_changes:
                problems = [*changed.values(), self._ways_out()]
            else:
                lines = self._take(identity, changed)
        problems = self.cluster.broadcast(problems)
        if problems:
            raise UserError(*problems)
        self.agree()
        return lines

    def reopen_if_lost(self) -> str | None:
        """Go back to the phase that writes the final model, where it is not what the manifest vouches for; on rank 0.

        Returns:
            What is lost, in words, or None.
        """
        if not self.finished or not self.cluster.is_main:
            return None
        names = lost_files(self.folder, self.manifest.results)
        if not names:
            return None
        self.manifest.rewind("stage2")
        self.manifest.write(self.folder)
        return f"{self.folder / FINAL} is damaged or gone ({', '.join(names)}); writing it again."

    def _ways_out(self) -> str:
        if self.finished:
            go_on = f"{self.folder} is finished: to see its results put back what it was fitted with"
        else:
            go_on = (
                f"to continue {self.folder} put back what it was started with, or give --allow-changes to use what "
                "there is now for what is still to be done"
            )
        return f"{go_on}; to start a new run give another name= or trainer.default_root_dir=, or delete {self.folder}."

    def _take(self, identity: Identity, changed: Mapping[str, str]) -> list[str]:
        manifest = self.manifest
        if self.finished:  # its results stay what they are, and so does what they rest on
            return [f"not of these results: {sentence}" for sentence in changed.values()]
        lines = [f"allowed, for what is still to be done: {sentence}" for sentence in changed.values()]
        if manifest.has_begun(self.folder) and not manifest.identity:
            lines.append(
                f"{self.folder} was begun by a version that did not record its rows, model and tokenizer by content; "
                "they are taken to be the present ones."
            )
        manifest.accepted += [{"phase": manifest.phase, "change": sentence} for sentence in changed.values()]
        recorded = {**manifest.identity, **digests_of(identity)}
        if recorded != manifest.identity or not (self.folder / FILE).exists():  # a warm start brings digests alone
            write_items(identity, self.folder)
            manifest.identity = recorded
            manifest.write(self.folder)
        return lines

    @property
    def phase(self) -> str:
        """What is to be run next, one of `PHASES`."""
        return self.manifest.phase

    @property
    def finished(self) -> bool:
        return self.manifest.phase == "done"

    def how_far(self) -> str:
        """What a fit that goes on has behind it, in a line."""
        done = [phase for phase in PHASES[: PHASES.index(self.phase)] if phase in self.manifest.results]
        return f"resuming {self.folder}: {', '.join(done)} done; it goes on with {self.phase}."

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


def _refuse_changes(manifest: Manifest, config: Mapping[str, Any], folder: Path, check: Callable[[], object]) -> None:
    """Raise UserError naming what is wrong with a config by itself, and behind it what was another one."""
    own: list[str] = []
    try:
        check()
    except UserError as error:
        own = error.problems
    try:
        manifest.check_same_config(config, folder)
    except UserError as error:
        raise UserError(*own, *error.problems) from None
