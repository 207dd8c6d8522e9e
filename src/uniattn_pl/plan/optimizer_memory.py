"""What an optimizer keeps of the weights that train, by their kinds."""

from __future__ import annotations

from dataclasses import dataclass

ADAMW, ADAMW_8BIT, MUON = "adamw", "adamw_8bit", "muon"
# Of bitsandbytes: two states of 8 bits each, with a float32 scale for 256 of them; 32 bits for embeddings and vectors.
EIGHT_BITS = 2 * (1 + 4 / 256)
WIDE = 2 * 4


@dataclass(frozen=True)
class TrainedWeights:
    """How many weights train.

    Attributes:
        matrices: by which hidden states are multiplied.
        experts: stacks of such matrices.
        tables: embeddings, the output embedding among them.
        vectors: of norms.
    """

    matrices: int = 0
    experts: int = 0
    tables: int = 0
    vectors: int = 0

    @property
    def all(self) -> int:
        return self.matrices + self.experts + self.tables + self.vectors

    def optimizer_bytes(self, optimizer: str, weight_bytes: int) -> int:
        """Bytes of an optimizer's states.

        Args:
            optimizer: AdamW keeps two states of each weight; in 8 bits, those of embeddings and vectors in 32; Muon one
                of matrices, and AdamW's two of everything else.
            weight_bytes: of a weight, and so of a state that has no size of its own.
        """
        if optimizer == ADAMW_8BIT:
            return int((self.matrices + self.experts) * EIGHT_BITS) + (self.tables + self.vectors) * WIDE
        one_state = self.matrices if optimizer == MUON else 0
        return (2 * self.all - one_state) * weight_bytes
