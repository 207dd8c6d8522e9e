"""Post-train pre-trained LLMs with unified attention maps (UniAttn) so that inference gets cheaper.

Importing this package is cheap; models and torch are imported when an attribute below is first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from uniattn_pl.auto_registration import install_hook
from uniattn_pl.lazy_exports import lazy_exports

if TYPE_CHECKING:
    from uniattn_pl.api.calibrate_model import calibrate
    from uniattn_pl.api.run_fit import FinishedFit, fit
    from uniattn_pl.architectures import register
    from uniattn_pl.calibration.calibration_report import CalibrationReport
    from uniattn_pl.errors import UserError
    from uniattn_pl.modeling.caches.plan_cache import kv_cache_bytes
    from uniattn_pl.modeling.conversion.auto_classes import register_family
    from uniattn_pl.modeling.conversion.convert import apply_architecture, apply_plan, drop_attention, unmodified_copy
    from uniattn_pl.modeling.loading.pretrained import load_model, load_tokenizer
    from uniattn_pl.modeling.lora import lora_config
    from uniattn_pl.plan.layer_plan import LayerPlan
    from uniattn_pl.training.callbacks.compensation_init import CompensationInit
    from uniattn_pl.training.callbacks.divergence_stop import DivergenceStop
    from uniattn_pl.training.callbacks.ema_early_stop import EMAEarlyStop
    from uniattn_pl.training.callbacks.held_out_early_stop import HeldOutEarlyStop
    from uniattn_pl.training.callbacks.held_out_loss import HeldOutLoss
    from uniattn_pl.training.callbacks.provenance import Provenance
    from uniattn_pl.training.callbacks.rng_state import RngState
    from uniattn_pl.training.callbacks.stage_freezing import StageFreezing
    from uniattn_pl.training.callbacks.step_metrics import StepMetrics
    from uniattn_pl.training.callbacks.throughput import Throughput
    from uniattn_pl.training.callbacks.training_progress import TrainingProgress

__version__ = "0.1.0"
__all__ = [
    "CalibrationReport",
    "CompensationInit",
    "DivergenceStop",
    "EMAEarlyStop",
    "FinishedFit",
    "HeldOutEarlyStop",
    "HeldOutLoss",
    "LayerPlan",
    "Provenance",
    "RngState",
    "StageFreezing",
    "StepMetrics",
    "Throughput",
    "TrainingProgress",
    "UserError",
    "__version__",
    "apply_architecture",
    "apply_plan",
    "calibrate",
    "drop_attention",
    "fit",
    "kv_cache_bytes",
    "load_model",
    "load_tokenizer",
    "lora_config",
    "register",
    "register_family",
    "unmodified_copy",
]

_HOMES = {
    "load_model": "modeling.loading.pretrained",
    "load_tokenizer": "modeling.loading.pretrained",
    "apply_architecture": "modeling.conversion.convert",
    "apply_plan": "modeling.conversion.convert",
    "LayerPlan": "plan.layer_plan",
    "calibrate": "api.calibrate_model",
    "CalibrationReport": "calibration.calibration_report",
    "fit": "api.run_fit",
    "FinishedFit": "api.run_fit",
    "kv_cache_bytes": "modeling.caches.plan_cache",
    "drop_attention": "modeling.conversion.convert",
    "unmodified_copy": "modeling.conversion.convert",
    "lora_config": "modeling.lora",
    "register": "architectures",
    "register_family": "modeling.conversion.auto_classes",
    "CompensationInit": "training.callbacks.compensation_init",
    "StageFreezing": "training.callbacks.stage_freezing",
    "EMAEarlyStop": "training.callbacks.ema_early_stop",
    "HeldOutLoss": "training.callbacks.held_out_loss",
    "HeldOutEarlyStop": "training.callbacks.held_out_early_stop",
    "DivergenceStop": "training.callbacks.divergence_stop",
    "StepMetrics": "training.callbacks.step_metrics",
    "Throughput": "training.callbacks.throughput",
    "TrainingProgress": "training.callbacks.training_progress",
    "RngState": "training.callbacks.rng_state",
    "Provenance": "training.callbacks.provenance",
    "UserError": "errors",
}

install_hook()
__getattr__, __dir__ = lazy_exports(__name__, {name: f"{__name__}.{home}" for name, home in _HOMES.items()})
