"""Hidden streams of all calibration batches, in memory up to a limit and in files beyond it."""

from __future__ import annotations

import tempfile
from pathlib import Path
from types import TracebackType

import numpy as np
import torch


class TensorStore:
    """Tensors by (stream, batch); the process holds at most `memory_limit_bytes` of them, the rest is on disk.

    Files are read and written in full rather than mapped: mapped pages would count as memory of the process.
    """

    def __init__(self, memory_limit_bytes: int) -> None:
        self.memory_limit_bytes = memory_limit_bytes
        self.held_bytes = 0
        self.spilled_bytes = 0
        self._tensors: dict[tuple[str, int], torch.Tensor] = {}
        self._files: dict[tuple[str, int], tuple[Path, torch.dtype, torch.Size]] = {}
        self._folder = tempfile.TemporaryDirectory(prefix="uniattn-pl-calibration-")

    def __enter__(self) -> TensorStore:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._tensors.clear()
        self._folder.cleanup()

    def put(self, stream: str, batch: int, tensor: torch.Tensor) -> None:
        """Keep a tensor of any shape and dtype. Raises OSError when the disk is full."""
        self._remove((stream, batch))
        tensor = tensor.detach().to("cpu").contiguous()
        if self.held_bytes + tensor.nbytes <= self.memory_limit_bytes:
            self._tensors[stream, batch] = tensor
            self.held_bytes += tensor.nbytes
            return
        path = Path(self._folder.name) / f"{stream}-{batch}"
        tensor.view(-1).view(torch.uint8).numpy().tofile(path)
        self._files[stream, batch] = (path, tensor.dtype, tensor.shape)
        self.spilled_bytes += tensor.nbytes

    def get(self, stream: str, batch: int) -> torch.Tensor:
        """Return a kept tensor. Raises KeyError when there is none."""
        if (stream, batch) in self._tensors:
            return self._tensors[stream, batch]
        path, dtype, shape = self._files[stream, batch]
        return torch.from_numpy(np.fromfile(path, dtype=np.uint8)).view(dtype).view(shape)

    def drop(self, stream: str) -> None:
        """Forget every batch of a stream."""
        for key in [key for key in (*self._tensors, *self._files) if key[0] == stream]:
            self._remove(key)

    def _remove(self, key: tuple[str, int]) -> None:
        if key in self._tensors:
            self.held_bytes -= self._tensors.pop(key).nbytes
        if key in self._files:
            self._files.pop(key)[0].unlink()
