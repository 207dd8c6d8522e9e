"""Attentions of our own as operations that vLLM's compiler takes as they are."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from vllm.utils.torch_utils import direct_register_custom_op


def register_writing_op(name: str, function: Callable[..., None]) -> None:
    """Make `function`, which writes into its argument `output` and returns nothing, the operation `vllm::name`."""
    direct_register_custom_op(op_name=name, op_func=function, mutates_args=["output"], fake_impl=_nothing)


def _nothing(*_: Any, **__: Any) -> None:
    """What tracing sees: nothing is made anew, and the schema says what is written."""
