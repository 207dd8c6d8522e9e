"""Copies between a device and main memory; on a GPU pinned, and made while layers compute."""

from __future__ import annotations

import torch

STREAMS_SHARE = 0.25
"""Of the memory that the models leave free on a GPU, what hidden streams take there unless the config says."""


def free_share(device: torch.device) -> int:
    """Bytes of hidden streams that stay on a device by default; none on a CPU, where main memory is all there is."""
    if device.type != "cuda":
        return 0
    unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return int(STREAMS_SHARE * (torch.cuda.mem_get_info(device)[0] + unused))


class DeviceCopies:
    """Makes copies of one device's tensors in main memory, on a CUDA stream of its own where the device is a GPU.

    All copies of both directions are on that one stream, so that a tensor never comes back before it has left. On a CPU
    there is nothing to copy: a tensor is its own copy.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    def to_host(self, tensor: torch.Tensor) -> HostCopy:
        """Start a copy of a contiguous tensor, which nobody may write to from now on."""
        if self.stream is None:
            return HostCopy(self, tensor, self.host_bytes(tensor))
        host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
        self.stream.wait_stream(torch.cuda.current_stream(self.device))  # what computes it
        with torch.cuda.stream(self.stream):
            host.copy_(tensor, non_blocking=True)
        tensor.record_stream(self.stream)  # its memory is not another's before it is copied
        return HostCopy(self, host, self.host_bytes(tensor))

    def host_bytes(self, tensor: torch.Tensor) -> int:
        """What a copy takes of main memory: PyTorch pins it in powers of two."""
        return tensor.nbytes if self.stream is None else 1 << max(tensor.nbytes - 1, 0).bit_length()


class HostCopy:
    """A tensor in main memory that can be fetched ahead of its use.

    Attributes:
        nbytes: of main memory.
    """

    def __init__(self, copies: DeviceCopies, host: torch.Tensor, nbytes: int) -> None:
        self.nbytes = nbytes
        self._copies, self._host = copies, host
        self._fetched: tuple[torch.Tensor, torch.cuda.Event] | None = None

    def fetch(self) -> None:
        """Start to copy it to the device."""
        stream = self._copies.stream
        if stream is None or self._fetched is not None:
            return
        with torch.cuda.stream(stream):
            self._fetched = self._host.to(self._copies.device, non_blocking=True), stream.record_event()

    def on_device(self) -> torch.Tensor:
        """The tensor on the device; what is computed from now on waits for it, and the copy is the caller's."""
        self.fetch()
        if self._fetched is None:
            return self._host
        (tensor, arrived), self._fetched = self._fetched, None
        current = torch.cuda.current_stream(self._copies.device)
        current.wait_event(arrived)
        tensor.record_stream(current)
        return tensor
