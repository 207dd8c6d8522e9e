"""A prompt through the model in chunks of queries, so that attention maps stay small whatever its length."""

from __future__ import annotations

from typing import Any

import torch
from transformers import DynamicCache, PreTrainedModel

from uniattn_pl.errors import UserError
from uniattn_pl.families.recurrent_states import READ_WHOLE, layers_with_states
from uniattn_pl.kernels.map_memory import automatic_chunk
from uniattn_pl.modeling.caches.h2o_cache import H2OCache
from uniattn_pl.modeling.length_rotations import rotated_for


@torch.no_grad()
def prefill(
    model: PreTrainedModel,
    input_ids: torch.Tensor,
    attention_mask: torch.Tensor | None = None,
    *,
    past_key_values: Any = None,
    chunk_size: int | None = None,
) -> Any:
    """Fill a cache with a prompt, chunk by chunk; exact: every chunk attends to all before it.

    Args:
        model: stock or converted.
        input_ids: prompt [B, L], padded on the left where sequences differ.
        attention_mask: [B, L], with a cache that holds P tokens already [B, P + L]; default: nothing is padding.
        past_key_values: a cache to continue; default: a new one.
        chunk_size: queries per chunk; default: chosen so that one attention map keeps to the config's
            `map_memory_mib`.

    Returns:
        The model's output for the last chunk: `logits` [B, 1, vocabulary] of the last token, `past_key_values`.

    Raises:
        UserError: chunk_size is below 1, the prompt is empty, or it would be read in parts by a model that reads it
            whole (`layers_with_states`).
    """
    if chunk_size is not None and chunk_size < 1:
        raise UserError(f"chunk_size must be at least 1, got {chunk_size}.")
    if input_ids.shape[1] == 0:
        raise UserError("the prompt is empty.")
    cache = DynamicCache(config=model.config) if past_key_values is None else past_key_values
    if isinstance(cache, H2OCache):
        cache.expect_prompt(input_ids.shape[1])
    past, length = int(cache.get_seq_length()), input_ids.shape[1]
    if layers_with_states(model.config):
        if chunk_size not in (None, length):
            raise UserError(f"chunk_size is {chunk_size}; {READ_WHOLE}")
        chunk_size = 1 if past else length
    if chunk_size is None:
        chunk_size = automatic_chunk(
            model.config,
            model.device,
            model.dtype,
            batch_size=len(input_ids),
            length=past + length,
            observed=isinstance(cache, H2OCache),
        )
    positions = _positions_after(past, input_ids) if layers_with_states(model.config) else None
    if attention_mask is not None:
        positions = (attention_mask.long().cumsum(-1) - 1).clamp(min=0)[:, past:]
    with rotated_for(model, past + length if positions is None else int(positions.max()) + 1):
        for start in range(0, length, chunk_size):
            stop = min(start + chunk_size, length)
            output = model(
                input_ids=input_ids[:, start:stop],
                attention_mask=None if attention_mask is None else attention_mask[:, : past + stop],
                position_ids=None if positions is None else positions[:, start:stop],
                past_key_values=cache,
                use_cache=True,
                logits_to_keep=1,
            )
    return output


def read_on(model: PreTrainedModel, input_ids: torch.Tensor, past_key_values: Any) -> torch.Tensor:
    """Read tokens [B, L] after what a cache holds (None: nothing), which grows by them; the logits [B, L, vocabulary].

    One forward, or, after a state that is carried (`layers_with_states`), one for each token.
    """
    past = 0 if past_key_values is None else int(past_key_values.get_seq_length())
    cached: dict[str, Any] = {"past_key_values": past_key_values, "use_cache": True}
    if not (past and layers_with_states(model.config)):
        logits: torch.Tensor = model(input_ids=input_ids, **cached).logits
        return logits
    steps = zip(input_ids.split(1, dim=1), _positions_after(past, input_ids).split(1, dim=1), strict=True)
    return torch.cat([model(input_ids=token, position_ids=place, **cached).logits for token, place in steps], dim=1)


def _positions_after(past: int, input_ids: torch.Tensor) -> torch.Tensor:
    """Positions [1, L] of tokens after others, as Bamba has to be told."""
    return torch.arange(past, past + input_ids.shape[1], device=input_ids.device)[None]
