"""Runs sweeps as forked processes, whose fits are forks too; started by the tests as a process of its own.

Importing PyTorch, Lightning and transformers takes ten seconds, so it happens once. The forks are real
processes: they die of real signals, and locks, the ledger and run folders are what they leave behind. What
really ran is in events.txt: `start` and `end` of every fit, `measure` and `measured` of every evaluation, with its
folder and its worker's process id. Another machine is the folder ELSEWHERE beside, with a config of its own.

usage: sweep_driver.py FOLDER:SCENARIO...    prints a line with the exit codes of each
"""

from __future__ import annotations

import json
import os
import pty
import shutil
import signal
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from tests.forking import before_forking

from uniattn_pl.cli import main
from uniattn_pl.resilience.manifest import Manifest
from uniattn_pl.sweeps import child_process, ledger, worker

worker.POLL_S = 0.05
ELSEWHERE = Path("../elsewhere")
LINES, COLUMNS = 30, 80
BEGIN, END = {"fit": "start", "evaluate": "measure"}, {"fit": "end", "evaluate": "measured"}


def say(event: str, folder: str) -> None:
    with Path("events.txt").open("a") as file:
        file.write(f"{event} {folder} {os.getppid()}\n")


def events() -> list[str]:
    return Path("events.txt").read_text().splitlines()


def nothing(_: Path) -> None:
    pass


before_evaluating: Callable[[Path], None] = nothing


class ForkedJob:
    """A fit or an evaluation in a fork, with the part of `subprocess.Popen` that a worker uses."""

    def __init__(self, command: str, arguments: Sequence[str], log: Path, lock: int) -> None:
        self._code: int | None = None
        run = next(word for word in reversed(arguments) if word.startswith("trainer.default_root_dir="))
        folder = Path(run.partition("=")[2].strip("'\""))
        log.parent.mkdir(parents=True, exist_ok=True)
        self.pid = os.fork()
        if self.pid == 0:
            os.setsid()
            for number in (signal.SIGTERM, signal.SIGUSR1):
                signal.signal(number, signal.SIG_DFL)
            output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            os.dup2(output, 1)
            os.dup2(output, 2)
            sys.stdout = sys.__stdout__ = open(1, "w", closefd=False)  # noqa: SIM115
            sys.stderr = sys.__stderr__ = open(2, "w", closefd=False)  # noqa: SIM115
            say(BEGIN[command], folder.name)
            if command == "evaluate":
                before_evaluating(folder)
            code = main([command, *arguments])
            say(END[command], folder.name)
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)

    def poll(self) -> int | None:
        if self._code is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            self._code = os.waitstatus_to_exitcode(status) if pid else None
        return self._code

    def wait(self, timeout: float | None = None) -> int:
        end = time.monotonic() + (timeout or 1e9)
        while self.poll() is None:
            if time.monotonic() > end:
                raise subprocess.TimeoutExpired("fit", timeout or 0.0)
            time.sleep(0.02)
        return self.poll() or 0

    def terminate(self) -> None:
        os.kill(self.pid, signal.SIGTERM)

    def kill(self) -> None:
        os.kill(self.pid, signal.SIGKILL)


def start(arguments: list[str], machine: Path = Path()) -> int:
    """Start a command as a process."""
    pid = os.fork()
    if pid == 0:
        os.chdir(machine)
        os._exit(main(arguments))
    return pid


def outcome(pid: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def run(arguments: list[str], machine: Path = Path()) -> int:
    return outcome(start(arguments, machine))


def kill_worker_and_job(_: Path) -> None:
    """What is left of a machine that has lost its power."""
    os.kill(os.getppid(), signal.SIGKILL)
    os.kill(os.getpid(), signal.SIGKILL)


@contextmanager
def evaluations(act: Callable[[Path], None]) -> Iterator[None]:
    """Let every evaluation `act` on its run folder before it begins."""
    global before_evaluating
    before_evaluating = act
    yield
    before_evaluating = nothing


@contextmanager
def short_patience() -> Iterator[None]:
    """Let the claim of a worker elsewhere be free ten seconds after its last heartbeat."""
    usual = ledger.HEARTBEAT_S, ledger.GRACE_S
    ledger.HEARTBEAT_S, ledger.GRACE_S = worker.HEARTBEAT_S, worker.GRACE_S = 1, 10
    yield
    ledger.HEARTBEAT_S, ledger.GRACE_S = worker.HEARTBEAT_S, worker.GRACE_S = usual


def once(arguments: list[str]) -> list[int]:
    """The command, undisturbed."""
    return [run(arguments)]


def two_workers(arguments: list[str]) -> list[int]:
    """The command in two processes at once."""
    return [outcome(pid) for pid in [start(arguments), start(arguments)]]


def changed(arguments: list[str]) -> list[int]:
    """The command with fewer seeds, and one that is new."""
    return [run([*arguments, "sweep.seeds=[1,2,9]"])]


@contextmanager
def before_stage_2(act: Callable[[Path], None]) -> Iterator[None]:
    """Let every fit `act` on its run folder once stage 1 is recorded."""
    write = Manifest.write

    def replacement(manifest: Manifest, folder: Path) -> None:
        write(manifest, folder)
        if manifest.phase == "stage2":
            act(folder)

    Manifest.write = replacement  # type: ignore[method-assign]
    yield
    Manifest.write = write  # type: ignore[method-assign]


def killed_twice(arguments: list[str]) -> list[int]:
    """A worker killed together with its second fit; one killed alone, whose fourth fit goes on; one that ends."""

    def kill_both(folder: Path) -> None:
        if len(events()) == 3:
            kill_worker_and_job(folder)

    def kill_worker(_: Path) -> None:
        if sum(event.startswith("end") for event in events()) == 3:
            os.kill(os.getppid(), signal.SIGKILL)

    codes = []
    for act in (kill_both, kill_worker):
        with before_stage_2(act):
            codes.append(run(arguments))
    return [*codes, run(arguments)]


def terminated(arguments: list[str]) -> list[int]:
    """A worker that gets SIGTERM while its fit waits, which ends only because the signal is passed on; then again."""

    def wait(_: Path) -> None:
        os.kill(os.getppid(), signal.SIGTERM)
        signal.pause()

    with before_stage_2(wait):
        code = run(arguments)
    return [code, run(arguments)]


def pruned(arguments: list[str]) -> list[int]:
    """The fit of the point `bad` waits after stage 1 until it is told to end."""

    def wait(folder: Path) -> None:
        if folder.name == "bad":
            signal.pause()

    with before_stage_2(wait):
        return [run(arguments)]


def on_a_terminal(arguments: list[str]) -> list[int]:
    """The command on a terminal; what is written there is in terminal.txt."""
    pid, terminal = pty.fork()
    if pid == 0:
        os.environ["TERM"] = "xterm"
        termios.tcsetwinsize(1, (LINES, COLUMNS))
        os._exit(main(arguments))
    # Linux ends a terminal whose other side is closed with an error
    with Path("terminal.txt").open("wb") as file, suppress(OSError):
        while data := os.read(terminal, 65536):
            file.write(data)
    return [outcome(pid)]


def lost(arguments: list[str]) -> list[int]:
    """The command; then a point without its folder, one without its MLflow run, one without its evaluation: a report,
    the command again, a report; then with other rows, and with the first ones."""
    from mlflow.tracking import MlflowClient

    config = Path(arguments[-1])
    codes = [run(arguments)]
    shutil.rmtree("runs/small/seed=0")
    shutil.rmtree("runs/small/seed=2/evaluation")
    manifest = Manifest.read(Path("runs/small/seed=1"))
    assert manifest is not None
    MlflowClient("sqlite:///mlruns/mlflow.db").delete_run(manifest.mlflow_run_id)
    for words in (["report", "--config", str(config)], arguments, ["report", "--config", str(config)]):
        codes.append(run(words))
    rows = Path("rows.jsonl").read_text()
    for text in (rows.replace("Count", "Match"), rows):
        Path("rows.jsonl").write_text(text)
        codes.append(run(arguments))
    return codes


def rows_exchanged_meanwhile(arguments: list[str]) -> list[int]:
    """The command, the rows of which are exchanged before its second fit; then with the first ones again."""
    rows = Path("rows.jsonl").read_text()

    def exchange(_: Path) -> None:
        Path("rows.jsonl").write_text(rows.replace("Count", "Match"))

    with before_stage_2(exchange):
        code = run(arguments)
    Path("rows.jsonl").write_text(rows)
    return [code, run([*arguments, "--dry-run"])]


def measured_otherwise(arguments: list[str]) -> list[int]:
    """The command with another setting of the probe."""
    return [run([*arguments, "evaluation.held_out_rows=2"])]


def without_a_model(arguments: list[str]) -> list[int]:
    """The command whose evaluations find no model; then again, where the model that is gone is made first."""

    def take_away(folder: Path) -> None:
        with suppress(FileNotFoundError):
            (folder / "final").rename(folder / "away")

    with evaluations(take_away):
        code = run(arguments)
    return [code, run(arguments)]


def killed_in_an_evaluation(arguments: list[str]) -> list[int]:
    """A worker killed together with its first evaluation; then one that ends."""
    with evaluations(kill_worker_and_job):
        code = run(arguments)
    return [code, run(arguments)]


def two_machines(arguments: list[str]) -> list[int]:
    """The command here and elsewhere at once."""
    return [outcome(pid) for pid in [start(arguments), start(arguments, ELSEWHERE)]]


def machine_lost(arguments: list[str]) -> list[int]:
    """A worker killed together with its first fit; then one elsewhere."""
    with short_patience():
        with before_stage_2(kill_worker_and_job):
            code = run(arguments)
        return [code, run(arguments, ELSEWHERE)]


def machine_lost_with_a_model(arguments: list[str]) -> list[int]:
    """A worker killed together with its first evaluation; one elsewhere; then one here again."""
    with short_patience():
        with evaluations(kill_worker_and_job):
            code = run(arguments)
        return [code, run(arguments, ELSEWHERE), run(arguments)]


def ledger_away(arguments: list[str]) -> list[int]:
    """A worker whose ledger goes away in its fit, by the script `stop`; then one after the script `start`."""

    def stop(_: Path) -> None:
        subprocess.run(["sh", "stop"], check=True)

    with before_stage_2(stop):
        code = run(arguments)
    subprocess.run(["sh", "start"], check=True)
    return [code, run(arguments)]


SCENARIOS: dict[str, Callable[[list[str]], list[int]]] = {
    scenario.__name__: scenario
    for scenario in (
        once,
        two_workers,
        changed,
        killed_twice,
        terminated,
        pruned,
        on_a_terminal,
        lost,
        rows_exchanged_meanwhile,
        measured_otherwise,
        without_a_model,
        killed_in_an_evaluation,
        two_machines,
        machine_lost,
        machine_lost_with_a_model,
        ledger_away,
    )
}

if __name__ == "__main__":
    child_process.start = ForkedJob
    before_forking()
    for pair in sys.argv[1:]:
        folder, _, scenario = pair.rpartition(":")
        os.chdir(folder)
        print(json.dumps(SCENARIOS[scenario](["sweep", "--config", "small.yaml"])), flush=True)
