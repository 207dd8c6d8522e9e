"""`export --format decilm`: from a model folder to one that engines read as `nemotron-nas`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from uniattn_pl.errors import UserError
from uniattn_pl.exporting.card import model_card, write_figure
from uniattn_pl.exporting.decilm.decilm_folder import write_decilm
from uniattn_pl.exporting.decilm.decilm_support import decilm_problems, engine_obstacles
from uniattn_pl.exporting.export_target import check_target
from uniattn_pl.families.model_shape import shape_of
from uniattn_pl.files import atomic_folder
from uniattn_pl.modeling.conversion.convert import drop_attention, plan_of
from uniattn_pl.modeling.loading.pretrained import check_folder, empty_model, load_folder, load_folder_tokenizer
from uniattn_pl.modeling.loading.weight_files import checked_base

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def export_decilm(
    source: Path, target: Path, *, overwrite: bool = False, drop: Sequence[int] = ()
) -> dict[str, list[str]]:
    """Write the model in `source` as a DeciLM folder; returns what keeps each engine from serving it.

    Args:
        source, target, overwrite, drop: as of `exporting.export.export`.

    Raises:
        UserError: the target is not free, or the format cannot say this plan or family.
    """
    check_target(source, target, overwrite=overwrite)
    model = load_folder(source)
    if drop:
        drop_attention(model, drop)
    check_decilm_model(model)
    plan, shape = plan_of(model), shape_of(model.config)
    obstacles = engine_obstacles(plan, model.config, shape)
    with atomic_folder(target) as temporary:
        write_decilm(model, plan, shape, temporary)
        load_folder_tokenizer(source).save_pretrained(temporary)
        write_figure(source, temporary)
        card = model_card(model, source).partition("## Loading")[0] + "## Serving\n\n" + engine_lines(obstacles)
        (temporary / "README.md").write_text(card + "\n", encoding="utf-8")
    return obstacles


def check_decilm_folder(source: Path, *, drop: Sequence[int] = ()) -> None:
    """Check what can be seen of a folder, as of `export_decilm`, without reading its weights.

    Raises:
        UserError: as `check_folder` and `check_decilm_model`.
    """
    check_folder(source)
    model = empty_model(str(checked_base(source)))
    if drop:
        drop_attention(model, drop)
    check_decilm_model(model)


def check_decilm_model(model: PreTrainedModel) -> None:
    """Raise UserError, with every reason, where the format cannot say a model, which may lie on the meta device."""
    problems = decilm_problems(plan_of(model), model.config, shape_of(model.config))
    if problems:
        raise UserError(*problems)


def engine_lines(obstacles: dict[str, list[str]]) -> str:
    """A line per engine: that it serves the folder, or why not."""
    return "\n".join(
        f"- {engine}: {'no: ' + '; '.join(reasons) if reasons else 'yes'}" for engine, reasons in obstacles.items()
    )
