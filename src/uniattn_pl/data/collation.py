"""Examples to a batch: right padding to the longest, labels on the scored spans only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from uniattn_pl.data.encoded_rows import Example

IGNORED = -100  # the label PyTorch's cross-entropy leaves out
Batch = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Collator:
    """Pad a list of examples to one batch; picklable, so that worker processes can use it.

    The mask and the labels come from lengths, never from comparing with the pad id, so a tokenizer whose pad token
    is its EOS still learns to stop.

    Args:
        pad_id: token in the padding.
        with_choices: add `choice_ids`, `answer_index` and `answer_position`.
    """

    pad_id: int
    with_choices: bool = False

    def __call__(self, examples: Sequence[Example]) -> Batch:
        """Return the batch of `examples` (`B` sequences, `L` the longest, `C` choices at most).

        `input_ids`, `attention_mask`, `labels` int64 [B, L]; labels are -100 outside of the scored spans. Beside an
        encoder the first two are [B, S] of the sources, and `decoder_input_ids`, `decoder_attention_mask`, `labels`
        [B, L] of the decoder, whose label at t is its own token t, as everywhere here. With choices: `choice_ids`
        int64 [B, C] (padded with -1), `answer_index` int64 [B] (-1: not checkable), `answer_position` int64 [B]:
        `logits[b, answer_position[b]]` predicts the first scored token.
        `rows` int64 [B] is the index of each row in its split as it was read (-1: blank), `num_tokens` int64 []
        counts the tokens that are neither padding nor blank.
        """
        ids, mask = self._padded([example.tokens for example in examples])
        labels = torch.full_like(ids, IGNORED)
        for row, example in enumerate(examples):
            for start, end in example.spans.tolist():
                labels[row, start:end] = example.tokens[start:end]
        inputs = {"input_ids": ids, "attention_mask": mask}
        sources = [example.source for example in examples if example.source is not None]
        if sources:
            source_ids, source_mask = self._padded(sources)
            inputs = {"input_ids": source_ids, "attention_mask": source_mask}
            inputs |= {"decoder_input_ids": ids, "decoder_attention_mask": mask}
        batch = {
            **inputs,
            "labels": labels,
            "rows": torch.tensor([example.row for example in examples]),
            "num_tokens": torch.tensor(sum(example.counted_tokens for example in examples)),
        }
        return {**batch, **_answers(examples)} if self.with_choices else batch

    def _padded(self, sequences: Sequence[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        """Ids and mask [B, longest], right padded."""
        ids = torch.full((len(sequences), max(map(len, sequences))), self.pad_id, dtype=torch.int64)
        mask = torch.zeros_like(ids)
        for row, sequence in enumerate(sequences):
            ids[row, : len(sequence)] = sequence
            mask[row, : len(sequence)] = 1
        return ids, mask


def _answers(examples: Sequence[Example]) -> Batch:
    most = max(1, max(len(example.choice_ids) for example in examples))
    padded = [(*example.choice_ids, *(-1 for _ in range(most - len(example.choice_ids)))) for example in examples]
    return {
        "choice_ids": torch.tensor(padded, dtype=torch.int64),
        "answer_index": torch.tensor([example.answer_index for example in examples], dtype=torch.int64),
        "answer_position": torch.tensor([example.prompt_length - 1 for example in examples], dtype=torch.int64),
    }
