"""What a terminal shows of the control codes that a live table is written with."""

from __future__ import annotations

import re

TOKEN = re.compile(r"\x1b\[([?0-9;]*)([A-Za-z])|([\r\n])|([^\x1b\r\n]+)")
CURSOR = "?25"


class Screen:
    """A terminal without a lower edge.

    Attributes:
        frames: what was there each time before something was wiped out.
        cursor_shown: whether people see where they type.
    """

    def __init__(self) -> None:
        self.frames: list[str] = []
        self.cursor_shown = True
        self._lines = [""]
        self._row = self._column = 0
        self._written = False

    @property
    def text(self) -> str:
        """What is there now."""
        return "\n".join(line.rstrip() for line in self._lines).rstrip("\n")

    def feed(self, written: str) -> None:
        """Take in what a program has written."""
        for number, code, newline, text in TOKEN.findall(written):
            if text:
                line = self._lines[self._row].ljust(self._column)
                self._lines[self._row] = line[: self._column] + text + line[self._column + len(text) :]
                self._column, self._written = self._column + len(text), True
            elif newline:
                self._row, self._column = self._row + (newline == "\n"), 0
                self._lines += [""] * (self._row + 1 - len(self._lines))
            else:
                self._control(code, number)

    def _control(self, code: str, number: str) -> None:
        if code == "A":
            self._row -= int(number or 1)
            assert self._row >= 0, "above the upper edge"
        elif code == "K":
            assert number == "2", "a whole line"
            if self._written:
                self.frames.append(self.text)
            self._lines[self._row], self._written = "", False
        elif number == CURSOR:
            self.cursor_shown = code == "h"
        else:
            assert code == "m", f"colours, and not {number}{code}"
