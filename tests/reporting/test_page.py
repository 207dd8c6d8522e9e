"""The report as one HTML file: what stands in it, that names cannot break it, that it loads nothing."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from typing import Any

import pytest
from tests.reporting.tracked import PLAIN, UNIATTN, Tracked

TITLE = "</title><script>alert(1)</script> {{data}} & more"
HEADING = "<img src=x onerror=alert(2)>"
PLAN = "layers 0-8 </script><b>unmodified</b>"


class Page(HTMLParser):
    """Elements and texts of a page, as a browser sees them."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: dict[str, list[str]] = {}
        self._open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        while self._open and self._open.pop() != tag:
            pass

    def handle_data(self, data: str) -> None:
        if self._open:
            self.texts.setdefault(self._open[-1], []).append(data)


@pytest.fixture
def page(tracked: Tracked) -> tuple[Page, dict[str, Any], Tracked, str]:
    """The page, its data, and the id of the sweep's run."""
    tracked.config(
        f"""
sweep:
  points:
    Post-Train: {{architecture: {{name: baseline}}}}
    UniAttn: {{architecture.superblock_size: 4}}
    CLA: {{architecture: {{name: cla, num_superblocks: 2}}}}
report:
  title: "{TITLE}"
  columns: {{KV cache: cost/kv_retain_rate, "{HEADING}": final/response_loss, PubMedQA: eval/pubmedqa/acc}}
"""
    )
    parent = tracked.run("sweep", "table", {}, architecture="uniattn")
    quality = {"eval/pubmedqa/acc": 0.5, "eval/pubmedqa/acc_low": 0.4, "eval/pubmedqa/acc_high": 0.6}
    tracked.fit("Post-Train", "baseline", PLAIN, 1.0, {"final/response_loss": 2.5, **quality}, parent=parent)
    run = tracked.fit(
        "UniAttn", "uniattn", UNIATTN, 0.8125, {"final/response_loss": 2.75}, parent=parent, mechanism="reuse"
    )
    tracked.client.log_text(run, PLAN, "plan.txt")
    assert tracked.report() == 0
    text = tracked.file("report.html").decode()
    found = Page(text)
    data = next(t for t in found.texts["script"] if t.startswith("{"))
    return found, json.loads(data), tracked, parent


def test_the_page_has_every_row_with_its_values_plan_and_link(page: tuple[Page, dict[str, Any], Tracked, str]) -> None:
    found, data, tracked, parent = page
    assert [column["heading"] for column in data["columns"]] == ["KV cache", HEADING, "PubMedQA"]
    assert [(c["cost"], c["quality"], c["better"]) for c in data["columns"]] == [
        (True, False, -1),
        (False, True, -1),
        (False, True, 1),
    ]
    first, second, third = data["rows"]
    assert (first["name"], first["modified"], second["name"], second["modified"]) == (
        "Post-Train",
        False,
        "UniAttn",
        True,
    )
    assert first["values"] == pytest.approx([100.0, 2.5, 50.0])
    assert first["bars"][2] == pytest.approx([40.0, 60.0])
    assert second["texts"] == ["81.2%", "2.750", "-"]
    assert second["values"][2] is None
    assert second["color"] != first["color"]
    assert second["plan"] == PLAN
    assert third["values"] == [None, None, None], "not run yet"
    assert found.texts["td"][:3] == ["100.0%", "2.500", "50.0"], "in the table, too, which needs no script"
    links = [attributes["href"] for tag, attributes in found.elements if tag == "a"]
    assert [re.search(r"/runs/(\w+)", link or "")[1] for link in links] == [  # type: ignore[index]
        run.info.run_id
        for name in ("Post-Train", "UniAttn")
        for run in tracked.client.search_runs([tracked.id], f"attributes.run_name = '{name}'")
    ]
    assert "report/report.html" in [a.path for a in tracked.client.list_artifacts(parent, "report")]


def test_names_are_text_and_nothing_is_loaded(page: tuple[Page, dict[str, Any], Tracked, str]) -> None:
    found, _, _, _ = page
    assert found.texts["title"] == [TITLE]
    assert found.texts["h1"] == [TITLE]
    assert HEADING in found.texts["th"]
    assert [tag for tag, _ in found.elements].count("script") == 2, "the data and the page's own"
    assert not [tag for tag, attributes in found.elements if {"src", "onerror"} & attributes.keys() or tag == "link"]
    policy = next(attributes["content"] for tag, attributes in found.elements if "http-equiv" in attributes)
    assert policy == "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'"
