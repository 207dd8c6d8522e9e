"""`export --format onnx` and `--format pt2`: graphs of a prompt and of a step, by transformers' exporters."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from uniattn_pl.errors import UserError
from uniattn_pl.exporting.export_target import check_target
from uniattn_pl.families.encoder_decoder import without_encoder
from uniattn_pl.files import atomic_folder
from uniattn_pl.modeling.caches.growing_layer import traced_caches
from uniattn_pl.modeling.conversion.convert import drop_attention
from uniattn_pl.modeling.loading.pretrained import load_folder, load_folder_tokenizer
from uniattn_pl.printed_commands import install

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel
    from transformers.exporters.base import ExportedModel

ONNX, PT2 = PROGRAMS = ("onnx", "pt2")
NEEDED = {ONNX: ("onnx", "onnxscript", "onnxruntime"), PT2: ()}
NEAR = {"float32": 1e-3, "float16": 0.1, "bfloat16": 0.5}  # logits of a graph that computes the same
TRACED_LENGTH, CHECKED_LENGTH = 9, 14


def check_packages(kind: str) -> None:
    """Raise UserError where a package that writes, or tries, such a program is missing."""
    missing = [name for name in NEEDED[kind] if find_spec(name) is None]
    if missing:
        raise UserError(f"--format {kind} needs {', '.join(missing)}; install: {install('uniattn-pl[onnx]')}")


def export_program(
    source: Path, target: Path, kind: str, *, overwrite: bool = False, drop: Sequence[int] = ()
) -> float:
    """Write the graphs of the model in `source`, try them against it, and return the largest difference of logits.

    Sequences may have any length, batches any size; there is no padding. The cache that goes from one graph to the next
    is the plan's: nothing for dropped layers, values alone for layers that reuse a map.

    Args:
        source, target, overwrite, drop: as of `exporting.export.export`.
        kind: `onnx` or `pt2`.

    Raises:
        UserError: a package is missing, the target is not free, the exporter cannot trace such a plan, or the graphs
            compute something else.
    """
    check_packages(kind)
    check_target(source, target, overwrite=overwrite)
    model = load_folder(source)
    without_encoder(model.config, f"an export as {kind}")
    if drop:
        drop_attention(model, drop)
    if kind == ONNX and str(model.dtype) == "torch.bfloat16":
        model = model.float()  # few devices of onnxruntime compute in it
    if hasattr(model.config, "reuse_mode"):
        model.config.reuse_mode = "materialise"  # the map is computed once: the graph would replay it for every reader
    with _quiet(), traced_caches():
        exported = _traced(model, kind)
        difference = _difference(model, exported)
    if not difference <= NEAR[str(model.dtype).removeprefix("torch.")]:
        raise UserError(f"the {kind} graphs of this plan give other logits (by {difference:.3g}); nothing was written.")
    with atomic_folder(target) as temporary, _quiet():
        exported.save_pretrained(temporary)
        load_folder_tokenizer(source).save_pretrained(temporary)
        (temporary / "README.md").write_text(_readme(model.config.model_type, kind), encoding="utf-8")
    return difference


def _traced(model: PreTrainedModel, kind: str) -> ExportedModel:
    import torch
    from transformers.exporters.configs import DynamoConfig, OnnxConfig
    from transformers.exporters.exporter_dynamo import DynamoExporter
    from transformers.exporters.exporter_onnx import OnnxExporter

    ids = _sample(model, 2, TRACED_LENGTH)
    inputs: dict[str, Any] = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    exporter, config = (
        (OnnxExporter(), OnnxConfig(dynamic=True)) if kind == ONNX else (DynamoExporter(), DynamoConfig(dynamic=True))
    )
    try:
        exported: ExportedModel = exporter.export_for_generation(model, inputs, config=config)
    except Exception as error:  # whatever stops a tracer
        cause = error.__cause__ or error
        first = (str(cause).strip().splitlines() or [type(cause).__name__])[0]
        raise UserError(f"transformers' exporter cannot make {kind} of this model: {first}") from error
    return exported


def _difference(model: PreTrainedModel, exported: ExportedModel) -> float:
    """The largest difference of logits [B, L, V] in a prompt and a step behind it, of other sizes than were traced."""
    import torch
    from transformers import DynamicCache

    ids = _sample(model, 3, CHECKED_LENGTH + 1)
    with torch.no_grad():
        expected = model(input_ids=ids).logits
    first, last = ids[:, :CHECKED_LENGTH], ids[:, CHECKED_LENGTH:]
    positions = torch.arange(CHECKED_LENGTH + 1).expand(3, -1)
    empty = DynamicCache(config=model.config)
    prompt = exported.runners["prefill"](
        input_ids=first, position_ids=positions[:, :CHECKED_LENGTH].contiguous(), past_key_values=empty
    )
    step = exported.runners["decode"](
        input_ids=last,
        position_ids=positions[:, CHECKED_LENGTH:].contiguous(),
        past_key_values=prompt.past_key_values,
    )
    pairs = ((prompt.logits[:, -1], expected[:, -2]), (step.logits[:, -1], expected[:, -1]))
    return max(float((given.float() - own.float()).abs().max()) for given, own in pairs)


def _sample(model: PreTrainedModel, batch: int, length: int) -> torch.Tensor:
    import torch

    generator = torch.Generator().manual_seed(length)
    return torch.randint(3, model.config.get_text_config().vocab_size, (batch, length), generator=generator)


@contextmanager
def _quiet() -> Iterator[None]:
    """Exporters tell at length what they do, and warn of packages that nothing here needs."""
    former = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(former)


def _readme(model_type: str, kind: str) -> str:
    runs = "onnxruntime" if kind == ONNX else "torch"
    return f"""# Graphs of a {model_type} model

`prefill.{kind}` reads a prompt, `decode.{kind}` one token more; {runs} runs them. Each hands its cache on, as the plan
in `config.json` has it. Sequences of a batch have the same length.

```python
import torch
import uniattn_pl
from transformers import AutoTokenizer, DynamicCache
from transformers.exporters import ExportedModel

tokenizer, exported = AutoTokenizer.from_pretrained("."), ExportedModel.from_pretrained(".")
ids = torch.tensor([tokenizer("The heart")["input_ids"]])
position = torch.arange(ids.shape[1])[None]
cache = DynamicCache(config=exported.config)
output = exported.runners["prefill"](input_ids=ids, position_ids=position, past_key_values=cache)
tokens = []
for step in range(20):
    tokens.append(output.logits[:, -1].argmax(-1, keepdim=True))
    position = torch.tensor([[ids.shape[1] + step]])
    output = exported.runners["decode"](
        input_ids=tokens[-1], position_ids=position, past_key_values=output.past_key_values
    )
print(tokenizer.decode(torch.cat(tokens, -1)[0]))
```
"""
