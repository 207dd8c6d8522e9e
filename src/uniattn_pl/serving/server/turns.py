"""Questions take turns at the model: a part of a prompt or one token each, in the order in which they came.

One thread has the model. Every forward has one text, so an answer does not depend on what else is asked for: a batch
would round in another way than a text by itself. What waits is bounded, and so is what is held.
"""

from __future__ import annotations

import asyncio
import sys
import threading
import traceback
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator, Sequence

from uniattn_pl.redaction import redact
from uniattn_pl.serving.server.answers import Part
from uniattn_pl.serving.server.api_errors import ApiError, shutting_down
from uniattn_pl.serving.server.questions import Question
from uniattn_pl.serving.server.server_limits import ServerLimits


class Exchange:
    """The questions of one request and the parts of their answers, in the event loop of whoever asked."""

    def __init__(self, questions: Sequence[Question]) -> None:
        self.questions, self.given_up = questions, False
        self._loop = asyncio.get_running_loop()
        self._events: asyncio.Queue[tuple[int, Part | ApiError | None]] = asyncio.Queue()

    def post(self, number: int, event: Part | ApiError | None) -> None:
        """Tell what has become of question `number`; None: it is answered. From any thread."""
        try:
            self._loop.call_soon_threadsafe(self._events.put_nowait, (number, event))
        except RuntimeError:  # the loop has ended, and with it whoever asked
            self.given_up = True

    def give_up(self) -> None:
        """Nobody reads the answers any more; what is being made of them ends at its next turn."""
        self.given_up = True

    async def parts(self) -> AsyncIterator[tuple[int, Part]]:
        """Yield parts with the number of their question until all are answered. Raises ApiError."""
        unanswered = len(self.questions)
        try:
            while unanswered:
                number, event = await self._events.get()
                if isinstance(event, ApiError):
                    raise event
                if event is None:
                    unanswered -= 1
                else:
                    yield number, event
        finally:
            self.give_up()


class _Ticket:
    """One question on its way."""

    def __init__(self, exchange: Exchange, number: int) -> None:
        self.exchange, self.number = exchange, number
        self.parts: Iterator[Part | None] | None = None

    def take_turn(self, answer: Callable[[Question], Iterator[Part | None]]) -> tuple[Part | ApiError | None, bool]:
        """Go one step on; returns what there is to tell, and whether there are more steps."""
        if self.exchange.given_up:
            return None, False
        try:
            if self.parts is None:
                self.parts = answer(self.exchange.questions[self.number])
            return next(self.parts), True
        except StopIteration:
            return None, False
        except BaseException as error:  # whatever it is (a panic inside a tokenizer), the other questions go on
            print(redact(traceback.format_exc()), end="", file=sys.stderr)
            memory = isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"
            what = "the memory of this server is full; ask for a shorter text" if memory else "this request failed here"
            return ApiError(503 if memory else 500, f"{what}."), False


class Turns:
    """Who may ask the model what, and when.

    Args:
        answer: yields the parts of a question's answer, or None, turn by turn.
    """

    def __init__(self, answer: Callable[[Question], Iterator[Part | None]], limits: ServerLimits) -> None:
        self._answer, self._limits = answer, limits
        self._waiting: deque[_Ticket] = deque()
        self._running: list[_Ticket] = []
        self._changed = threading.Condition()
        self._stopping = False
        self._thread = threading.Thread(target=self._take_turns, name="turns", daemon=True)
        self._thread.start()

    @property
    def running(self) -> int:
        """Texts that are being made."""
        return len(self._running)

    @property
    def waiting(self) -> int:
        """Texts that wait for their first turn."""
        return len(self._waiting)

    def begin(self, questions: Sequence[Question]) -> Exchange:
        """Queue the questions of a request, all or none. In an event loop.

        Raises:
            ApiError: there are more than ever fit, more than fit now, or the server is ending.
        """
        exchange = Exchange(questions)
        most = self._limits.parallel + self._limits.waiting
        if len(questions) > most:
            raise ApiError(
                400, f"a request may have at most {most} prompts here, got {len(questions)}.", param="prompt"
            )
        with self._changed:
            if self._stopping:
                raise shutting_down()
            self._waiting = deque(ticket for ticket in self._waiting if not ticket.exchange.given_up)
            if len(self._running) + len(self._waiting) + len(questions) > most:
                raise ApiError(
                    429,
                    f"the queue is full: {len(self._running)} texts are being made and {len(self._waiting)} wait, "
                    f"of at most {most}; ask again later.",
                    code="queue_full",
                )
            self._waiting.extend(_Ticket(exchange, number) for number in range(len(questions)))
            self._changed.notify()
        return exchange

    def stop(self) -> None:
        """End what is being made and take nothing more; from any thread, or a signal's handler."""
        self._stopping = True
        threading.Thread(target=self._wake, daemon=True).start()  # a handler may interrupt whoever holds the lock

    def join(self) -> None:
        """Wait until the thread has ended."""
        self._thread.join()

    def _wake(self) -> None:
        with self._changed:
            self._changed.notify()

    def _take_turns(self) -> None:
        while True:
            with self._changed:
                while not (self._stopping or self._running or self._waiting):
                    self._changed.wait()
                if self._stopping:
                    for ticket in (*self._running, *self._waiting):
                        ticket.exchange.post(ticket.number, shutting_down())
                    self._running, self._waiting = [], deque()
                    return
                while self._waiting and len(self._running) < self._limits.parallel:
                    self._running.append(self._waiting.popleft())
            for ticket in list(self._running):
                if self._stopping:
                    break
                event, goes_on = ticket.take_turn(self._answer)
                if not goes_on:  # its place is free before its client knows
                    with self._changed:
                        self._running.remove(ticket)
                if event is not None or not goes_on:
                    ticket.exchange.post(ticket.number, event)
            del ticket  # and with it the cache of the last one
