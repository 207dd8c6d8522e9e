"""What cards do at most, from their vendors' data sheets: FLOP/s and bytes/s, by which times are bounded."""

from __future__ import annotations

from dataclasses import dataclass

from uniattn_pl.errors import UserError, did_you_mean

GIB = 2**30
DEFAULT_MEMORY_GIB = 80
USABLE_MEMORY = 0.9
"""Of a device: the allocator's gaps, the libraries' own memory, and what an estimate misses need the rest."""


@dataclass(frozen=True)
class CardRates:
    """Peaks of one card.

    Attributes:
        device: what its name in the driver contains.
        flops_per_s: of dense products in 16 bits.
        bytes_per_s: of its memory.
        memory_gib: GiB as the driver shows them, which is less than the name says.
    """

    device: str
    flops_per_s: float
    bytes_per_s: float
    memory_gib: float


# From NVIDIA's data sheets: FLOP/s without sparsity (half of what most print), of SXM modules where there are several.
# Of two device names that contain each other the longer is first.
CARDS = {
    "b200-180g": CardRates("B200", 2.25e15, 8.0e12, 178.4),
    "h200-141g": CardRates("H200", 9.89e14, 4.8e12, 139.8),
    "h800-80g": CardRates("H800", 9.89e14, 3.35e12, 79.1),  # the paper's: an H100 but for its links to other cards
    "h100pcie-80g": CardRates("H100 PCIe", 7.56e14, 2.0e12, 79.1),
    "h100-80g": CardRates("H100", 9.89e14, 3.35e12, 79.1),
    "a100-40g": CardRates("A100-SXM4-40GB", 3.12e14, 1.555e12, 39.4),
    "a100-80g": CardRates("A100", 3.12e14, 2.039e12, 79.1),
    "l40s-48g": CardRates("L40S", 3.62e14, 8.64e11, 44.4),
    "l4-24g": CardRates("L4", 1.21e14, 3.0e11, 22.0),
    "a10g-24g": CardRates("A10G", 7.0e13, 6.0e11, 22.1),
    "a10-24g": CardRates("A10", 1.25e14, 6.0e11, 22.1),
    "rtx4090-24g": CardRates("RTX 4090", 1.65e14, 1.008e12, 23.6),
    "rtx3090-24g": CardRates("RTX 3090", 7.1e13, 9.36e11, 23.6),
    "v100-32g": CardRates("V100", 1.25e14, 9.0e11, 31.7),
    "t4-16g": CardRates("T4", 6.5e13, 3.2e11, 14.6),
}


def find_card(name: str, option: str = "--card") -> tuple[str, CardRates]:
    """A card by its name, with or without its memory (`h100-80g`, `h100`), and that name in full.

    Raises:
        UserError: there is none, or there are two, of this name.
    """
    wanted = name.lower()
    found = [wanted] if wanted in CARDS else [card for card in CARDS if card.partition("-")[0] == wanted]
    if len(found) != 1:
        near = did_you_mean(wanted, CARDS)
        why = f"two cards are called '{name}'" if found else f"there is no card '{name}'"
        raise UserError(f"{option}: {why}.{near} Cards: {', '.join(CARDS)}.")
    return found[0], CARDS[found[0]]


def card_of_device(name: str) -> CardRates | None:
    """The card whose name the driver gives; None: it is not known."""
    return next((card for card in CARDS.values() if card.device in name), None)


def memory_bytes(text: str) -> int:
    """Bytes of a card, from its GiB or its name.

    Raises:
        UserError: it is neither.
    """
    option = "--gpu-memory"
    try:
        gib = float(text)
    except ValueError:
        gib = find_card(text, option)[1].memory_gib
    if not 0 < gib <= 2**20:
        raise UserError(f"{option}: must be above 0 GiB and at most {2**20}, got {text}.")
    return int(gib * GIB)
