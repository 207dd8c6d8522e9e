"""docs/ builds as a site: no warning, so every link has an end and every page a section, and nothing is fetched."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from tests.docs.documented import PAGES, ROOT

# What a browser fetches by itself to show a page.
FETCHED = re.compile(r"<(?:script|img|iframe|source|link)\b[^>]*?\b(?:src|href)=\"(?!data:)([^\"]+)\"[^>]*>")
STYLES = re.compile(r"(?:@import|url\()\s*['\"]?(https?:|//)")


def build(repository: Path, folder: Path) -> str:
    """Build as `make docs` does, and return what there is to say."""
    words = [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", "-c", "docs", ".", str(folder)]
    done = subprocess.run(words, cwd=repository, capture_output=True, text=True, check=False)
    assert done.returncode == bool(done.stderr), done.stderr
    return done.stderr


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The folder of the site, and what building it had to say."""
    folder = tmp_path_factory.mktemp("site")
    return folder, build(ROOT, folder)


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


def test_what_leads_nowhere_fails(tmp_path: Path) -> None:
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs/site").symlink_to(ROOT / "docs/site")
    shutil.copy(ROOT / "docs/conf.py", tmp_path / "docs/conf.py")  # it finds the repository by where it is
    (tmp_path / "README.md").write_text("# Read\n\n$a < b$ and [here](#read)\n")
    (tmp_path / "docs/choosing.md").write_text("# Choosing\n\n## Layers\n")
    lines = "[a](gone.md) [b](choosing.md#heads) [c](../README.md#read) [d](https://no.where/a%20b) [e](http:/typed)"
    (tmp_path / "docs/index.md").write_text(f"# Site\n\n[f](choosing.md#layers) {lines}\n")
    (tmp_path / "docs/lost.md").write_text("# Lost\n")
    said = build(tmp_path, tmp_path / "built")
    for place, problem in (("index", "gone.md"), ("index", "heads"), ("index", "'http:/typed' is no address")):
        assert re.search(rf"{place}\.md.*{problem}", said), said
    assert "lost.md: WARNING: document isn't included in any toctree" in said
    assert said.count("WARNING") == 4
    assert "<math" in (tmp_path / "built/README.html").read_text(encoding="utf-8")
