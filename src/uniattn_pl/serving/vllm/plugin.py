"""The entry point that vLLM calls in each of its processes (group `vllm.general_plugins`)."""

from __future__ import annotations

from typing import Any

from uniattn_pl.errors import UserError
from uniattn_pl.serving.vllm.layout import ServedLayout
from uniattn_pl.serving.vllm.support import engine_problems, plan_problems

MODEL = "uniattn_pl.serving.vllm.served_model:ServedForCausalLM"


def register() -> None:
    """Let vLLM read the configs of converted models, build them, and refuse what it cannot serve."""
    from vllm import ModelRegistry
    from vllm.model_executor.models.config import MODELS_CONFIG_MAP
    from vllm.transformers_utils.config import _CONFIG_REGISTRY

    from uniattn_pl.serving.vllm.served_configs import ARCHITECTURES, SERVED_CONFIGS

    _CONFIG_REGISTRY.update(SERVED_CONFIGS)
    for architecture in ARCHITECTURES:
        ModelRegistry.register_model(architecture, MODEL)
        MODELS_CONFIG_MAP[architecture] = ServedConfigChecks


class ServedConfigChecks:
    """What vLLM calls with every config of a converted model, before any process for it is started."""

    @staticmethod
    def verify_and_update_model_config(model_config: Any) -> None:
        """Raise UserError for a plan that vLLM cannot serve, with every reason."""
        problems = plan_problems(model_config.hf_config.to_dict())
        if problems:
            raise UserError(*problems)

    @staticmethod
    def verify_and_update_config(vllm_config: Any) -> None:
        """Raise UserError for an engine that cannot serve this plan, with every reason."""
        from vllm.v1.attention.backends.cpu_attn import CPUAttentionBackend

        layout = ServedLayout(vllm_config.model_config.hf_config, "model")
        parallel, device = vllm_config.parallel_config, vllm_config.device_config.device_type
        engine = {
            "device": device,
            "heads": layout.config.num_attention_heads,
            "kv_heads": layout.config.num_key_value_heads,
            "head_size": layout.head_size,
            # A GPU has several kernels, of which vLLM chooses, and refuses, by itself.
            "head_sizes": CPUAttentionBackend.get_supported_head_sizes() if device == "cpu" else [],
            "tensor_parallel_size": parallel.tensor_parallel_size,
            "pipeline_parallel_size": parallel.pipeline_parallel_size,
            "kv_cache_dtype": str(vllm_config.cache_config.cache_dtype),
            "quantization": vllm_config.model_config.quantization,
            "lora": vllm_config.lora_config is not None,
            "kv_transfer": vllm_config.kv_transfer_config is not None,
        }
        problems = engine_problems(layout.plan, engine)
        if problems:
            raise UserError(*problems)
