"""The plan that stands for each architecture on its page, and the two models that costs are counted on."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from uniattn_pl.architectures import get_architecture
from uniattn_pl.families.published_sizes import LLAMA_3_1_8B, SMOLLM2_135M
from uniattn_pl.plan import LayerPlan, ModelShape

ROOT = Path(__file__).parents[2]
SMALL, LARGE = "SmolLM2-135M, 512 tokens", "Llama-3.1 8B, 8,192 tokens"
LENGTHS = {SMALL: 512, LARGE: 8192}
SIZES = {SMALL: SMOLLM2_135M, LARGE: LLAMA_3_1_8B}


@dataclass(frozen=True)
class Example:
    """One plan of an architecture.

    Attributes:
        options: as a config writes them.
        caption: what the picture shows.
        chosen: the plan, where the architecture chooses it by measurement; None: compiled of the options.
        models: those that it fits.
    """

    options: Mapping[str, Any]
    caption: str
    chosen: Callable[[LayerPlan], LayerPlan] | None = None
    models: tuple[str, ...] = field(default=(SMALL, LARGE))

    def plan(self, name: str, shape: ModelShape) -> LayerPlan:
        """The plan of the architecture `name` for a model of this shape."""
        if self.chosen is not None:
            return self.chosen(LayerPlan.stock(shape))
        options = dict(self.options)
        if "plan" in options:
            options["plan"] = str(ROOT / options["plan"])
        return get_architecture(name)(**options).compile(shape)  # type: ignore[call-arg]


def _searched(plan: LayerPlan) -> LayerPlan:
    plan = plan.drop([0, 6, 7, 11, 19, 24, 25, 26, 29], compensated=True)
    for reader, source in ((9, 8), (15, 14), (22, 21)):
        plan = plan.share_kv([reader], source, compensated=True)
    return plan.reuse([27], 23, compensated=True)


EXAMPLES = {
    "uniattn": Example({"num_superblocks": 4, "superblock_size": 4}, "four Superblocks of four layers at the top"),
    "shared_attention": Example({"first_layer": 17}, "all layers above 17 use its map"),
    "cla": Example({"num_superblocks": 2, "superblock_size": 4}, "CLA-Half: two blocks of four layers at the top"),
    "llmdrop": Example(
        {"layers": [17, 22, 25, 26, 28, 29]}, "six layers without attention, those that importance chose on PMC rows"
    ),
    "shortgpt": Example({"layers": [12, 13, 14, 17, 25]}, "five blocks left out, those of least influence on PMC rows"),
    "kvsharer": Example(
        {"num_shared": 6},
        "six layers that read layer 11, those that were chosen on PMC rows",
        lambda plan: plan.share_kv(range(23, 29), 11, compensated=False),
    ),
    "yoco": Example({}, "every layer above the one at half reads its keys and values"),
    "gqa": Example({"num_layers": 10, "kv_heads": 1}, "one head of keys and values in each of the top ten layers"),
    "window": Example({"num_layers": 10, "window": 128, "sinks": 4}, "windows of 128 tokens in the top ten"),
    "search": Example(
        {"budget": 0.6},
        "a plan of the make that a search to 60 % gave (nine dropped, three share, one reuses); which layers depends on"
        " model and rows",
        _searched,
    ),
    "given": Example(
        {"plan": "experiments/smollm2/plans/dropped6_windows8.json"},
        "six layers without attention and eight with a window, from a file",
        models=(SMALL,),
    ),
    "baseline": Example({}, "every layer as it is"),
}


@cache
def shape(model: str) -> ModelShape:
    """The shape of one of the two models, counted on a model of its sizes without weights."""
    from transformers import LlamaConfig

    from uniattn_pl.families.model_shape import shape_of

    return shape_of(LlamaConfig(**SIZES[model]))
