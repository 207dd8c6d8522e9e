"""What a reference says of pairs: computed once, in blocks that stay on disk, before the model that learns is built."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn

from uniattn_pl.data.preference_pairs import PairCollator, PairedRows
from uniattn_pl.evaluation.held_out_preferences import pair_logps
from uniattn_pl.files import atomic_file
from uniattn_pl.resilience.cluster import Cluster

BLOCK = 1024  # pairs of a file: a fit that is killed computes so many again
LOGPS = "logps"
BringModel = Callable[[], AbstractContextManager[nn.Module]]


@dataclass(frozen=True)
class ReferenceLogps:
    """Gives the log-probabilities of the responses of pairs by one model, from files where they have been computed.

    Pairs are computed in an order, and in batches, that depend on nothing but them, so that killed fits go on with the
    same values, and blocks that were kept fit those that were not.

    Attributes:
        folder: of one model, one set of pairs and one precision.
        bring: brings the model; asked only if something is missing.
        batch_size: pairs per forward.
    """

    folder: Path
    bring: BringModel
    batch_size: int

    def of(self, pairs: PairedRows, collator: PairCollator, cluster: Cluster) -> tuple[Tensor, int]:
        """Return float32 [2, rows], chosen and rejected by the number of their row, and how many pairs were computed.

        Every rank calls this, and computes a part.
        """
        table = torch.zeros(2, int(pairs.rows.max()) + 1 if len(pairs) else 0)
        computed = 0
        with ExitStack() as stack:
            model: nn.Module | None = None
            for start in range(0, len(pairs), BLOCK):
                indices = torch.arange(start, min(start + BLOCK, len(pairs)))
                file = self.folder / f"{start:09d}.safetensors"
                values = cluster.broadcast(self._read(file, len(indices)) if cluster.is_main else None)
                if values is None:
                    model = stack.enter_context(self.bring()) if model is None else model
                    values = self._computed(model, pairs, indices, collator, cluster)
                    computed += len(indices)
                    if cluster.is_main:
                        _write(file, values)
                table[:, pairs.rows[indices]] = values
        return table, computed

    def _computed(
        self, model: nn.Module, pairs: PairedRows, indices: Tensor, collator: PairCollator, cluster: Cluster
    ) -> Tensor:
        """Log-probabilities [2, n] of the pairs at `indices` [n], of which each rank computes some batches."""
        values = torch.zeros(2, len(indices))
        for places in self._batches(pairs.lengths[indices])[cluster.rank :: cluster.world_size]:
            batch = collator([pairs[int(indices[place])] for place in places])
            values[:, places] = pair_logps(model, batch, cluster.device)
        return torch.tensor(cluster.sums(values.flatten().tolist())).view(2, -1)

    def _batches(self, lengths: Tensor) -> list[Tensor]:
        """Places in a block, the longest pairs first."""
        return list(torch.argsort(lengths, descending=True, stable=True).split(self.batch_size))

    @staticmethod
    def _read(file: Path, pairs: int) -> Tensor | None:
        """What is kept of a block; None where there is nothing, or nothing that can be read."""
        try:
            values = load(file.read_bytes())[LOGPS]
        except FileNotFoundError:
            return None
        except (OSError, SafetensorError, KeyError) as error:
            warnings.warn(f"the reference's kept log-probabilities in '{file}' are damaged ({error}).", stacklevel=2)
            return None
        return values if values.shape == (2, pairs) else None


def _write(file: Path, values: Tensor) -> None:
    try:
        with atomic_file(file) as opened:
            opened.write(save({LOGPS: values}))
    except OSError as error:
        warnings.warn(f"the reference's log-probabilities are not kept: {error}.", stacklevel=2)
