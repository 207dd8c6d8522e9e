"""Writing a model folder that stands on its own."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from uniattn_pl.exporting.card import model_card, write_figure
from uniattn_pl.exporting.export_target import check_target
from uniattn_pl.exporting.standalone import make_standalone
from uniattn_pl.files import atomic_folder
from uniattn_pl.modeling.conversion.convert import drop_attention
from uniattn_pl.modeling.loading.pretrained import load_folder, load_folder_tokenizer


def export(
    source: Path, target: Path, *, overwrite: bool = False, standalone: bool = False, drop: Sequence[int] = ()
) -> Path:
    """Write the model in `source` as a folder of its own: safetensors, tokenizer, and a card with plan and origin.

    Args:
        source: a model folder, converted or stock (a run's `final/`), or a peft adapter folder, which is merged.
        target: the folder to write; it appears only when complete.
        overwrite: replace a target that holds a model.
        standalone: add the code that loads it with `trust_remote_code=True` where this package is not installed.
        drop: layers (0-based) whose attention is removed on the way (paper Figure 5).

    Raises:
        UserError: the target is not free (see `check_target`), weights and plan disagree, or a layer to drop is
            read by others.
    """
    check_target(source, target, overwrite=overwrite)
    model = load_folder(source)
    if drop:
        drop_attention(model, drop)
    with atomic_folder(target) as temporary:
        if standalone:
            make_standalone(model, temporary)
        model.save_pretrained(temporary)
        load_folder_tokenizer(source).save_pretrained(temporary)
        write_figure(source, temporary)
        (temporary / "README.md").write_text(model_card(model, source, standalone=standalone), encoding="utf-8")
    return target
