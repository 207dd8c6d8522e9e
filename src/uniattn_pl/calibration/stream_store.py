"""Hidden streams of all calibration batches: on the device, in main memory, and in files, each up to a limit."""

from __future__ import annotations

import tempfile
from pathlib import Path
from types import TracebackType

import numpy as np
import torch

from uniattn_pl.calibration.device_copies import DeviceCopies, HostCopy

Key = tuple[str, int]


class TensorStore:
    """Tensors by (stream, batch): the first ones stay on the device, the next ones in main memory, the rest on disk.

    Batches of a stream are asked for in their order, so that the next one is on its way to the device while a layer
    computes. Files are read and written in full rather than mapped: mapped pages would count as memory of the process.

    Args:
        memory_limit_bytes: of main memory, pinned beside a GPU.
        device: where layers compute, and tensors are returned.
        device_limit_bytes: of the device's memory; on a CPU it is main memory, too, in addition to the other.

    Attributes:
        device_bytes, held_bytes, spilled_bytes: what is kept on the device and in main memory, and has gone to disk.
    """

    def __init__(
        self, memory_limit_bytes: int, *, device: torch.device | None = None, device_limit_bytes: int = 0
    ) -> None:
        self.memory_limit_bytes, self.device_limit_bytes = memory_limit_bytes, device_limit_bytes
        self.device_bytes = self.held_bytes = self.spilled_bytes = 0
        self._copies = DeviceCopies(device or torch.device("cpu"))
        self._on_device: dict[Key, torch.Tensor] = {}
        self._in_memory: dict[Key, HostCopy] = {}
        self._files: dict[Key, tuple[Path, torch.dtype, torch.Size]] = {}
        self._folder = tempfile.TemporaryDirectory(prefix="uniattn-pl-calibration-")

    def __enter__(self) -> TensorStore:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._on_device.clear()
        self._in_memory.clear()
        self._folder.cleanup()

    def put(self, stream: str, batch: int, tensor: torch.Tensor) -> None:
        """Keep a tensor of any shape and dtype. Raises OSError when the disk is full."""
        key = stream, batch
        self._remove(key)
        tensor = tensor.detach().contiguous()
        if self.device_bytes + tensor.nbytes <= self.device_limit_bytes:
            self._on_device[key] = tensor
            self.device_bytes += tensor.nbytes
        elif self.held_bytes + self._copies.host_bytes(tensor) <= self.memory_limit_bytes:
            self._in_memory[key] = self._copies.to_host(tensor)
            self.held_bytes += self._in_memory[key].nbytes
        else:
            path = Path(self._folder.name) / f"{stream}-{batch}"
            tensor.cpu().view(-1).view(torch.uint8).numpy().tofile(path)
            self._files[key] = (path, tensor.dtype, tensor.shape)
            self.spilled_bytes += tensor.nbytes

    def get(self, stream: str, batch: int) -> torch.Tensor:
        """Return a kept tensor, on the device. Raises KeyError when there is none."""
        key = stream, batch
        if key in self._on_device:
            return self._on_device[key]
        if key in self._in_memory:
            found = self._in_memory[key].on_device()
            following = self._in_memory.get((stream, batch + 1))
            if following is not None:
                following.fetch()
            return found
        path, dtype, shape = self._files[key]
        read = torch.from_numpy(np.fromfile(path, dtype=np.uint8)).view(dtype).view(shape)
        return read.to(self._copies.device)

    def drop(self, stream: str, batch: int | None = None) -> None:
        """Forget a batch of a stream; default: every one."""
        keys = [key for key in (*self._on_device, *self._in_memory, *self._files) if key[0] == stream]
        for key in keys if batch is None else [(stream, batch)]:
            self._remove(key)

    def _remove(self, key: Key) -> None:
        if key in self._on_device:
            self.device_bytes -= self._on_device.pop(key).nbytes
        if key in self._in_memory:
            self.held_bytes -= self._in_memory.pop(key).nbytes
        if key in self._files:
            self._files.pop(key)[0].unlink()
