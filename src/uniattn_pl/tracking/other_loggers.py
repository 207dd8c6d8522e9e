"""Further loggers of a fit, Lightning's own: they are fed from the journal, by a thread, and cannot harm the fit.

What they write is what MLflow is sent: the same names, steps and values, each once. A fit that goes on writes their
folders anew, from all that it has journaled.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import threading
from collections.abc import Callable, Iterator, Sequence
from importlib.util import find_spec
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

from uniattn_pl.errors import UserError
from uniattn_pl.printed_commands import install
from uniattn_pl.tracking.journal import FILE, entries
from uniattn_pl.tracking.journal import FOLDER as JOURNAL
from uniattn_pl.tracking.mlflow_requests import short_reason

if TYPE_CHECKING:
    from lightning.pytorch.loggers import Logger

FOLDER = "loggers"
NEEDED = {"tensorboard": ("tensorboard", "tensorboardX"), "wandb": ("wandb",)}  # one of the packages
# it would report its own errors to its makers, and talk into the progress bars
QUIET_WANDB = {"WANDB_ERROR_REPORTING": "false", "WANDB_SILENT": "true"}
INTERVAL_S = 5.0
CLOSING_S = 10.0  # what the loggers get to write the rest when a fit ends


def check_loggers(names: Sequence[str]) -> None:
    """Raise UserError where the package of a logger is not installed, with the command that installs it."""
    problems = [
        f"tracking.also: '{name}' needs the package {packages[0]}; install it with: {install(packages[0])}"
        for name, packages in NEEDED.items()
        if name in names and not any(map(find_spec, packages))
    ]
    if problems:
        raise UserError(*problems)


class OtherLoggers:
    """A thread that gives each logger what the run journals.

    Args:
        names: keys of `OTHER_LOGGERS`.
        folder: the run folder.
        project: what wandb groups runs by.
        name: of the run.
        fit_id: identifies it.
        tell: called with a line for each logger that fails; the others go on.
    """

    def __init__(
        self, names: Sequence[str], folder: Path, *, project: str, name: str, fit_id: str, tell: Callable[[str], None]
    ) -> None:
        self.names, self.folder, self.tell = list(dict.fromkeys(names)), folder / FOLDER, tell
        self.project, self.name, self.fit_id = project, name, fit_id
        self._journal, self._offset = folder / JOURNAL / FILE, 0
        self._loggers: dict[str, Logger] = {}
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._work, name="other-loggers", daemon=True)

    def start(self) -> None:
        """Begin to write."""
        self._thread.start()

    def finish(self) -> None:
        """Write the rest and close the loggers; one that hangs is left alone after a while."""
        self._ending.set()
        self._thread.join(CLOSING_S)
        if self._thread.is_alive():
            self.tell(f"tracking.also: {', '.join(self._loggers)} did not end in {CLOSING_S:.0f} s; left as they are.")

    def _work(self) -> None:
        for name in self.names:
            with self._guarded(name):
                shutil.rmtree(self.folder / name, ignore_errors=True)
                self._loggers[name] = self._made(name)
        while self._loggers:
            ending = self._ending.is_set()  # what is journaled before it is set is still written
            for operations in self._new():
                for name, logger in list(self._loggers.items()):
                    with self._guarded(name):
                        _give(logger, operations)
            for name, logger in list(self._loggers.items()):
                with self._guarded(name):
                    logger.save()
            if ending:
                break
            self._ending.wait(INTERVAL_S)
        for name, logger in list(self._loggers.items()):
            with self._guarded(name):
                logger.finalize("success")
                if name == "wandb":
                    logger.experiment.finish()  # type: ignore[attr-defined]

    def _new(self) -> Iterator[list[dict[str, Any]]]:
        """What was journaled since the last look: points of one step together."""
        new = []
        with contextlib.suppress(OSError):
            for operation, end in entries(self._journal, self._offset):
                new.append(operation)
                self._offset = end
        for _, together in groupby(new, lambda o: (o["op"], o.get("step"), o.get("timestamp"))):
            yield list(together)

    @contextlib.contextmanager
    def _guarded(self, name: str) -> Iterator[None]:
        """Give a logger up that raises, whatever it raises."""
        try:
            yield
        except Exception as error:
            self._loggers.pop(name, None)
            with contextlib.suppress(Exception):
                self.tell(f"tracking.also: {name} failed and is left out from here on ({short_reason(error)}).")

    def _made(self, name: str) -> Logger:
        from lightning.pytorch import loggers

        if name == "csv":
            return loggers.CSVLogger(self.folder, name=name, version="")
        if name == "tensorboard":
            return loggers.TensorBoardLogger(self.folder, name=name, version="", default_hp_metric=False)
        for variable, value in QUIET_WANDB.items():  # read as it is imported
            os.environ.setdefault(variable, value)
        import wandb

        settings = wandb.Settings(mode="offline", silent=True, console="off", disable_git=True, x_disable_stats=True)
        wandb.setup(settings)  # before Lightning gives it a setting that it warns of
        return loggers.WandbLogger(
            name=self.name,
            save_dir=self.folder,
            version=self.fit_id,
            offline=True,
            project=self.project,
            settings=settings,
        )


def _give(logger: Logger, operations: list[dict[str, Any]]) -> None:
    """Give a logger some points of one step, or some params."""
    if operations[0]["op"] == "metric":
        logger.log_metrics({o["key"]: o["value"] for o in operations}, step=operations[0]["step"])
    elif operations[0]["op"] == "param":
        logger.log_hyperparams({o["key"]: o["value"] for o in operations})
