"""Libraries that would talk into a command's own output."""

from __future__ import annotations

import logging


def quiet_libraries() -> None:
    """Keep banners, tips and the bars of single-file transfers out of the command's own output."""
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    for name in ("lightning.pytorch", "lightning.fabric", "lightning.pytorch.utilities.rank_zero"):
        logging.getLogger(name).setLevel(logging.WARNING)
    # about every layer of every forward that casts activations; peft imports it wherever it is installed
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
