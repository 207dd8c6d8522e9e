"""Which kernel computes an attention, and whether its map is kept for the layers that read it: the one rule.

A map that is kept costs its memory and makes every reader one product (map x V). A map that is not kept is computed
again by each reader from the source's queries and keys (replay): a fused kernel, memory linear in the length. On an
accelerator the map of a decoding step is kept as its row of scores, and that of a prompt in tiles where these were
measured to be faster (`triton_maps/measured_cards.py`) or were asked for.

While gradients are recorded, maps are computed again. A backward through kept tiles would share work among the R
readers of a map: replays take 5 products of the size of a map each (scores again, gradients of values, map, queries
and keys), 5 R + 5 in all; shared, a reader takes 3 and the source 5. With R = 3 that saves 30 % of the backward
attention of a Superblock. Attention is 6 % of the training FLOPs of an 8B model at 4,096 tokens, half of its layers
in Superblocks: less than 1 % of a step is to be had, less than a Triton backward loses to the fused one, and all
readers' gradients of heads would have to be held until the source's turn, which activation checkpointing is there to
avoid.
"""

from __future__ import annotations

from dataclasses import dataclass

from uniattn_pl.families.attention_kernels import WITH_MAPS
from uniattn_pl.kernels.stock import EAGER, SDPA
from uniattn_pl.plan.roles import TILED_MODES

GROUPED, FAMILY, BACKEND, ROWS, TILED = "grouped", "family", "backend", "rows", "tiles"
PLAIN_ARGUMENTS = {"scaling", "dropout", "sliding_window", "is_causal", "position_ids", "use_cache", "return_dict"}


@dataclass(frozen=True)
class AttentionCall:
    """The facts about one attention that decide how it is computed.

    Attributes:
        backend: the stock kernel the user chose, of `ATTENTION_BACKENDS`.
        reuse_mode: of `REUSE_MODES`.
        device: its type.
        queries, keys: L and S.
        map_bytes, map_limit: what its map takes, and what one may take.
        gradient: autograd records this forward.
        compiling: torch.compile traces it.
        plain: softmax(scale * Q K^T + mask) V is all that the layer asks of its kernel: no sinks, caps or biases.
        map_read: other layers read the map.
        map_observed: the cache sums it (H2O).
        evicting: the cache gives tokens up, so that a map must be taken as it is now.
        triton: the Triton kernels run here, and all that the layer asks is in them.
        tiles_faster: tiles were measured to be faster at this length on this card, and are not too large.
    """

    backend: str
    reuse_mode: str
    device: str
    queries: int
    keys: int
    map_bytes: int
    map_limit: int
    gradient: bool = False
    compiling: bool = False
    plain: bool = True
    map_read: bool = False
    map_observed: bool = False
    evicting: bool = False
    triton: bool = False
    tiles_faster: bool = False


@dataclass(frozen=True)
class Choice:
    """A kernel (grouped products, the family's eager one, the backend the user chose, or Triton's), and why."""

    kernel: str
    keeps_map: bool
    reason: str


def choose(call: AttentionCall) -> Choice:
    """The first line that applies decides."""
    keeps, reason = decide_on_map(call)
    if _triton_keeps(call):
        if call.queries == 1 and keeps:
            return Choice(ROWS, True, f"{reason}; readers take its scores and their own values")
        if call.queries > 1 and call.reuse_mode in TILED_MODES:
            return Choice(TILED, True, f"reuse={call.reuse_mode}")
        if call.queries > 1 and call.reuse_mode == "auto" and call.tiles_faster and not call.compiling:
            return Choice(TILED, True, "a prompt on a card where tiles were measured to be faster")
    can_group = call.backend == SDPA and call.plain and not call.gradient and not call.compiling
    if keeps or call.map_observed:
        if can_group:
            return Choice(GROUPED, keeps, reason)
        return Choice(FAMILY, keeps, f"{reason}; grouped products are plain attention without gradients only")
    if can_group and call.device == "cpu" and call.queries != call.keys and call.map_bytes <= call.map_limit:
        return Choice(GROUPED, False, "queries over a longer cache: on a CPU grouped products beat the fused kernel")
    return Choice(BACKEND, False, reason)


def decide_on_map(call: AttentionCall) -> tuple[bool, str]:
    """Whether the map is kept for its readers, and why; the first line that applies decides."""
    if not call.map_read:
        return False, "no layer reads the map" if not call.map_observed else "the cache sums the map"
    if call.evicting:
        return True, "the cache gives tokens up: later the same map cannot be computed again"
    if call.backend not in WITH_MAPS:
        return False, f"{call.backend} takes no masks that fit a map"
    if call.reuse_mode in ("materialise", "replay"):
        return call.reuse_mode == "materialise", f"reuse={call.reuse_mode}"
    if call.backend == EAGER:
        return True, "eager attention computes the map anyway"
    if call.queries == 1:
        return True, "decoding: the map is one row"
    if call.gradient:
        return False, "training: a kept map takes memory quadratic in the length"
    if call.device != "cpu":
        return False, "a prompt on an accelerator: a fused kernel computes a map again faster than memory gives it back"
    if call.map_bytes > call.map_limit:
        return False, "the map is larger than the limit"
    return True, "a chunk of a prompt: the map is small"


def _triton_keeps(call: AttentionCall) -> bool:
    """Whether a map that others read could be kept by the Triton kernels, which give no map as a whole."""
    asked_for_whole = call.map_observed or call.evicting or call.reuse_mode == "replay"
    return call.triton and call.map_read and call.backend == SDPA and not call.gradient and not asked_for_whole
