"""An MLflow store with the runs that `sweep`, `bench` and `analyze` would leave, written without running them."""

from __future__ import annotations

import csv
import io
import itertools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mlflow.tracking import MlflowClient

from uniattn_pl.cli import main

# Plans are compared by digest only, so any words will do.
PLAIN, UNIATTN, CLA = "plan-unmodified", "plan-uniattn", "plan-cla"
PNG = b"\x89PNG\r\n\x1a\nof an analysis"


class Tracked:
    """One experiment of a store, and a working folder with a config `table.yaml` that is tracked there.

    Args:
        folder: the working folder; the store is shared with other experiments.
        client: of the store.
        uri: of the store, for the config.
    """

    _times = itertools.count(1)

    def __init__(self, folder: Path, client: MlflowClient, uri: str) -> None:
        self.folder, self.client, self.uri = folder, client, uri
        self.experiment = f"experiment-{next(self._times)}"
        self.id = client.create_experiment(self.experiment, artifact_location=(folder / "artifacts").as_uri())

    def config(self, text: str, name: str = "table") -> None:
        """Write the config: `text` with what every one here has."""
        head = (
            f"name: {name}\nmodel: {{source: tiny-llama}}\n"
            f"tracking: {{uri: '{self.uri}', experiment: {self.experiment}}}\n"
        )
        (self.folder / "table.yaml").write_text(head + text, encoding="utf-8")

    def run(
        self,
        kind: str,
        name: str,
        metrics: Mapping[str, Any],
        status: str = "FINISHED",
        **tags: str,
    ) -> str:
        """A run of tiny-llama on the embedded rows, later than all before; a mapping is a metric's values by step."""
        said = {"kind": kind, "model": "tiny-llama", "data": "embedded", **tags}
        named = {("mlflow.parentRunId" if k == "parent" else f"uniattn_pl.{k}"): v for k, v in said.items()}
        run = self.client.create_run(self.id, run_name=name, tags=named, start_time=next(self._times))
        for key, value in metrics.items():
            for step, number in (value if isinstance(value, dict) else {0: value}).items():
                self.client.log_metric(run.info.run_id, key, number, step=step, timestamp=1)
        if status != "RUNNING":
            self.client.set_terminated(run.info.run_id, status, end_time=next(self._times))
        return str(run.info.run_id)

    def fit(self, name: str, architecture: str, plan: str, rate: float, metrics: Mapping[str, Any], **rest: str) -> str:
        values = {"cost/kv_retain_rate": rate, **metrics}
        return self.run("fit", name, values, architecture=architecture, plan=plan, **rest)

    def bench(self, architecture: str, seconds: Mapping[int, float], **tags: str) -> str:
        return self.run("bench", "bench", {"cost/ttft_s": dict(seconds)}, architecture=architecture, **tags)

    def report(self, *words: str) -> int:
        return main(["report", "--config", "table.yaml", *words])

    def file(self, name: str) -> bytes:
        return (self.folder / "reports/table" / name).read_bytes()

    @property
    def markdown(self) -> str:
        return self.file("report.md").decode()

    def line(self, row: str) -> list[str]:
        """The cells of a row of the Markdown table, without its name."""
        found = next(line for line in self.markdown.splitlines() if line.startswith((f"| [{row}](", f"| {row} |")))
        return [cell.strip() for cell in found.strip("|").split(" | ")][1:]

    def csv(self) -> dict[str, dict[str, str]]:
        """Row name -> its fields."""
        return {row["row"]: row for row in csv.DictReader(io.StringIO(self.file("table.csv").decode()))}

    def missing(self) -> str:
        return self.markdown.partition("## Missing")[2].partition("Made by")[0]
