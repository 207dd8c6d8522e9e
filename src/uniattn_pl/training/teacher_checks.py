"""The teacher that an experiment names: what it is by content, and whether this model can learn from it."""

from __future__ import annotations

from pathlib import Path

from uniattn_pl.config import LoadedConfig
from uniattn_pl.config.sections.distillation_section import ORIGINAL
from uniattn_pl.errors import UserError
from uniattn_pl.modeling.loading.model_contents import folder_contents, tokenizer_parts
from uniattn_pl.modeling.loading.pretrained import load_shape, load_tokenizer
from uniattn_pl.plan import ModelShape
from uniattn_pl.resilience.identity import TEACHER, Contents
from uniattn_pl.run_folder import model_folder


def teacher_folder(loaded: LoadedConfig) -> Path | None:
    """The folder of a teacher other than the original. Raises UserError as `model_folder`."""
    teacher = loaded.config.training.distillation.teacher
    return None if teacher is None or teacher == ORIGINAL else model_folder(Path(teacher))


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
    model = loaded.config.model
    own = load_tokenizer(model.source, revision=model.revision, trust_remote_code=model.trust_remote_code)
    if tokenizer_parts(own) and own.get_vocab() != load_tokenizer(str(folder)).get_vocab():
        problems.append(f"{key}: the tokenizer in '{folder}' has other tokens than the model's.")
    return problems
