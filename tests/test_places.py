"""Places that cannot be read or written: one line that names them, and no traceback, whichever command it is."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from uniattn_pl import cli
from uniattn_pl.cli import main
from uniattn_pl.families.catalogue import named_model

TINY = ["model.source=tiny-llama", "architecture.num_superblocks=1"]
LONG = "n" * 300


@pytest.fixture(autouse=True)
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with a file where folders are needed, and an experiment."""
    monkeypatch.chdir(tmp_path)
    Path("file").write_text("x")
    Path("tiny.yaml").write_text("name: tiny\nmodel: {source: tiny-llama}\narchitecture: {num_superblocks: 1}\n")
    return tmp_path


def refused(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """The one line with which a command ends, having made no more than the folders of its caches."""
    assert main(list(words)) == 2
    lines = capsys.readouterr().err.splitlines()
    assert [line for line in lines if line.startswith("error: ")] == lines[-1:]
    assert "Traceback" not in "".join(lines)
    assert len(lines[-1]) < 600
    return lines[-1]


COMMANDS = {
    "fit": ["fit", "--config", "tiny.yaml"],
    "fit --dry-run": ["fit", "--config", "tiny.yaml", "--dry-run"],
    "bench --dry-run": ["bench", *TINY, "--dry-run"],
    "analyze --dry-run": ["analyze", "--config", "tiny.yaml", "--dry-run"],
    "sweep": ["sweep", "--config", "tiny.yaml", "sweep.seeds=[1,2]", "tracking.uri=sqlite:///store.db"],
}


@pytest.mark.parametrize("words", COMMANDS.values(), ids=COMMANDS)
def test_a_run_folder_that_cannot_be_made_or_written(
    words: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "file" in refused(capsys, *words, "trainer.default_root_dir=file/runs")
    assert "n" * 80 in refused(capsys, *words, f"trainer.default_root_dir={LONG}")
    monkeypatch.setattr(os, "access", lambda *_: False)  # what a read-only mount says, to everyone
    message = refused(capsys, *words, "trainer.default_root_dir=runs/x")
    assert "nothing can be written to 'runs/x" in message
    assert "is read-only for you; name another place" in message
    assert not Path("runs").exists()


@pytest.mark.parametrize("dry", [[], ["--dry-run"]], ids=["", "dry"])
def test_a_folder_to_export_to(
    dry: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["export", "--from", str(named_model("tiny-llama")), *dry, "--to"]
    assert "'file/exported' cannot be a folder" in refused(capsys, *words, "file/exported")
    assert "the name is too long" in refused(capsys, *words, LONG)
    monkeypatch.setattr(os, "access", lambda *_: False)
    assert "nothing can be written to 'exported'" in refused(capsys, *words, "exported")


@pytest.mark.parametrize("cache", ["file/cache", LONG])
def test_a_cache_folder(cache: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("UNIATTN_PL_CACHE", str(Path.cwd() / cache))
    assert str(Path.cwd() / cache)[:60] in refused(capsys, "plan", *TINY)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--config", f"{LONG}.yaml"], "the name is too long"),
        (["--config", "file/x.yaml"], "'file/x.yaml' does not exist"),
        (["--config", "tiny.yaml", f"data.source={LONG}.jsonl"], "the name is too long"),
        (["--config", "tiny.yaml", f"model.source=./{LONG}"], "the name is too long"),
        (["--config", "tiny.yaml", f"model.source={LONG}.gguf"], "the name is too long"),
        (["--config", "tiny.yaml", f"name={LONG}"], "it names a folder, of at most 200 bytes; got 300 characters"),
        (["--config", "tiny.yaml", "name=a/b"], "it names a folder: letters, digits"),
    ],
)
def test_names_that_cannot_be(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert message in refused(capsys, "fit", *words, "--dry-run")


@pytest.mark.parametrize(
    ("number", "code", "words"),
    [
        (errno.EROFS, 2, "cannot be written there"),
        (errno.EACCES, 2, "you may not read or write there"),
        (errno.ENOTDIR, 2, "a part of this path is a file"),
        (errno.ENOSPC, 1, "the disk is full"),
        (errno.EIO, 1, "the network file system fails"),
    ],
)
@pytest.mark.parametrize("wrapped", [False, True])
def test_an_error_of_a_place_is_one_line_wherever_it_comes_from(
    number: int,
    code: int,
    words: str,
    wrapped: bool,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def fail(_: list[str]) -> int:
        place = OSError(number, os.strerror(number), "/some/place")
        if wrapped:
            raise RuntimeError("a library says more") from place
        raise place

    monkeypatch.setattr(cli, "_dispatch", fail)
    assert main([]) == code
    message = capsys.readouterr().err
    assert message.startswith("error: '/some/place': ")
    assert words in message
    assert message.count("\n") == 1


def test_an_error_that_is_no_places_is_shown_in_full(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class PanicException(BaseException):
        """As Rust libraries raise it."""

    for error in (FileNotFoundError(errno.ENOENT, "no such file", "package/data"), KeyError("x"), PanicException("p")):

        def fail(_: list[str], error: BaseException = error) -> int:
            raise error

        monkeypatch.setattr(cli, "_dispatch", fail)
        assert main([]) == 1
        message = capsys.readouterr().err
        assert "Traceback" in message
        assert "please report it" in message
