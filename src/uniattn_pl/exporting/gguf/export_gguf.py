"""`export --format gguf`: from a model folder to a file that stock llama.cpp serves."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from uniattn_pl.errors import UserError
from uniattn_pl.exporting.export_target import GGUF_DTYPES
from uniattn_pl.exporting.gguf.deci_support import deci_problems
from uniattn_pl.exporting.gguf.gguf_file import Tell, write_gguf
from uniattn_pl.exporting.gguf.gguf_tokenizer import check_tokenizer
from uniattn_pl.families.model_shape import shape_of
from uniattn_pl.files import atomic_path
from uniattn_pl.modeling.conversion.convert import drop_attention, plan_of
from uniattn_pl.modeling.loading.pretrained import check_folder, empty_model, load_folder, load_folder_tokenizer
from uniattn_pl.modeling.loading.weight_files import checked_base
from uniattn_pl.run_folder import run_name

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from uniattn_pl.plan import LayerPlan, ModelShape

AUTO_DTYPE = "auto"


def export_gguf(
    source: Path, target: Path, *, dtype: str = AUTO_DTYPE, drop: Sequence[int] = (), tell: Tell = lambda *_: None
) -> str:
    """Write the model in `source` as one GGUF file, which appears only when complete; returns the dtype of matrices.

    Args:
        source: as of `exporting.export.export`.
        target: the file, checked by `export_target.check_gguf_target`.
        dtype: a name of `GGUF_DTYPES`, or `auto`: as the folder has them, float32, bfloat16 or float16.
        drop: layers (0-based) whose attention is removed on the way.
        tell: is told how many tensors of how many are written.

    Raises:
        UserError: llama.cpp cannot serve such a plan, family or tokenizer.
    """
    model, tokenizer = load_folder(source), load_folder_tokenizer(source)
    if drop:
        drop_attention(model, drop)
    plan, shape = check_gguf_model(model, tokenizer)
    kind = _own_dtype(model) if dtype == AUTO_DTYPE else dtype
    with atomic_path(target) as temporary:
        write_gguf(model, tokenizer, plan, shape, temporary, dtype=kind, name=run_name(source), tell=tell)
    return kind


def check_gguf_folder(source: Path, *, drop: Sequence[int] = ()) -> None:
    """Check what can be seen of a folder, as of `export_gguf`, without reading its weights.

    Raises:
        UserError: as `check_folder`, or llama.cpp cannot serve such a plan, family or tokenizer.
    """
    check_folder(source)
    model = empty_model(str(checked_base(source)))
    if drop:
        drop_attention(model, drop)
    check_gguf_model(model, load_folder_tokenizer(source))


def check_gguf_model(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> tuple[LayerPlan, ModelShape]:
    """The plan and the shape of a model, which may lie on the meta device.

    Raises:
        UserError: llama.cpp cannot serve such a plan, family or tokenizer.
    """
    plan, shape = plan_of(model), shape_of(model.config)
    problems = deci_problems(plan, model.config, shape)
    try:
        check_tokenizer(tokenizer)
    except UserError as error:
        problems += error.problems
    if problems:
        raise UserError(*problems)
    return plan, shape


def _own_dtype(model: PreTrainedModel) -> str:
    names = {"float32": "f32", "bfloat16": "bf16", "float16": "f16"}
    own = str(model.dtype).removeprefix("torch.")
    if own not in names:
        raise UserError(f"the model's weights are {own}; name what to write them in: --dtype {', '.join(GGUF_DTYPES)}.")
    return names[own]
