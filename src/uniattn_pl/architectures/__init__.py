"""Efficient attention architectures; each file holds one and returns a LayerPlan."""

from uniattn_pl.architectures.baseline import Baseline
from uniattn_pl.architectures.cla import CLA
from uniattn_pl.architectures.given import Given
from uniattn_pl.architectures.gqa import GQA
from uniattn_pl.architectures.kvsharer import KVSharer
from uniattn_pl.architectures.llmdrop import LLMDrop
from uniattn_pl.architectures.registry import ARCHITECTURES, Architecture, available, get_architecture, register
from uniattn_pl.architectures.search import Search
from uniattn_pl.architectures.shared_attention import SharedAttention
from uniattn_pl.architectures.shortgpt import ShortGPT
from uniattn_pl.architectures.uniattn import UniAttn
from uniattn_pl.architectures.window import Window
from uniattn_pl.architectures.yoco import YOCO

__all__ = [
    "ARCHITECTURES",
    "CLA",
    "GQA",
    "YOCO",
    "Architecture",
    "Baseline",
    "Given",
    "KVSharer",
    "LLMDrop",
    "Search",
    "SharedAttention",
    "ShortGPT",
    "UniAttn",
    "Window",
    "available",
    "get_architecture",
    "register",
]
