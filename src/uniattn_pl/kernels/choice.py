"""Which kernel computes an attention, and whether its map is kept for the layers that read it: the one rule.

A map that is kept costs its memory and makes every reader one product (map x V). A map that is not kept is computed
again by each reader from the source's queries and keys (replay): a fused kernel, memory linear in the length.
"""

from __future__ import annotations

from dataclasses import dataclass

from uniattn_pl.kernels.stock import EAGER, SDPA

GROUPED, FAMILY, BACKEND = "grouped", "family", "backend"
PLAIN_ARGUMENTS = {"scaling", "dropout", "sliding_window", "is_causal", "position_ids", "use_cache", "return_dict"}


@dataclass(frozen=True)
class AttentionCall:
    """The facts about one attention that decide how it is computed.

    Attributes:
        backend: the stock kernel the user chose: sdpa, eager or flex_attention.
        reuse_mode: auto, materialise or replay.
        device: its type.
        queries, keys: L and S.
        map_bytes, map_limit: what its map takes, and what one may take.
        gradient: autograd records this forward.
        compiling: torch.compile traces it.
        plain: softmax(scale * Q K^T + mask) V is all that the layer asks of its kernel: no sinks, caps or biases.
        map_read: other layers read the map.
        map_observed: the cache sums it (H2O).
        evicting: the cache gives tokens up, so that a map must be taken as it is now.
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


@dataclass(frozen=True)
class Choice:
    """A kernel (grouped products, the family's eager one, or the backend the user chose), and why."""

    kernel: str
    keeps_map: bool
    reason: str


def choose(call: AttentionCall) -> Choice:
    """The first line that applies decides."""
    keeps, reason = decide_on_map(call)
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
    if call.backend not in (SDPA, EAGER):
        return False, f"the masks of {call.backend} are functions, which fit no map"
    if call.reuse_mode != "auto":
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
