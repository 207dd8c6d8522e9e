"""The rows of each architecture in the committed measurements, as its page shows them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from benchmarks.results.measurement import Measurement

from tools.pages.examples import ROOT

DATA = ROOT / "benchmarks" / "results" / "data"
COLUMNS = {
    "table1_medical": ("row", "cache", "held_out", "pubmedqa", "wikitext", "pass_key"),
    "peers_untrained": ("plan", "cache", "layers", "no_wc", "initialised", "above"),
    "heads_and_windows": ("changed", "cache", "no_wc", "initialised"),
    "recovery": ("plan", "cache", "steps", "loss"),
}
PAGES = {
    "table1_medical": "quality.md#post-training-under-one-protocol",
    "peers_untrained": "search.md#baselines-and-peers",
    "heads_and_windows": "search.md#fewer-heads-of-keys-and-values-and-windows",
    "recovery": "recovery.md",
}
UNMODIFIED = {"table1_medical": ("post_train",), "recovery": ("labels_100",)}  # what its rows are compared with


@dataclass(frozen=True)
class Rows:
    """Rows of one measurement, by their keys in its file."""

    measurement: str
    keys: tuple[str, ...]

    def lines(self) -> Iterator[str]:
        """What it measures, the rows, and where the others are."""
        found = Measurement.read(DATA / f"{self.measurement}.json")
        keys = dict.fromkeys((*UNMODIFIED.get(self.measurement, ()), *self.keys))
        yield f"{found.title} ([all rows, and how they came about](../results/{PAGES[self.measurement]})):"
        yield found.table(COLUMNS[self.measurement], list(keys))


MEASURED = {
    "uniattn": (
        Rows("table1_medical", ("uniattn_greedy", "uniattn", "theorem37")),
        Rows("recovery", ("uniattn",)),
    ),
    "shared_attention": (Rows("table1_medical", ("shared",)),),
    "cla": (Rows("table1_medical", ("cla_half", "cla_full")),),
    "llmdrop": (
        Rows("table1_medical", ("llmdrop_half", "llmdrop_half_wc", "llmdrop_full", "llmdrop_full_wc")),
        Rows("recovery", ("nbl_80",)),
        Rows("peers_untrained", ("nbl_80", "importance_80", "nbl_60", "importance_60")),
    ),
    "shortgpt": (Rows("peers_untrained", ("shortgpt_3", "replaceme_3", "shortgpt_5", "replaceme_5", "top_5")),),
    "kvsharer": (Rows("peers_untrained", ("kvsharer",)),),
    "yoco": (Rows("peers_untrained", ("yoco",)),),
    "gqa": (Rows("heads_and_windows", ("mean", "fitted")),),
    "window": (
        Rows("heads_and_windows", ("window_128", "window_64", "window_128_20", "window_64_20", "window_128_30")),
    ),
    "search": (Rows("table1_medical", ("search_80", "search_60")),),
    "given": (Rows("peers_untrained", ("windows_60",)), Rows("recovery", ("windows_60",))),
    "baseline": (Rows("table1_medical", ("pre_trained", "post_train")), Rows("recovery", ("labels_400",))),
}


def measured(name: str) -> str:
    """The section of figures of an architecture's page."""
    return "\n\n".join(line for rows in MEASURED[name] for line in rows.lines())
