"""Text drawn from a model: a batch of prompts continued together, every row with random numbers of its own."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import LogitsProcessor, LogitsProcessorList, PreTrainedModel, PreTrainedTokenizerBase

from uniattn_pl.data.chat_template import ChatTemplate, RefusedChat
from uniattn_pl.data.chat_turns import ASSISTANT
from uniattn_pl.data.chats import Chat
from uniattn_pl.data.encoding import prompt_text, text_start
from uniattn_pl.data.prompt_ids import prompt_ids
from uniattn_pl.data.rows import Row
from uniattn_pl.errors import UserError
from uniattn_pl.modeling.decoding import decoding, own_defaults
from uniattn_pl.resilience.identity import item_digest


class TextSampler:
    """Continues the prompts of rows with `generate()` and its KV cache.

    Args:
        model, tokenizer: of the original.
        template: of chats; None: prompts are the paper's.
        tokens: drawn for a row at most.
        temperature: the logits are divided by it; 1 is the model's own distribution, all of it (no top-k, no top-p).
        seed: with a row's number, of what is drawn for it.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        template: ChatTemplate | None = None,
        *,
        tokens: int,
        temperature: float,
        seed: int,
    ) -> None:
        self.model, self.tokenizer, self.template = model, tokenizer, template
        self.tokens, self.temperature, self.seed = tokens, temperature, seed
        self.settings = decoding(model, tokenizer, max_new_tokens=tokens)
        self.ends: list[int] = self.settings.eos_token_id or []  # type: ignore[assignment]  # `decoding` gives a list

    def sample(self, prompts: Sequence[Row], numbers: Sequence[int]) -> tuple[list[dict[str, Any]], int]:
        """Return the fields of one `Row` per prompt, its text as the answer, and how many tokens were drawn.

        Args:
            prompts: rows whose prompts are continued; a plain one begins with BOS, of a chat the last answer is drawn.
            numbers: of the rows, by which their random numbers are found again.

        Raises:
            UserError: the chat template does not take a prompt.
        """
        encoded = [self._prompt(row) for row in prompts]
        longest = max(map(len, encoded))
        # padded at the left, so that all texts go on at one place
        ids = torch.tensor([[self.ends[0]] * (longest - len(prompt)) + prompt for prompt in encoded])
        mask = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in encoded])
        uniform = torch.stack([random_numbers(self.seed, number, self.tokens) for number in numbers])
        model: Any = self.model
        draws = TokenDraws(uniform.to(model.device), longest, self.temperature, self.ends)
        with torch.inference_mode(), own_defaults(self.model, self.tokenizer):
            output = model.generate(
                ids.to(model.device),
                attention_mask=mask.to(model.device),
                generation_config=self.settings,
                logits_processor=LogitsProcessorList([draws]),
            )
        texts = [self._until_end(text) for text in output[:, longest:].tolist()]
        rows = [self._row(prompt, *text) for prompt, text in zip(prompts, texts, strict=True)]
        return rows, sum(len(text) for text, _ in texts)

    def _prompt(self, row: Row) -> list[int]:
        if self.template is None or row.plain:
            return text_start(self.tokenizer) if row.plain else prompt_ids(self.tokenizer, prompt_text(row))
        chat = row.conversation
        try:
            return self.template.prompt_ids(chat.asked, chat.tools)
        except RefusedChat as refused:
            asked = json.dumps(chat.asked)[:200]
            raise UserError(f"data.self_text.prompts: a prompt ({asked}): {refused}.") from refused

    def _until_end(self, ids: list[int]) -> tuple[list[int], bool]:
        """The tokens in front of the one that ends the text, and whether there is one."""
        end = next((place for place, token in enumerate(ids) if token in self.ends), None)
        return (ids, False) if end is None else (ids[:end], True)

    def _row(self, prompt: Row, ids: list[int], ended: bool) -> dict[str, Any]:
        text = str(self.tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False))
        if not ended:
            text = text.rstrip("\ufffd")  # cut inside a character
        if self.template is not None and not prompt.plain:
            return {"instruction": "", "input": "", "output": "", "continues": not ended} | _answered(prompt, text)
        return {"instruction": prompt.instruction, "input": prompt.input, "output": text, "continues": not ended}


def _answered(prompt: Row, text: str) -> dict[str, str]:
    """The conversation of a prompt with this answer."""
    chat = prompt.conversation
    messages = [*chat.asked, {"role": ASSISTANT, "content": text}]
    return {"chat": Chat(messages, (len(chat.asked),), chat.tools).to_json()}


def random_numbers(seed: int, row: int, count: int) -> Tensor:
    """float64 [count] in [0, 1): one for each token of a row, the same wherever and beside whatever it is sampled."""
    digest = item_digest(f"{seed} {row}".encode())
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))
    return torch.rand(count, generator=generator, dtype=torch.float64)


class TokenDraws(LogitsProcessor):
    """Leaves to each row the one token that its random number falls on, which greedy decoding then takes.

    The numbers are drawn beforehand, so that neither the batch nor the device's generator changes a row. No text ends
    before its first token.
    """

    def __init__(self, uniform: Tensor, prompt_length: int, temperature: float, ends: list[int]) -> None:
        self.uniform, self.prompt_length, self.temperature, self.ends = uniform, prompt_length, temperature, ends

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:  # type: ignore[override]
        """Of the logits [B, vocabulary] of the next token, all but the drawn ones become minus infinity."""
        step = input_ids.shape[1] - self.prompt_length
        if step == 0:
            scores = scores.index_fill(1, torch.tensor(self.ends, device=scores.device), -torch.inf)
        below = (scores.double() / self.temperature).softmax(-1).cumsum(-1)  # [B, vocabulary]
        # the first token whose cumulative probability is above the number: never one of probability 0
        drawn = torch.searchsorted(below, self.uniform[:, step, None] * below[:, -1:], right=True)
        return torch.full_like(scores, -torch.inf).scatter(1, drawn.clamp(max=scores.shape[1] - 1), 0.0)
