"""peft adapter folders: which model folder their base is, also after a run was moved, and both as one model."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from uniattn_pl.errors import UserError
from uniattn_pl.file_contents import read_json_object
from uniattn_pl.run_folder import is_run

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

ADAPTER_FILE = "adapter_config.json"
CONFIG_FILE, TOKENIZER_FILE = "config.json", "tokenizer_config.json"


def is_adapter(folder: Path) -> bool:
    """Whether a folder holds a peft adapter."""
    return (folder / ADAPTER_FILE).is_file()


def base_folder(adapter: Path) -> Path:
    """The model folder that an adapter was trained on.

    In a run it is the folder beside the adapter: the recorded path is where the run was when it was trained, which may
    be another run by now. Elsewhere it is the recorded one, and a folder of that name beside the adapter else.

    Raises:
        UserError: it is in none of these places, or the adapter's config does not name it.
    """
    recorded = _recorded_base(adapter)
    beside = adapter.resolve().parent / recorded.name
    places = [recorded, adapter / recorded, beside]
    if is_run(beside.parent):
        places.insert(0, beside)
    for place in places:
        if (place / CONFIG_FILE).is_file():
            return place
    raise UserError(
        f"the adapter in '{adapter}' belongs to the model folder '{recorded}', which is not there, nor is there a "
        f"'{beside.name}' beside the adapter; put the base there, or name it as base_model_name_or_path in "
        f"{adapter / ADAPTER_FILE}."
    )


def merged(adapter: Path, base: PreTrainedModel, *, device: torch.device | None = None) -> PreTrainedModel:
    """A base with the adapter of a folder merged into it, rounded first as it was when the adapter was trained.

    Args:
        device: where the base was rounded; default: where it is.

    Raises:
        UserError: the adapter changes a weight that the base has twice (tied), or what says how to round is broken.
        Exception: whatever peft says to files that do not fit each other.
    """
    from peft import PeftConfig, PeftModel

    from uniattn_pl.modeling.loading.frozen_4bit import recorded_rounding, round_to_4bit
    from uniattn_pl.modeling.lora import check_untied

    try:
        check_untied(base, PeftConfig.from_pretrained(str(adapter)))
    except UserError as error:
        raise UserError(*(f"'{adapter}': {problem}" for problem in error.problems)) from error
    kept = recorded_rounding(adapter)
    if kept is not None:
        round_to_4bit(base, kept, device=device)
    return PeftModel.from_pretrained(base, str(adapter)).merge_and_unload().eval()


def tokenizer_folder(folder: Path) -> Path:
    """The folder with the tokenizer of a model or adapter folder: an adapter may have that of its base."""
    return base_folder(folder) if is_adapter(folder) and not (folder / TOKENIZER_FILE).is_file() else folder


def _recorded_base(adapter: Path) -> Path:
    file = adapter / ADAPTER_FILE
    recorded = read_json_object(file).get("base_model_name_or_path")
    if not isinstance(recorded, str) or not recorded:
        raise UserError(f"'{file}' has no base_model_name_or_path, the folder of its base model.")
    return Path(recorded)
