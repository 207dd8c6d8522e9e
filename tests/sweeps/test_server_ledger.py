"""Sweeps whose ledger is a database server, shared by workers on two machines: each has a folder of its own."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier

import pytest
from tests.sweeps.postgres_server import PASSWORD, PostgresServer, binaries
from tests.sweeps.small_sweep import SmallSweep, drive

from uniattn_pl.cli import main
from uniattn_pl.sweeps.ledger import Ledger
from uniattn_pl.sweeps.sweep_folder import SweepFolder

WITH_EVALUATION = "{num_samples: 4, probes: [held_out]}"
WRONG = "wrong-battery"


@pytest.fixture(scope="module")
def server() -> Iterator[PostgresServer]:
    if binaries() is None:
        pytest.skip("PostgreSQL is not installed (on Debian: apt-get install postgresql)")
    server = PostgresServer()
    server.start()
    yield server
    server.stop()


def two_machines(folder: Path, sweep: str, evaluation: str = WITH_EVALUATION) -> tuple[SmallSweep, SmallSweep]:
    """Working folders with the same experiment, the same ledger and, in the first one, the MLflow store of both."""
    folder.mkdir(exist_ok=True)
    here = SmallSweep(folder / "here", sweep, evaluation=evaluation)
    shared = "{uri: sqlite:///../here/mlruns/mlflow.db}"
    return here, SmallSweep(folder / "elsewhere", sweep, evaluation=evaluation, tracking=shared)


def rows(small: SmallSweep) -> str:
    """The final table without what follows: the answers of the models that are on this machine, and commands."""
    return small.table().partition("\n\n")[0].partition("Held-out rows, and what each model says")[0]


def test_two_machines_share_a_sweep(server: PostgresServer, tmp_path: Path) -> None:
    sweep = f"{{seeds: [0, 1, 2, 3], storage: '{server.database('shared')}'}}"
    here, elsewhere = two_machines(tmp_path, sweep)
    codes, printed = drive((here, "two_machines"))
    assert codes == [[0, 0]], printed

    names = [f"seed={seed}" for seed in range(4)]
    fits = here.events("start"), elsewhere.events("start")
    assert all(fits), "both had points"
    assert fits[0] + fits[1] == dict.fromkeys(names, 1)
    assert (here.events("measured"), elsewhere.events("measured")) == fits, "each evaluated where its model is"
    assert rows(here) == rows(elsewhere)
    assert rows(here).count("finished") == 4
    (best,) = (small for small in (here, elsewhere) if "uniattn_pl generate --from" in small.table())
    (other,) = {here, elsewhere} - {best}
    assert "whose run is in " in other.table()
    assert str(best.point("").resolve()) in other.table()

    parent, children = here.runs()
    assert parent.info.status == "FINISHED"
    assert sorted(run.info.run_name for run in children) == names
    assert {run.data.tags["mlflow.parentRunId"] for run in children} == {parent.info.run_id}
    written = [path for path in tmp_path.rglob("*") if path.is_file() and path.name != "small.yaml"]
    assert written
    assert not [path for path in written if PASSWORD.encode() in path.read_bytes()]


def test_what_a_lost_machine_leaves_is_done_elsewhere_where_it_can_be(server: PostgresServer, tmp_path: Path) -> None:
    sweep = f"{{seeds: [0, 1], storage: '{server.database('fit_lost')}'}}"
    here, elsewhere = two_machines(tmp_path / "fit_lost", sweep, evaluation="{num_samples: 4}")
    sweep = f"{{seeds: [0, 1], storage: '{server.database('model_lost')}'}}"
    with_model, without_model = two_machines(tmp_path / "model_lost", sweep)
    codes, printed = drive((here, "machine_lost"), (with_model, "machine_lost_with_a_model"))
    assert codes == [[-9, 0], [-9, 1, 0]], printed

    assert here.events("start") == {"seed=0": 1}
    assert not here.events("end")
    assert elsewhere.events("end") == {"seed=0": 1, "seed=1": 1}
    assert rows(elsewhere).count("finished") == 2

    assert without_model.events("measured") == {"seed=1": 1}
    assert "to evaluate" in rows(without_model)
    assert (
        "error: 1 of 2 points are not evaluated; the same command there does it.\nseed=0: its model is in " in printed
    )
    assert with_model.events("start") == {"seed=0": 1}, "fitted before the machine was lost"
    assert with_model.events("measured") == {"seed=0": 1}, "after it came back"
    assert rows(with_model).count("finished") == 2


def test_a_server_that_goes_away_costs_no_fit(server: PostgresServer, tmp_path: Path) -> None:
    small = SmallSweep(tmp_path, f"{{seeds: [5], storage: '{server.database('away')}'}}")
    for action in ("start", "stop"):
        (tmp_path / action).write_text(server.command(action))
    (codes,), printed = drive((small, "ledger_away"))
    assert codes == [1, 0], printed
    (told,) = (line for line in printed.splitlines() if line.startswith("error: "))
    assert told.startswith("error: the ledger of the sweep does not answer: ")
    assert small.events("start") == small.events("end") == {"seed=5": 1}
    assert "finished" in small.table()


def test_a_server_that_was_started_again_is_used_again(server: PostgresServer, tmp_path: Path) -> None:
    ledger = Ledger(server.database("again"), "a", SweepFolder(tmp_path), retries=1, prune_after=None)
    ledger.enqueue(["point"])
    subprocess.run(["sh", "-c", server.command("restart")], check=True, stdout=subprocess.DEVNULL)
    claim = ledger.claim(["point"])
    assert claim is not None
    ledger.finish(claim, 1.5, step=3, kv_rate=0.5)
    assert ledger.states(["point"])["point"].loss == 1.5


def test_workers_that_start_together_make_one_ledger(server: PostgresServer, tmp_path: Path) -> None:
    url, machines, keys = server.database("together"), 6, [f"point {n}" for n in range(5)]
    together = Barrier(machines)

    def work(machine: int) -> tuple[str, list[str]]:
        together.wait()
        ledger = Ledger(url, "a", SweepFolder(tmp_path / str(machine)), retries=1, prune_after=None)
        together.wait()
        ledger.enqueue(keys)
        done = []
        while (claim := ledger.claim(keys)) is not None:
            done.append(claim.key)
            ledger.finish(claim, 1.0, step=1, kv_rate=0.5)
        return ledger.sweep_id, done

    with ThreadPoolExecutor(machines) as pool:
        results = list(pool.map(work, range(machines)))
    assert len({sweep_id for sweep_id, _ in results}) == 1
    assert sorted(key for _, done in results for key in done) == keys, "each by one machine"


@pytest.mark.parametrize(
    ("storage", "code", "told"),
    [
        ("postgresql+pg8000://tester:wrong-battery@127.0.0.1/sweeps", 2, "cannot be used (No module named 'pg8000')"),
        ("postgresql+psycopg://tester:wrong-battery@127.0.0.1:port/sweeps", 2, "cannot be used (invalid literal"),
        ("postgresql+psycopg://tester:wrong-battery@127.0.0.1:1/sweeps", 1, "does not answer: connection failed"),
        ("the server with a wrong password", 1, 'password authentication failed for user "tester"'),
        ("the server without the database", 1, 'database "sweeps" does not exist'),
    ],
)
def test_a_ledger_that_cannot_be_used_is_told_in_a_line(
    storage: str,
    code: int,
    told: str,
    server: PostgresServer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    if storage.startswith("the server"):
        storage = server.url("sweeps", WRONG if "password" in storage else PASSWORD)
    monkeypatch.chdir(tmp_path)
    SmallSweep(tmp_path, f"{{seeds: [0], storage: '{storage}'}}")
    assert main(["sweep", "--config", "small.yaml"]) == code
    printed = "".join(capsys.readouterr())
    (line,) = printed.splitlines()
    assert line.startswith("error: ")
    assert told in line
    assert PASSWORD not in printed
    assert WRONG not in printed
