"""The command lines that README, docs/, comments of YAML files, examples and the help of the commands show."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

from uniattn_pl.commands import COMMANDS
from uniattn_pl.config.presets import presets

ROOT = Path(__file__).parents[2]
PAGES = [
    *(
        ROOT / name
        for name in (
            "README.md",
            "CONTRIBUTING.md",
            "CHANGELOG.md",
            "benchmarks/gpu/README.md",
            "benchmarks/peers/README.md",
        )
    ),
    *sorted((ROOT / "docs").rglob("*.md")),
]
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))
SHIPPED = sorted([*(ROOT / "configs").rglob("*.yaml"), *(ROOT / "experiments").rglob("*.yaml")])

# Words that stand for something of the reader's, and what is put there to try a command.
PLACEHOLDERS = {
    "experiments/smollm2/FILE": "experiments/smollm2/pmc_uniattn.yaml",
    "FILE": "experiments/smollm2/sweep_superblocks.yaml",
    "SWEEP.yaml": "experiments/smollm2/sweep_superblocks.yaml",
    "COMMAND": "fit",
    "NAME": "my-uniattn",
    "POINT": "num_superblocks=4",
    "RATE": "0.5",
    "FOLDER": "elsewhere",
    "WORDS": "seed=1",
    "TEXT": "text",
}
STARTS = r"(?:uniattn-pl|python -m uniattn_pl|torchrun|make|python benchmarks/|python -m benchmarks|python examples/)"


@dataclass(frozen=True)
class Command:
    """A command line somebody may copy.

    Attributes:
        program: `uniattn_pl`, `make`, `benchmarks` or `examples`.
        words: what follows the program, with placeholders replaced.
        place: file and line, relative to the repository.
    """

    program: str
    words: tuple[str, ...]
    place: str

    def __str__(self) -> str:
        return " ".join([self.program, *self.words])

    @property
    def name(self) -> str:
        """The command, target or script."""
        return self.words[0]

    @property
    def subject(self) -> str:
        """The first config file, or `-` without one; of a preset the file that it is."""
        words = zip(self.words, self.words[1:], strict=False)
        named = next((after for word, after in words if word == "--config"), "-")
        known = presets()
        return _relative(known[named]) if named in known else named

    @property
    def starts_nothing(self) -> bool:
        """Whether it answers at once, so that a test can run it as it stands."""
        return self.name in ("completion", "list", "plan", "report") or not {
            "--help",
            "--dry-run",
            "--print-config",
        }.isdisjoint(self.words)


def documented() -> list[Command]:
    """Every command line, in the order of the files."""
    found = [
        *(command for page in PAGES for command in in_markdown(page)),
        *(command for file in SHIPPED for command in in_comments(file)),
        *(command for name in COMMANDS for command in in_help(name)),
        *(command for file in EXAMPLES for command in in_docstring(file)),
    ]
    return [command for command in found if command is not None]


def in_markdown(page: Path) -> Iterator[Command | None]:
    """Lines of ```bash blocks, and inline code, which may go over several lines of a paragraph."""
    text = page.read_text(encoding="utf-8")
    for block, first in _shell_blocks(text):
        yield from (_command(line, page, number) for line, number in _lines(block, first))
    prose = re.sub(r"^```.*?^```", lambda match: re.sub(r"[^\n]", " ", match[0]), text, flags=re.MULTILINE | re.DOTALL)
    for match in re.finditer(r"(?<!`)`([^`]+)`(?!`)", prose):
        code = re.sub(r"\s+", " ", match[1]).strip()
        if "\n\n" not in match[1]:
            yield _command(code, page, _line_of(text, match.start()))


def command_lines() -> list[tuple[str, str]]:
    """Lines of ```bash blocks, and where they are, that are no command of this project."""
    found = []
    for page in PAGES:
        for block, first in _shell_blocks(page.read_text(encoding="utf-8")):
            for line, number in _lines(block, first):
                if line and _command(line, page, number) is None:
                    found.append((line, f"{_relative(page)}:{number}"))
    return found


def _shell_blocks(text: str) -> Iterator[tuple[str, int]]:
    """Each ```bash block, which may be indented by the list that it is in, and the number of its first line."""
    for match in re.finditer(r"^( *)```bash\n(.*?)^\1```", text, re.MULTILINE | re.DOTALL):
        yield match[2], _line_of(text, match.start(2))


def in_comments(file: Path) -> Iterator[Command | None]:
    """The `# Run:` comment of a YAML file; a line below it such as `one row: --only UniAttn` adds words to it."""
    first = ""
    for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), start=1):
        if not line.startswith("#"):
            return
        if not first and not line.startswith("# Run:"):
            continue
        for match in re.finditer(rf"\b{STARTS} .*?(?=\s*\(|\)|\s\s|$)", line):
            first = first or match[0]
            yield _command(match[0].replace("THIS", _relative(file)), file, number)
        added = re.match(r"#\s+[\w ]+:\s+((?:--|[a-z_.]+=).*?)(?=\s*\(|\s\s|$)", line)
        if added:
            yield _command(f"{first} {added[1]}", file, number)


def in_help(name: str) -> Iterator[Command | None]:
    """The examples of a command's help."""
    file = ROOT / "src" / "uniattn_pl" / "commands" / f"{name}_command.py"
    line = file.read_text(encoding="utf-8").split("\nEXAMPLE = ")[0].count("\n") + 2
    example = import_module(f"uniattn_pl.commands.{name}_command").EXAMPLE
    yield from (_command(text, file, number) for text, number in _lines(example, line))


def in_docstring(file: Path) -> Iterator[Command | None]:
    """The indented lines of an example's docstring, which is the help of its command line, too."""
    for number, line in enumerate(file.read_text(encoding="utf-8").split('"""')[1].splitlines(), start=1):
        if line.startswith("    "):
            yield _command(line.strip(), file, number)


def _lines(text: str, first: int) -> Iterator[tuple[str, int]]:
    """Each line, joined with those that go on from it, and its number."""
    joined, start = "", first
    for number, line in enumerate(text.splitlines(), start=first):
        start = start if joined else number
        joined += line.strip()
        if joined.endswith("\\"):
            joined = joined[:-1]
            continue
        yield joined, start
        joined = ""


def _command(text: str, file: Path, line: int) -> Command | None:
    """The command a text is, or None: a text that is none, or the name of a program or command alone."""
    for word in sorted(PLACEHOLDERS, key=len, reverse=True):
        text = re.sub(rf"(?<![\w.]){re.escape(word)}(?![\w.])", PLACEHOLDERS[word], text)
    place = f"{_relative(file)}:{line}"
    text = re.sub(r"^(?:[A-Z_]+=\S+ +|srun +)+", "", text)
    text = re.sub(r"^torchrun .*?-m uniattn_pl\b|^uniattn-pl(?= )|^python -m uniattn_pl\b", "uniattn_pl", text)
    text = re.sub(r"^python -m benchmarks\.([\w.]+)", lambda m: f"benchmarks {_script(m[1])}", text)
    text = re.sub(r"^python (benchmarks|examples)/", r"\1 ", text)
    if not re.match(r"(?:uniattn_pl|make|benchmarks|examples) +\S", text):
        return None
    program, *words = shlex.split(text, comments=True)
    named_only = program == "uniattn_pl" and len(words) == 1
    return None if named_only or not words else Command(program, tuple(words), place)


def _script(module: str) -> str:
    """The file of a module below benchmarks/, or what runs of a package."""
    path = module.replace(".", "/")
    return f"{path}/__main__.py" if (ROOT / "benchmarks" / path).is_dir() else f"{path}.py"


def _line_of(text: str, position: int) -> int:
    return text.count("\n", 0, position) + 1


def _relative(file: Path) -> str:
    return str(file.relative_to(ROOT))
