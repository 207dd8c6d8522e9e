"""Whether a model that only attends as converted ones do still computes what the stock model computes."""

from __future__ import annotations

import torch
from transformers import PreTrainedModel

from uniattn_pl.families.inspection import decoder_layers
from uniattn_pl.modeling.conversion.aliased_copy import aliased_copy
from uniattn_pl.modeling.conversion.install import install
from uniattn_pl.plan import LayerPlan

# Beyond the blocks, windows and thresholds that attentions switch at, as far as a model has positions.
LENGTH = 320


@torch.no_grad()
def differs_from_stock(model: PreTrainedModel) -> float:
    """The largest difference of a position's last hidden state, relative to it, under the unmodified plan.

    One forward of each over `LENGTH` random tokens. It calls the same kernels on the same numbers: what differs is no
    rounding, but something that a family decides by what a conversion changes.
    """
    length = min(LENGTH, getattr(model.config, "max_position_embeddings", None) or LENGTH)
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(model.config.vocab_size, (1, length), generator=generator).to(model.device)
    expected = model.get_decoder()(input_ids=ids, use_cache=False).last_hidden_state.float()  # [1, L, d]
    twin = aliased_copy(model)
    install(twin, LayerPlan.unmodified(len(decoder_layers(model))))
    twin.config.reuse_mode = "auto"
    found = twin.get_decoder()(input_ids=ids, use_cache=False).last_hidden_state.float()  # [1, L, d]
    return float(((found - expected).norm(dim=-1) / expected.norm(dim=-1).clamp(min=1e-20)).max())
