"""Loggers beside MLflow: what is missing is refused, what fails is left out, and the others go on."""

from __future__ import annotations

import csv
import importlib.util
from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch.loggers import CSVLogger

from uniattn_pl.config.sections.tracking_section import TrackingConfig
from uniattn_pl.errors import UserError
from uniattn_pl.tracking import other_loggers
from uniattn_pl.tracking.journal import Journal
from uniattn_pl.tracking.other_loggers import OtherLoggers
from uniattn_pl.tracking.store_check import check_beside


def logged(folder: Path, steps: range, names: list[str]) -> list[str]:
    """Journal some steps while the loggers run; returns what was told."""
    said: list[str] = []
    journal = Journal(folder, fit_id="fit", name="a fit")
    loggers = OtherLoggers(names, folder, project="p", name="a fit", fit_id="fit", tell=said.append)
    loggers.start()
    journal.params({"seed": "0"})
    for step in steps:
        journal.metrics({"loss": 1.0 / step, "rate": 0.1}, step)
    journal.metrics({"val": 0.5}, max(steps))
    loggers.finish()
    journal.close()
    return said


def table(folder: Path) -> list[dict[str, str]]:
    with (folder / "loggers/csv/metrics.csv").open() as file:
        return list(csv.DictReader(file))


def test_a_fit_that_goes_on_writes_all_of_it_anew(tmp_path: Path) -> None:
    assert logged(tmp_path, range(1, 4), ["csv"]) == []
    assert logged(tmp_path, range(2, 6), ["csv"]) == [], "from a checkpoint behind the last steps"
    assert [row["step"] for row in table(tmp_path) if row["loss"]] == ["1", "2", "3", "4", "5"]
    assert [(row["step"], row["val"]) for row in table(tmp_path) if row["val"]] == [("3", "0.5"), ("5", "0.5")]
    assert "seed: '0'" in (tmp_path / "loggers/csv/hparams.yaml").read_text()


class Failing(CSVLogger):
    """Fails at its third point."""

    def log_metrics(self, metrics: dict[str, Any], step: int | None = None) -> None:
        if step == 3:
            raise SystemError("the disk is on fire")
        super().log_metrics(metrics, step)


@pytest.mark.parametrize("failing", [Failing, None], ids=["later", "at once"])
def test_one_that_fails_is_told_once_and_harms_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: type | None
) -> None:
    monkeypatch.setattr("lightning.pytorch.loggers.TensorBoardLogger", failing)
    (line,) = logged(tmp_path, range(1, 6), ["tensorboard", "csv"])
    assert line.startswith("tracking.also: tensorboard failed and is left out from here on (")
    assert [row["step"] for row in table(tmp_path) if row["loss"]] == ["1", "2", "3", "4", "5"]


def test_what_is_not_installed_is_refused_with_the_line_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> object:
        return None if name in ("wandb", "tensorboard", "tensorboardX", "psutil") else importlib.util.find_spec(name)

    for module in (other_loggers, importlib.import_module("uniattn_pl.tracking.system_metrics")):
        monkeypatch.setattr(module, "find_spec", absent)
    with pytest.raises(UserError) as refused:
        check_beside(TrackingConfig(also=["csv", "tensorboard", "wandb"], system_metrics=True))
    assert [problem.partition("; ")[2] for problem in refused.value.problems] == [
        f"install it with: python -m pip install {name}" for name in ("tensorboard", "wandb", "psutil")
    ]
    check_beside(TrackingConfig(also=["csv"]))
