"""A teacher's largest logits on disk, row by row: many fits, and all points of a sweep, pay for one teacher."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn

from uniattn_pl.files import atomic_file
from uniattn_pl.losses.divergence import TopLogits
from uniattn_pl.losses.row_logits import LOSS_CHUNK, logits_of_rows, loss_at_head
from uniattn_pl.resilience import ranks
from uniattn_pl.training.objectives.distilled_tokens import RowSpan


class TeacherCache:
    """Gives what a teacher says about rows of tokens, from files where it has said it before.

    Each row is a file named by its tokens, written atomically, so that killed and concurrent fits harm nothing. It is
    computed with nothing beside it, so that what is kept does not depend on who came first.

    Args:
        folder: of one teacher at one k and temperature, in one precision.
        top_k: logits that are kept of each token.
        temperature: they are taken at.
        limit_bytes: the folder grows no further; rows beyond that are computed each time.
        collective: the teacher is sharded, so that all ranks must run it together.
    """

    def __init__(
        self, folder: Path, *, top_k: int, temperature: float, limit_bytes: float, collective: bool = False
    ) -> None:
        self.folder, self.top_k, self.temperature = folder, top_k, temperature
        self.limit_bytes, self.collective = limit_bytes, collective
        self._held: float | None = None

    def logits_of(
        self,
        batch: Mapping[str, Any],
        spans: Sequence[RowSpan],
        positions: Tensor,
        teacher: Callable[[], nn.Module],
    ) -> TopLogits:
        """The teacher's logits [N, k] at the flattened `positions` [N] of a batch.

        Args:
            batch: input_ids [B, L].
            spans: its rows, in order.
            positions: ascending.
            teacher: brings the model, for rows that are not kept.
        """
        device, length = positions.device, batch["input_ids"].shape[1]
        wanted = [self._wanted(row, positions, length) for row in spans]
        rows = [(row, tokens) for row, tokens in zip(spans, wanted, strict=True) if tokens.numel()]
        tokens = [batch["input_ids"][row.sequence, row.start : row.end].cpu() for row, _ in rows]
        found = [self._read(self._file(one)) for one in tokens]
        missing = [number for number, one in enumerate(found) if one is None]
        for number in missing:
            found[number] = self._computed(tokens[number], teacher(), device)
            self._write(self._file(tokens[number]), found[number])
        self._run_for_others(len(missing), teacher, batch)
        parts = [one[inside].to(device) for one, (_, inside) in zip(found, rows, strict=True) if one is not None]
        return TopLogits.cat(parts) if parts else TopLogits.of(torch.zeros(0, self.top_k, device=device), self.top_k)

    @staticmethod
    def _wanted(row: RowSpan, positions: Tensor, length: int) -> Tensor:
        """Which tokens of a row the positions are [n], counted from its first."""
        first = row.sequence * length + row.start
        inside = positions[(positions >= first) & (positions < row.sequence * length + row.end)] - first
        return inside.cpu()

    def _file(self, tokens: Tensor) -> Path:
        name = hashlib.sha256(tokens.numpy().tobytes()).hexdigest()
        return self.folder / name[:2] / f"{name}.safetensors"

    def _read(self, file: Path) -> TopLogits | None:
        """What is kept of a row; None where there is nothing, or nothing that can be read."""
        try:
            return TopLogits(**load(file.read_bytes()))
        except FileNotFoundError:
            return None
        except (OSError, SafetensorError, TypeError) as error:
            warnings.warn(f"the teacher's kept logits in '{file}' are damaged ({error}) and made again.", stacklevel=2)
            return None

    @torch.no_grad()
    def _computed(self, tokens: Tensor, teacher: nn.Module, device: torch.device) -> TopLogits:
        """Of every token of a row but the last, which predicts nothing."""
        pieces: list[TopLogits] = []

        def of_states(states: Tensor) -> Tensor:
            for rows in states[0, :-1].split(LOSS_CHUNK):
                pieces.append(TopLogits.of(logits_of_rows(teacher, rows), self.top_k, self.temperature).to("cpu"))
            return states.new_zeros(())

        loss_at_head(teacher, {"input_ids": tokens[None].to(device)}, of_states)
        return TopLogits.cat(pieces)

    def _write(self, file: Path, logits: TopLogits | None) -> None:
        if self._held is None:
            self._held = sum(one.stat().st_size for one in self.folder.rglob("*.safetensors"))
        if logits is None or self._held >= self.limit_bytes:
            return
        content = save(logits.tensors())
        try:
            with atomic_file(file) as opened:
                opened.write(content)
        except OSError as error:
            warnings.warn(f"the teacher's logits are not kept: {error}.", stacklevel=2)
            self.limit_bytes = 0
        self._held += len(content)

    def _run_for_others(self, own: int, teacher: Callable[[], nn.Module], batch: Mapping[str, Any]) -> None:
        """Take part in the forwards that other ranks of a sharded teacher need."""
        if self.collective:
            most = max(ranks.gather(own))
            for _ in range(most - own):
                self._computed(batch["input_ids"][0, :2].cpu(), teacher(), batch["input_ids"].device)
