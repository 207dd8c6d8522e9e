"""How long a text a model can read: the positions it was trained on, and how far its rotation is stretched."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

# Their `max_position_embeddings` is the stretched length already.
STRETCHED_ALREADY = ("default", "longrope", "llama3", "proportional")


def positions_of(config: PreTrainedConfig) -> int | None:
    """The tokens of the longest text that a model was made for; None where its config names no limit.

    `max_position_embeddings`, times the factor of linear, dynamic and YaRN rotations (of which YaRN names the length
    that the factor is of), as vLLM reads them. A longer text runs, over positions that nobody trained.
    """
    text = config.get_text_config()
    limit = getattr(text, "max_position_embeddings", None)
    if limit is None:
        return None
    rotation: dict[str, Any] = getattr(text, "rope_parameters", None) or {}
    # One entry per kind of layer (Gemma-3) stretches some layers only: the config's limit is the model's.
    if rotation.get("rope_type", "default") in STRETCHED_ALREADY:
        return int(limit)
    base = rotation.get("original_max_position_embeddings") if rotation["rope_type"] == "yarn" else None
    return max(int(limit), int((base or limit) * (rotation.get("factor") or 1.0)))


def beyond_positions(key: str, tokens: int, positions: int | None) -> str | None:
    """The problem with a config key that asks for texts of so many tokens, if there is one."""
    if positions is None or tokens <= positions:
        return None
    return (
        f"{key}: {tokens} tokens are more than the {positions} positions of the model; what lies beyond is untrained."
    )
