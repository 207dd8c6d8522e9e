"""Examples to a batch: right padding to the longest, labels on the response only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from uniattn_pl.data.encoding import Example

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

        `input_ids`, `attention_mask`, `labels` int64 [B, L]; labels are -100 on prompt and padding. With choices:
        `choice_ids` int64 [B, C] (padded with -1), `answer_index` int64 [B] (-1: not checkable), `answer_position`
        int64 [B]: `logits[b, answer_position[b]]` predicts the first response token.
        `rows` int64 [B] is the index of each row in its split as it was read (-1: blank), `num_tokens` int64 []
        counts the tokens that are neither padding nor blank.
        """
        length = max(len(example.tokens) for example in examples)
        input_ids = torch.full((len(examples), length), self.pad_id, dtype=torch.int64)
        attention_mask = torch.zeros_like(input_ids)
        labels = torch.full_like(input_ids, IGNORED)
        for row, example in enumerate(examples):
            end = len(example.tokens)
            input_ids[row, :end] = example.tokens
            attention_mask[row, :end] = 1
            labels[row, example.prompt_length : end] = example.tokens[example.prompt_length :]
        batch = {
            "input_ids": input_ids,
            "attention_mask": attention_mask,
            "labels": labels,
            "rows": torch.tensor([example.row for example in examples]),
            "num_tokens": torch.tensor(sum(example.counted_tokens for example in examples)),
        }
        return {**batch, **_answers(examples)} if self.with_choices else batch


def _answers(examples: Sequence[Example]) -> Batch:
    most = max(1, max(len(example.choice_ids) for example in examples))
    padded = [(*example.choice_ids, *(-1 for _ in range(most - len(example.choice_ids)))) for example in examples]
    return {
        "choice_ids": torch.tensor(padded, dtype=torch.int64),
        "answer_index": torch.tensor([example.answer_index for example in examples], dtype=torch.int64),
        "answer_position": torch.tensor([example.prompt_length - 1 for example in examples], dtype=torch.int64),
    }
