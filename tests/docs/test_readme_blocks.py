"""What README shows of measurements is what the committed files say, and what the quickstart printed is of its form."""

from __future__ import annotations

import re
import runpy

from tests.docs.documented import ROOT

MAKER = runpy.run_path(str(ROOT / "benchmarks/readme.py"))
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_no_number_of_its_blocks_is_typed() -> None:
    assert MAKER["with_blocks"](README) == README, "stale; run: python benchmarks/readme.py"
    rows = {row["key"]: row for row in MAKER["table"]()["rows"]}
    assert f"| UniAttn, top, joint | 80.0 % | {rows['uniattn']['held_out']['value']:.3f} |" in README
    assert len(README.splitlines()) <= 130
    image = re.search(r"!\[[^]]*\]\((docs/figures/[\w.]+)\)", README)
    assert image is not None
    assert set(MAKER["draw"]()) == {f"{MAKER['NAME']}.png", f"{MAKER['NAME']}.svg"}
    assert (ROOT / image[1]).is_file()


def test_the_recorded_quickstart_is_a_log_without_its_progress() -> None:
    text = MAKER["RECORDED"].read_text(encoding="utf-8")
    assert MAKER["recorded"](text) == text
    assert (
        MAKER["recorded"]("[0/2] a: running\n[1/2] a: finished\nbench  3/9  stock\n/x/python -m a\n")
        == "[1/2] a: finished\npython -m a\n"
    )
    for row in ("Post-Train", "UniAttn"):
        assert re.search(rf"^\[\d/2\] {row}: finished, held-out loss [\d.]+, KV [\d.]+%$", text, re.MULTILINE)
        assert re.search(rf"^  {row} +[\d.]+% +[\d.]+ ", MAKER["quickstart_block"](), re.MULTILINE)
    assert re.search(r"^serve +\S+ -m uniattn_pl serve --from runs/quickstart/UniAttn$", text, re.MULTILINE)
