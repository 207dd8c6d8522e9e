"""The config of a DeciLM folder, for engines that ask a folder for its code: a Llama whose blocks differ."""

from __future__ import annotations

from typing import Any

from transformers import LlamaConfig


class _Block(dict):  # type: ignore[type-arg]
    """A JSON object whose keys are attributes, too, as engines read them."""

    def __getattr__(self, name: str) -> Any:
        try:
            value = self[name]
        except KeyError:
            raise AttributeError(name) from None
        return _Block(value) if isinstance(value, dict) else value


class DeciLMConfig(LlamaConfig):
    """A LlamaConfig with `block_configs`: per layer its `attention` and its `ffn`."""

    model_type = "nemotron-nas"

    def __init__(self, block_configs: list[dict[str, Any]] | None = None, **options: Any) -> None:
        super().__init__(**options)
        self.block_configs = [_Block(block) for block in block_configs or []]
