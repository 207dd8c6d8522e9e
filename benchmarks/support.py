"""Finds what every tested family can have, and writes it where `list families` reads it.

    python -m benchmarks.support

To be run when a family is added or a role's code changes (tests/families/test_support.py says when). 66 seconds
of one core.
"""

from __future__ import annotations

import argparse
import json
import logging
import warnings
from importlib.resources import files
from pathlib import Path

from uniattn_pl.modeling.conversion import family_support


def main() -> None:
    """Write the table."""
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    target = Path(str(files(family_support.__package__).joinpath(family_support.FILE)))
    target.write_text(json.dumps(family_support.found_support(), indent=1) + "\n", encoding="utf-8")
    print(f"written: {target}")


if __name__ == "__main__":
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    main()
