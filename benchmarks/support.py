"""Finds what every tested family can have, and writes it where `list families` reads it.

    python -m benchmarks.support [TYPE ...]

To be run when a family is added, for its type alone, or when a role's code changes (tests/families/test_support.py says
when). Some minutes on one core for all of them.
"""

from __future__ import annotations

import argparse
import json
import logging
import warnings
from collections.abc import Sequence
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path

from uniattn_pl.families.inspection import FAMILIES
from uniattn_pl.modeling.conversion import family_support


def main(types: Sequence[str]) -> None:
    """Write the table after each family, the rows of the others as they were."""
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    target = Path(str(files(family_support.__package__).joinpath(family_support.FILE)))
    found = family_support.kept_support()
    found |= {"transformers": version("transformers"), "architectures": family_support.architecture_roles()}
    for family in types or FAMILIES:
        found["families"][family] = family_support.family_support(family)
        kept = {name: found["families"][name] for name in FAMILIES if name in found["families"]}
        target.write_text(json.dumps({**found, "families": kept}, indent=1) + "\n", encoding="utf-8")
        print(family, {role: verdict for role, (verdict, _) in found["families"][family]["roles"].items()}, flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("types", nargs="*", metavar="TYPE", help="families to try again; without any, all of them")
    main(parser.parse_args().types)
