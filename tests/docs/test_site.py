"""docs/ builds as a site: no warning, so every link has an end and every page a section, and nothing is fetched."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from tests.docs.documented import PAGES, ROOT

# What a browser fetches by itself to show a page.
FETCHED = re.compile(r"<(?:script|img|iframe|source|link)\b[^>]*?\b(?:src|href)=\"(?!data:)([^\"]+)\"[^>]*>")
STYLES = re.compile(r"(?:@import|url\()\s*['\"]?(https?:|//)")


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The folder of the site, and what building it had to say."""
    folder = tmp_path_factory.mktemp("site")
    words = [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", "-c", "docs", ".", str(folder)]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode in (0, 1), done.stderr
    return folder, done.stderr


def test_the_site_builds_without_a_warning(built: tuple[Path, str]) -> None:
    assert built[1] == ""


def test_every_page_is_in_it_and_in_the_navigation(built: tuple[Path, str]) -> None:
    folder, _ = built
    start = (folder / "docs/index.html").read_text(encoding="utf-8")
    for page in PAGES:
        path = page.relative_to(ROOT).with_suffix(".html")
        assert (folder / path).is_file()
        link = path.relative_to("docs").as_posix() if path.parts[0] == "docs" else f"../{path}"
        assert f'href="{link}"' in start or link == "index.html", f"{path} is in no section of docs/conf.py"


def test_nothing_is_fetched_from_elsewhere(built: tuple[Path, str]) -> None:
    folder, _ = built
    fetched = {
        address for page in folder.rglob("*.html") for address in FETCHED.findall(page.read_text(encoding="utf-8"))
    }
    assert len(fetched) > 5
    assert [address for address in fetched if re.match(r"[a-z]+:|//", address)] == []
    assert [style for style in folder.rglob("*.css") if STYLES.search(style.read_text(encoding="utf-8"))] == []
