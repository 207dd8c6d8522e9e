"""When Python looks for garbage in a command: rarely while modules load, as ever once a model does.

A command loads about 4,000 modules before it works. The collector walks what they made again and again and finds
nothing, which is a quarter of the time until the work begins, and half a second of each later `gc.collect()`.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager

RARELY = (100_000, 50, 1_000)
_usual: list[tuple[int, int, int]] = []
"""The thresholds that hold again once work begins; empty outside of a command and after it began."""


@contextmanager
def rare_until_work_begins() -> Iterator[None]:
    """Collect rarely until `work_begins`, at the latest until this ends."""
    before = gc.get_threshold()
    _usual[:] = [before]
    gc.set_threshold(*RARELY)
    try:
        yield
    finally:
        _usual.clear()
        gc.set_threshold(*before)


def work_begins() -> None:
    """Collect as usual from here on, but never look again at what is there: modules stay. Only in a command."""
    if _usual:
        gc.set_threshold(*_usual.pop())
        if not gc.get_freeze_count():  # again and again it would keep the garbage of former models
            gc.freeze()
