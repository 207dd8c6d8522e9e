"""Waiting until all processes of a fit are there, in Python: it says what it waits for, and signals end it at once.

torch's own rendezvous waits inside native code, where a signal's Python handler never runs, and says nothing.
"""

from __future__ import annotations

import socket
import sys
import time
from datetime import timedelta
from itertools import count
from typing import Any

from lightning.fabric.strategies.ddp import DDPStrategy
from torch.distributed import DistError, TCPStore  # type: ignore[attr-defined]
from torch.distributed.rendezvous import _torchelastic_use_agent_store

from uniattn_pl.errors import RunFailure, UserError

POLL_S = 0.2
FIRST_WORD_S, NEXT_WORD_S = 2.0, 300.0
LONGEST_WAIT_S = 3600.0  # processes of one fit are started together; that of a node that boots takes minutes
CONNECT = timedelta(seconds=30)
_meetings = count()  # a process may run several fits, all ranks as many


class PatientDDPStrategy(DDPStrategy):
    """Lightning's strategy, whose processes meet here first; torch's rendezvous then finds all of them waiting.

    Args:
        why: what says that there are so many processes, for the message.
        options: of Lightning's strategy.
    """

    def __init__(self, why: str, **options: Any) -> None:
        super().__init__(**options)
        self._why = why

    def setup_environment(self) -> None:
        """Meet, then connect."""
        place = self.cluster_environment
        assert place is not None
        meeting = Meeting(place.main_address, place.main_port, self.global_rank, self.world_size, self._why)
        store = meeting.meet()
        super().setup_environment()
        del store  # torch's own has taken over its port


class Meeting:
    """Where the ranks of a fit find each other.

    Args:
        host, port: where rank 0 listens (or torchrun, if it does that itself).
        rank, world_size: this process, and how many there are.
        why: what says so.
    """

    def __init__(self, host: str, port: int, rank: int, world_size: int, why: str) -> None:
        self.host, self.port, self.rank, self.world_size, self._why = host, port, rank, world_size, why
        self._begin = time.monotonic()
        self._next_word = self._begin + FIRST_WORD_S

    def meet(self) -> TCPStore:
        """Return once every rank is here; what is returned keeps rank 0's port open.

        Raises:
            UserError: the port is taken.
            RunFailure: the others have not come in an hour.
        """
        hosts = self.rank == 0 and not _torchelastic_use_agent_store()
        if hosts:
            store = self._store("127.0.0.1", is_master=True)
        self._until_it_listens()
        if not hosts:
            store = self._store(self.host, is_master=False)
        key = f"uniattn_pl/meeting/{next(_meetings)}"
        arrived = store.add(key, 1)
        while arrived < self.world_size:
            self._wait(f"{self.world_size - arrived} of {self.world_size} processes at {self.host}:{self.port}")
            arrived = store.add(key, 0)
        return store

    def _store(self, host: str, *, is_master: bool) -> TCPStore:
        try:
            return TCPStore(
                host,
                self.port,
                self.world_size,
                is_master=is_master,
                timeout=CONNECT,
                wait_for_workers=False,
                multi_tenant=True,  # torch's own store shares the port
            )
        except (DistError, RuntimeError, ValueError) as error:  # DistNetworkError: in use; ValueError: no such port
            reason = str(error).strip().splitlines()[0]
            raise UserError(
                f"the processes of this fit cannot meet at {self.host}:{self.port} (MASTER_ADDR, MASTER_PORT): {reason}"
            ) from error

    def _until_it_listens(self) -> None:
        """Wait for whoever listens at the address; also rank 0 itself, whose others look for it by that name."""
        while True:
            try:
                socket.create_connection((self.host, self.port), timeout=2 * POLL_S).close()
                return
            except (OSError, UnicodeError) as error:  # refused, no route, no such name; a name that cannot be one
                self._wait(
                    f"the first of {self.world_size} processes, which is to listen at {self.host}:{self.port}", error
                )

    def _wait(self, what: str, error: Exception | None = None) -> None:
        """Pause for a moment, and say from time to time what for."""
        reason = f": {error}" if error else ""
        now = time.monotonic()
        if now - self._begin > LONGEST_WAIT_S:
            raise RunFailure(f"waited an hour for {what} ({self._why}){reason}. The same command starts again.")
        if now >= self._next_word:
            self._next_word = now + NEXT_WORD_S
            print(f"waiting for {what} ({self._why}){reason}", file=sys.stderr, flush=True)
        time.sleep(POLL_S)
