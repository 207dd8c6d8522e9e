"""The configs of converted models as vLLM reads them: the stock families' under another name, the plan as plain data.

vLLM pins an earlier transformers than this package asks for, so that the converted config classes cannot be had there.
Made when this module is imported: vLLM's processes send each other configs by module and name.
"""

from __future__ import annotations

from typing import Any

from transformers import AutoConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from uniattn_pl.families.inspection import FAMILIES, MODEL_TYPE_PREFIX

KNOWN_FAMILIES = [family for family in FAMILIES if family in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES]
ARCHITECTURES = ["UniAttn" + MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[family] for family in KNOWN_FAMILIES]
"""Names of the converted models, also of families that are not served, which are to be refused with the reason."""

SERVED_CONFIGS: dict[str, type] = {}
"""Model type -> config class."""

for _family in KNOWN_FAMILIES:
    _stock: Any = type(AutoConfig.for_model(_family))
    _name = MODEL_TYPE_PREFIX + _family
    _members = {"model_type": _name, "__module__": __name__}
    SERVED_CONFIGS[_name] = globals()[f"Served{_stock.__name__}"] = type(
        f"Served{_stock.__name__}", (_stock,), _members
    )
