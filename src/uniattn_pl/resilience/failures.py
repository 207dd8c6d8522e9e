"""Failures that come from outside of the program, in words that say what to do."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager

from uniattn_pl.errors import RunFailure, UserError
from uniattn_pl.resilience.cluster import Cluster

_FULL = {errno.ENOSPC, errno.EDQUOT}
# what gloo and NCCL say when the process at the other end is gone
_LOST_RANK = ("Connection closed by peer", "Connection reset by peer", "Broken pipe", "remote process exited")
_RESUME = "The same command resumes this fit."


class TrainingDivergedError(RunFailure):
    """The loss or a gradient is NaN or infinite; the message names the step and the last good checkpoint."""


@contextmanager
def failures_explained(cluster: Cluster, folder: str) -> Iterator[None]:
    """Run a block on every rank; say what to do about a failure from outside of the program, and end all ranks.

    Raises:
        RunFailure: instead of an error that the user can do something about; others pass.
    """
    try:
        yield
        cluster.close()  # after an error other ranks may never answer
    except BaseException as error:
        if isinstance(error, UserError | RunFailure):  # every rank has met it
            cluster.let_parent_end()
        reason = explained(error, cluster.world_size, folder)
        if reason is None:
            raise
        raise RunFailure(reason) from error


def explained(error: BaseException, world_size: int, folder: str) -> str | None:
    """What to tell about an error of a fit, or None when it explains itself or is a bug.

    Args:
        error: with its causes.
        world_size: ranks.
        folder: of the run.
    """
    if isinstance(error, UserError | RunFailure | KeyboardInterrupt):
        return None
    for cause in _chain(error):
        if (isinstance(cause, OSError) and cause.errno in _FULL) or "No space left on device" in str(cause):
            return f"the disk is full while writing to {folder}; free some room there. {_RESUME}"
        if type(cause).__name__ == "UnpicklingError" or "UnpicklingError" in str(cause):
            return (
                f"a checkpoint in {folder} holds more than tensors and plain values, so it was not written by this "
                f"program and is not read (weights_only): delete it. {_RESUME}"
            )
        if world_size > 1 and any(words in str(cause) for words in _LOST_RANK):
            return f"another rank of this fit has died; all of them end. {_RESUME}"
        if type(cause).__name__ == "OutOfMemoryError" or "can't allocate memory" in str(cause):
            return (
                f"the memory of the device is not enough ({str(cause).splitlines()[0]}). Lower "
                "training.micro_batch_size (the result stays the same) or shard the weights over several devices "
                "(training.strategy=fsdp), and the same command resumes this fit; "
                "training.gradient_checkpointing=true and training.chunked_loss=true help too, with --allow-changes."
            )
    return None


def _chain(error: BaseException) -> Iterator[BaseException]:
    seen: BaseException | None = error
    while seen is not None:
        yield seen
        seen = seen.__cause__ or seen.__context__
