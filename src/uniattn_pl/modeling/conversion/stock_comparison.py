"""Whether a model that only attends as converted ones do still computes what the stock model computes."""

from __future__ import annotations

import torch
from transformers import PreTrainedModel

from uniattn_pl.errors import UserError
from uniattn_pl.families.encoder_decoder import beside_encoder, reading_config
from uniattn_pl.families.inspection import decoder_of, stock_model_type
from uniattn_pl.families.model_shape import stock_plan
from uniattn_pl.modeling.caches.plan_cache import new_cache
from uniattn_pl.modeling.conversion.aliased_copy import aliased_copy
from uniattn_pl.modeling.conversion.install import install

# Beyond the blocks, windows and thresholds that attentions switch at, as far as a model has positions.
LENGTH = 320


STEP = 4


@torch.no_grad()
def differs_from_stock(model: PreTrainedModel) -> float:
    """The largest difference of a position's last hidden state, relative to it, under the unmodified plan.

    One forward of each over `LENGTH` random tokens. It calls the same kernels on the same numbers: what differs is no
    rounding, but something that a family decides by what a conversion changes.
    """
    config = model.config.get_text_config()
    length = min(LENGTH, getattr(config, "max_position_embeddings", None) or LENGTH)
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(config.vocab_size, (1, length), generator=generator).to(model.device)
    inputs = {"input_ids": ids, "use_cache": False, **beside_encoder(model, length)}
    expected = decoder_of(model)(**inputs).last_hidden_state.float()  # [1, L, d]
    _check_cache(model, ids[:, : 2 * STEP])
    twin = aliased_copy(model)
    install(twin, stock_plan(model))
    reading_config(twin.config).reuse_mode = "auto"
    found = decoder_of(twin)(**inputs).last_hidden_state.float()  # [1, L, d]
    return float(((found - expected).norm(dim=-1) / expected.norm(dim=-1).clamp(min=1e-20)).max())


def _check_cache(model: PreTrainedModel, ids: torch.Tensor) -> None:
    """Raise UserError where a stock model cannot go on from a cache that is made of its config."""
    beside = beside_encoder(model, STEP)
    cache = new_cache(decoder_of(model).config, beside_encoder=bool(beside))
    try:
        for part in ids.split(STEP, dim=1):
            decoder_of(model)(input_ids=part, past_key_values=cache, use_cache=True, **beside)
    # the family's own code runs
    except Exception as error:
        raise UserError(
            f"model type '{stock_model_type(model.config)}' keeps a cache of its own, which no plan can fit "
            f"({type(error).__name__}: {error})."
        ) from error
