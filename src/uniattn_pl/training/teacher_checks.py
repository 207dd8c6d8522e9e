"""The teacher that an experiment names: what it is by content, and whether this model can learn from it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from uniattn_pl.config import LoadedConfig
from uniattn_pl.config.sections.distillation_section import ORIGINAL
from uniattn_pl.errors import UserError
from uniattn_pl.families.inspection import FUSED, attentions_of, stock_model_type
from uniattn_pl.modeling.conversion.convert import plan_of
from uniattn_pl.modeling.loading.model_contents import folder_contents, tokenizer_parts
from uniattn_pl.modeling.loading.pretrained import empty_model, load_shape, load_tokenizer
from uniattn_pl.plan import LayerPlan, ModelShape
from uniattn_pl.plan.roles import MAP
from uniattn_pl.resilience.identity import TEACHER, Contents
from uniattn_pl.run_folder import model_folder
from uniattn_pl.training.memory_estimate import learns_from_maps


def teacher_folder(loaded: LoadedConfig) -> Path | None:
    """The folder of a teacher other than the original.

    Raises:
        UserError: as `model_folder`, or the teacher is a point of a sweep, which has no folder in a fit by itself.
    """
    teacher = loaded.config.training.distillation.teacher
    if teacher is None or teacher == ORIGINAL:
        return None
    if teacher in loaded.config.sweep.points and not Path(teacher).is_dir():
        raise UserError(
            f"training.distillation.teacher: '{teacher}' is a point of the sweep, which `sweep` fits first; a fit by "
            f"itself takes {ORIGINAL}, a run folder or a model folder."
        )
    return model_folder(Path(teacher))


def teacher_contents(loaded: LoadedConfig) -> dict[str, Contents]:
    """What the experiment rests on by its teacher; of the original it does anyway."""
    folder = teacher_folder(loaded)
    return {} if folder is None else {TEACHER: folder_contents(folder)}


def check_teacher(loaded: LoadedConfig, shape: ModelShape) -> None:
    """Check that the teacher speaks of the same tokens, and has the layers that are compared.

    Args:
        shape: of the model that learns.

    Raises:
        UserError: with each thing that does not fit.
    """
    options = loaded.config.training.distillation
    if options.teacher is None:
        return
    problems = [
        f"training.distillation.hidden_layers: there is no layer {layer}; the model has layers 0 to "
        f"{shape.num_layers - 1}."
        for layer in options.hidden_layers
        if layer >= shape.num_layers
    ]
    folder = teacher_folder(loaded)
    if folder is not None:
        problems += _differences(loaded, shape, folder)
    if problems:
        raise UserError(*problems)


def map_stages(loaded: LoadedConfig) -> list[str]:
    """The stages that compare attention maps, by name."""
    numbers = [number for number in (1, 2) if getattr(loaded.config.training, f"stage{number}").enabled]
    return [f"stage{number}" for number in numbers if learns_from_maps(loaded.config, number)]


def check_source_maps(loaded: LoadedConfig, plan: LayerPlan | None) -> None:
    """Check that a plan has sources whose maps can be trained for their readers, if a stage is to do that.

    Args:
        plan: None: it is not chosen yet.

    Raises:
        UserError: no layer reads a map, or the teacher's has none in a layer that does.
    """
    stages = map_stages(loaded)
    if plan is None or not stages:
        return
    if not plan.reusing:
        keys = " and ".join(f"training.distillation.{stage}.maps" for stage in stages)
        raise UserError(
            f"{keys}: no layer of this plan uses the attention map of another, so there is no source to train for "
            "its readers; set it to 0, or choose an architecture with reuse layers (uniattn, shared_attention)."
        )
    folder = teacher_folder(loaded)
    rows = () if folder is None else plan_of(empty_model(str(folder))).rows
    without = [row.index for row in rows if row.index in plan.reusing and MAP not in row.traits.gives]
    if without:
        raise UserError(
            f"training.distillation.teacher: '{folder}' computes no attention map in layer "
            f"{', '.join(map(str, without))}, which training.distillation's maps compare; name another teacher, or set "
            "the weights .maps to 0."
        )


def check_separate_projections(model: Any) -> None:
    """Raise UserError where queries and keys are rows of a projection that makes the values, too."""
    if any(hasattr(attention, FUSED) for attention in attentions_of(model).values()):
        raise UserError(
            "training.distillation.stage1.maps trains the queries and keys of sources, but "
            f"'{stock_model_type(model.config)}' makes them and the values by one projection ({FUSED}); set it to 0, "
            "or use training.distillation.stage2.maps."
        )


def _differences(loaded: LoadedConfig, shape: ModelShape, folder: Path) -> list[str]:
    key, other = "training.distillation.teacher", load_shape(str(folder))
    if other.vocab_size != shape.vocab_size:
        return [f"{key}: '{folder}' has logits of {other.vocab_size} tokens, the model of {shape.vocab_size}."]
    problems = []
    if loaded.config.training.distillation.hidden_layers and (
        (other.num_layers, other.hidden_size) != (shape.num_layers, shape.hidden_size)
    ):
        problems.append(
            f"{key}: hidden states of {shape.num_layers} layers of {shape.hidden_size} cannot be compared with those "
            f"of '{folder}', {other.num_layers} of {other.hidden_size}; do without training.distillation.hidden_layers."
        )
    heads = [[layer.heads.queries for layer in one.layers] for one in (shape, other)]
    if map_stages(loaded) and heads[0] != heads[1]:
        problems.append(
            f"{key}: attention maps of {shape.num_layers} layers of {heads[0][0]} heads cannot be compared with those "
            f"of '{folder}', {other.num_layers} of {heads[1][0]}; set the weights .maps to 0."
        )
    model = loaded.config.model
    own = load_tokenizer(model.source, revision=model.revision, trust_remote_code=model.trust_remote_code)
    if tokenizer_parts(own) and own.get_vocab() != load_tokenizer(str(folder)).get_vocab():
        problems.append(f"{key}: the tokenizer in '{folder}' has other tokens than the model's.")
    return problems
