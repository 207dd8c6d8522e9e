"""A folder in which documented commands can be tried: the shipped files, and stand-ins for what is the reader's own."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from tests.docs.documented import ROOT
from tests.once import load_once
from tests.packaged_parts import stand_in_for_gemma3

from uniattn_pl import architectures
from uniattn_pl.config import load_config
from uniattn_pl.config.loaded_config import plain_config
from uniattn_pl.data import sources
from uniattn_pl.data.data_files import Record
from uniattn_pl.evaluation import open_server, tasks
from uniattn_pl.families.catalogue import named_model
from uniattn_pl.resilience.manifest import Manifest

RUNS = (
    "my-uniattn",
    "quickstart/UniAttn",
    "smollm2-figure5-dropping/UniAttn",
    "smollm2-pmc-llmdrop-half-compensated",
    "smollm2-pmc-uniattn",
    "smollm2-pmc-uniattn-greedy",
)
UNFINISHED = "unfinished"
ROWS = [{"instruction": "Count.", "input": f"to {n}", "output": "1 2 3"} for n in range(1000)]
BAD_ROWS = [ROWS[0], {"instruction": "Count.", "input": "to 2", "outptu": "1 2"}]
TULU_ROWS = [{"input": row["input"], "output": row["output"]} for row in ROWS]


@pytest.fixture(scope="module")
def sandbox(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The working folder of the commands; nothing here reads a weight or a network.

    Stood in for, because it is not in a checkout or slow: data and run folders, the hub's rows, the shape of the
    quickstart's model, a package of weights, a server, and the task index of lm-evaluation-harness
    (tests/config/test_shipped_files.py reads it).
    Points of a sweep are loaded once for all commands on its file.
    """
    base = tmp_path_factory.mktemp("reader")
    folder = base / "checkout"
    folder.mkdir()
    for name in ("configs", "experiments", "benchmarks"):
        (folder / name).symlink_to(ROOT / name)
    _write(folder / "exp.yaml", example_of_readme())
    _write(folder / "my_rows.jsonl", "\n".join(map(json.dumps, ROWS)))
    _write(folder / "path/to/a/long/text", "A long text. " * 100)
    _write(folder / "my_rows.csv", "instruction,output\n")
    _write(folder / "bad_rows.jsonl", "\n".join(map(json.dumps, BAD_ROWS)))
    (folder / "runs" / UNFINISHED / "initial").mkdir(parents=True)
    for name in RUNS:
        shutil.copytree(named_model("tiny-llama"), folder / "runs" / name / "final")
        _write(folder / "runs" / name / "final/chat_template.jinja", "{{ messages[0].content }}")
    _write(base / "shared/data/train/pmc_llama_instructions_1000.json", json.dumps(ROWS))
    _write(base / "shared/data/train/tulu3_sft_filtered_1000.json", json.dumps(TULU_ROWS))
    _write(base / "shared/data/wikitext2/wiki.test.raw", "text")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.delenv("UNIATTN_PL_DATA", raising=False)
        patch.delenv("UNIATTN_PL_EVALUATION_DATA", raising=False)
        patch.setenv("UNIATTN_PL_CACHE", str(base / "cache"))
        load_once(patch)
        stand_in_for_gemma3(base / "packages", patch)
        patch.setattr(sources, "read_hub", hub_rows)
        patch.setattr(tasks, "task_manager", lambda: SimpleNamespace(task_index=documented_tasks()))
        patch.setattr(open_server, "open_server", lambda url: open_server.OpenServer(url, "tiny", 512, None))
        register_example()
        finished = Manifest(plain_config(load_config(["exp.yaml"])), phase="done")
        for name in RUNS:
            finished.write(folder / "runs" / name)
        yield folder
        del architectures.ARCHITECTURES["every_other"]


def register_example() -> None:
    """The architecture that docs/extending.md adds, with which it shows a command."""
    text = (ROOT / "docs" / "extending.md").read_text(encoding="utf-8")
    exec(text.partition("```python\n")[2].partition("```")[0], {"__name__": "__main__"})


def example_of_readme() -> str:
    """The experiment that README.md writes as exp.yaml."""
    match = re.search(r"```yaml\n(# exp\.yaml\n.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    assert match, "README.md shows exp.yaml"
    return match[1]


def documented_tasks() -> set[str]:
    """The tasks in the table of docs/evaluation.md."""
    text = (ROOT / "docs" / "evaluation.md").read_text(encoding="utf-8")
    return set(re.findall(r"^\| `(\w+)` \| `\w+\.jsonl` \|", text, re.MULTILINE))


def hub_rows(name: str, split: str, **_: object) -> Iterator[Record]:
    rows = TULU_ROWS if "tulu" in name else ROWS
    return iter([Record(row, lambda: name) for row in rows])


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
