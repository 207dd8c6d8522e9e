"""Writes docs/RESULTS.md, docs/results/, docs/claims.md and docs/families.md from the numbers that are committed.

    python -m benchmarks.results            # write what has changed
    python -m benchmarks.results --check    # write nothing; exit code 1 where a page is not what the numbers say

The numbers are in benchmarks/results/data, one file per measurement, those of a card in benchmarks/gpu; the prose is in
benchmarks/results/templates.
"""

from __future__ import annotations

import argparse

from benchmarks.results.pages import DOCS, pages, write


def main() -> int:
    """Write or check; the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing, say which pages are stale")
    if not parser.parse_args().check:
        for file in write():
            print(f"written: {file.relative_to(DOCS.parent)}")
        return 0
    stale = [name for name, text in pages().items() if not _is(name, text)]
    for name in stale:
        print(f"stale: docs/{name}; run: python -m benchmarks.results")
    return int(bool(stale))


def _is(name: object, text: str) -> bool:
    file = DOCS / str(name)
    return file.exists() and file.read_text(encoding="utf-8") == text


if __name__ == "__main__":
    raise SystemExit(main())
