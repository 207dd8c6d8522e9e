"""The site of docs/, built by Sphinx (`make docs`): every page is Markdown that reads on a code host as it stands.

The source is the whole repository, so that links out of docs/ work in both places. Nothing is fetched when the site is
built or read: formulas become MathML here, fonts are the reader's. A warning fails the build: a link or anchor without
an end, a page that no section has.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import Any

from docutils import nodes
from latex2mathml.converter import convert
from sphinx.addnodes import pending_xref
from sphinx.application import Sphinx
from sphinx.util import logging

ROOT = Path(__file__).parents[1]

project = "uniattn_pl"
copyright = ""
root_doc = "docs/index"
extensions = ["myst_parser"]
include_patterns = ["docs/**", "*.md", "benchmarks/**/README.md"]
exclude_patterns = [".*", "build", "src", "tests", "runs", "mlruns", "exported", "reports", "docs/site"]
nitpicky = True

myst_enable_extensions = ["dollarmath"]  # $x$ in a line; blocks have the language `math`
myst_fence_as_directive = ["math"]
myst_heading_anchors = 4
myst_links_external_new_tab = False

html_theme = "furo"
html_title = "uniattn_pl"
html_static_path = ["site/static"]
html_css_files = ["pages.css"]
html_math_renderer = "mathml"
html_copy_source = False
html_show_sphinx = False
html_show_copyright = False
html_additional_pages = {"index": "to_start.html"}
templates_path = ["site/templates"]

# Sections of the navigation, with their pages: names below docs/, globs, or from the repository's root where they begin
# with a slash. What is generated may be missing.
SECTIONS = {
    "Start": ["/README", "troubleshooting"],
    "Concepts": [f"concepts/{name}" for name in ("roles", "superblocks", "compensation", "stages", "costs")],
    "Architectures": [
        f"architectures/{name}"
        for name in (
            "index",
            "uniattn",
            "shared_attention",
            "cla",
            "yoco",
            "kvsharer",
            "llmdrop",
            "shortgpt",
            "gqa",
            "window",
            "search",
            "given",
            "baseline",
        )
    ],
    "How-to": [
        "choosing",
        "calibration",
        "data",
        "training",
        "distillation",
        "preferences",
        "evaluation",
        "inference",
        "models",
        "converted-models",
        "serving",
        "sweeps",
        "reports",
        "tracking",
        "extending",
    ],
    "Results": ["RESULTS", "results/*", "claims"],
    "Reference": [
        "commands",
        "configuration",
        "api",
        "families",
        "architecture",
        "security",
        "/CONTRIBUTING",
        "/benchmarks/**/README",
        "/CHANGELOG",
    ],
}
TITLES = {"README": "README"}
ADDRESS = re.compile(r"(https?://[a-z0-9.-]+(\.[a-z]{2,}|:\d+)(/[^\s<>\"]*)?|mailto:\S+@\S+)")


def add_navigation(app: Sphinx, docname: str, source: list[str]) -> None:
    """Put the sections behind the first page, as the trees of pages that Sphinx asks for."""
    if docname == root_doc:
        for section, names in SECTIONS.items():
            pages = list(dict.fromkeys(page for name in names for page in _pages(name)))
            listed = "\n".join(f"{TITLES[page]} </{page}>" if page in TITLES else f"/{page}" for page in pages)
            source[0] += f"\n```{{toctree}}\n:hidden:\n:caption: {section}\n\n{listed}\n```\n"


def _pages(name: str) -> list[str]:
    pattern = f"{name.removeprefix('/')}.md" if name.startswith("/") else f"docs/{name}.md"
    return [path.relative_to(ROOT).with_suffix("").as_posix() for path in sorted(ROOT.glob(pattern))]


def check_addresses(app: Sphinx, document: nodes.document) -> None:
    """Look at links to other sites: their shape alone, since no network is used."""
    for reference in document.findall(nodes.reference):
        address = reference.get("refuri", "")
        if re.match(r"[a-z]+:", address) and not ADDRESS.fullmatch(address):
            logging.getLogger(__name__).warning("'%s' is no address", address, location=reference)


def unlink_folders(app: Sphinx, document: nodes.document) -> None:
    """Leave a link to a folder of the repository its text: a site has none to show."""
    here = posixpath.dirname(app.env.docname)
    for link in list(document.findall(pending_xref)):
        if (ROOT / posixpath.normpath(posixpath.join(here, link.get("reftarget", "")))).is_dir():
            link.replace_self(link.children)


def inline_formula(writer: Any, node: nodes.math) -> None:
    """A formula in a line, as MathML."""
    writer.body.append(convert(node.astext()))
    raise nodes.SkipNode


def block_formula(writer: Any, node: nodes.math_block) -> None:
    """A formula of its own line or lines, as MathML."""
    writer.body.append(f'<div class="formula">{convert(node.astext(), display="block")}</div>')
    raise nodes.SkipNode


def setup(app: Sphinx) -> dict[str, bool]:
    """Called by Sphinx."""
    app.add_html_math_renderer("mathml", (inline_formula, None), (block_formula, None))
    app.connect("source-read", add_navigation)
    app.connect("doctree-read", check_addresses)
    app.connect("doctree-read", unlink_folders)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
