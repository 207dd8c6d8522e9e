"""Files that come with the package: the building blocks of `configs/`, and the quickstart.

In an installed package they are in its folder `presets`, in a clone where the repository has them; pyproject.toml says
which go along. `--config quickstart` and `include: uniattn_pl://training/small` name them, wherever the program runs.
"""

from __future__ import annotations

from pathlib import Path

from uniattn_pl.config.paths import path_argument
from uniattn_pl.errors import UserError, did_you_mean

SCHEME = "uniattn_pl://"
BLOCKS, EXPERIMENTS = "configs", ("experiments/quickstart.yaml",)
_PACKAGE = Path(__file__).parents[1]


def presets() -> dict[str, Path]:
    """Name -> file: `quickstart`, `training/small`, ..."""
    installed = _PACKAGE / "presets"
    root = installed if installed.is_dir() else _PACKAGE.parents[1]
    named = {Path(name).stem: root / name for name in EXPERIMENTS}
    blocks = root / BLOCKS
    named |= {file.relative_to(blocks).with_suffix("").as_posix(): file for file in sorted(blocks.rglob("*.yaml"))}
    return {name: file for name, file in named.items() if file.is_file()}


def preset_file(name: str) -> Path:
    """The file of a preset, named with or without `SCHEME`. Raises UserError with the nearest name."""
    known, wanted = presets(), name.removeprefix(SCHEME).removesuffix(".yaml")
    if wanted not in known:
        raise UserError(f"there is no preset '{wanted}'.{did_you_mean(wanted, known)} Presets: {', '.join(known)}.")
    return known[wanted]


def config_argument(text: str) -> Path:
    """The file that a command line's `--config` names: a path, or a preset where there is no such file.

    Raises:
        UserError: there is no such preset, or as `path_argument`.
    """
    if text.startswith(SCHEME):
        return preset_file(text)
    path, known = path_argument(text), presets()
    if path.suffix or path.exists() or text not in known:
        return path
    return known[text]
