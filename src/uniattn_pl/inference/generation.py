"""Text from a run's model, with the prompt it was trained on."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from uniattn_pl.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from uniattn_pl.data.prompt_file import AskedPrompt
    from uniattn_pl.inference.token_choice import Sampling


@dataclass(frozen=True)
class TextCost:
    """What one text took: new tokens, seconds for them and the prompt, bytes of keys and values at its end."""

    tokens: int
    seconds: float
    cache_bytes: int

    @property
    def tokens_per_s(self) -> float:
        """Of the new ones."""
        return self.tokens / max(self.seconds, 1e-9)


class TextModel:
    """A model that continues prompts, text coming as it is made.

    Args:
        h2o_retain_rate: fraction of each prompt's cache that is kept while decoding; None: all of it.
        compiled_tokens: decode by a compiled step over a static cache of so many tokens; None: do not.

    Attributes:
        cost: of the text that was made last.

    Raises:
        UserError: the model cannot be compiled whole, or H2O cannot serve it.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        h2o_retain_rate: float | None = None,
        compiled_tokens: int | None = None,
    ) -> None:
        from uniattn_pl.data.prompt_ids import decoder_begins
        from uniattn_pl.families.encoder_decoder import without_encoder
        from uniattn_pl.families.inspection import decoder_of
        from uniattn_pl.inference.compiled_decoding import check_compilable, compiled_step, static_cache
        from uniattn_pl.modeling.conversion.convert import unmodified_copy
        from uniattn_pl.modeling.decoding import ends_of

        for option, value in (("--h2o", h2o_retain_rate), ("--compile", compiled_tokens)):
            if value is not None:
                without_encoder(model.config, option)
        if h2o_retain_rate is not None and not hasattr(decoder_of(model), "layer_plan"):
            model = unmodified_copy(model)
        self.model, self.tokenizer, self.h2o_retain_rate = model, tokenizer, h2o_retain_rate
        self.ends, self.begins = frozenset(ends_of(model, tokenizer)), decoder_begins(tokenizer)
        self.step: Any = None
        self._static: Any = None
        if compiled_tokens is not None:
            check_compilable(model)
            self.step = compiled_step(model)
            self._static = static_cache(model, compiled_tokens)  # of one size, so that one graph serves all
        self.cost = TextCost(0, 0.0, 0)

    def stream(
        self, ids: Sequence[int], sampling: Sampling, *, max_new_tokens: int, stop: Sequence[str] = (), number: int = 0
    ) -> Iterator[str]:
        """Yield the text that follows a prompt, piece by piece.

        Args:
            ids: the prompt's tokens, one at least.
            stop: the text ends before the first of these.
            number: of the text among those of one seed.
        """
        from uniattn_pl.inference.continuation import continuation, encoded_prompt, filled_at_once
        from uniattn_pl.inference.text_pieces import TextPieces
        from uniattn_pl.inference.token_choice import TokenChooser
        from uniattn_pl.modeling.caches.plan_cache import kv_cache_bytes

        begin, tokens = time.perf_counter(), 0
        pieces, chooser = TextPieces(self.tokenizer, stop), TokenChooser(sampling, self.model.device, number=number)
        if self.begins is None:
            prompt = filled_at_once(self.model, ids, self._cache())
        else:
            prompt = encoded_prompt(self.model, ids, self.begins)
        limits: dict[str, Any] = {"ends": self.ends, "max_new_tokens": max_new_tokens}
        for score in continuation(self.model, prompt, chooser, **limits, step=self.step):
            tokens += 1
            if score.id not in self.ends and (piece := pieces.push(score.id)):
                yield piece
            if pieces.stopped:
                break
        self.cost = TextCost(tokens, time.perf_counter() - begin, kv_cache_bytes(prompt.cache))
        if piece := pieces.finish():
            yield piece

    def _cache(self) -> Any:
        """An empty cache for one text; None: what suits the model and its plan."""
        import torch

        from uniattn_pl.modeling.caches.h2o_cache import H2OCache

        if self._static is not None:
            with torch.inference_mode():  # in which it was filled
                self._static.reset()
            return self._static
        return None if self.h2o_retain_rate is None else H2OCache(self.model, self.h2o_retain_rate)


def generate(
    folder: Path,
    prompts: list[str],
    *,
    max_new_tokens: int = 128,
    temperature: float = 0.0,
    seed: int | None = None,
    instruction: bool = False,
    quantization: str | None = None,
    h2o_retain_rate: float | None = None,
    compiled: bool = False,
) -> list[str]:
    """Continue each prompt with the model in `folder`, one after the other.

    Args:
        folder: a transformers model folder with its tokenizer, converted or stock.
        prompts: texts to continue.
        max_new_tokens: tokens generated at most.
        temperature: 0 takes the likeliest token every time, above 0 draws from the whole distribution.
        seed: of what is drawn; None: another text every time.
        instruction: put each prompt into what the rows of the folder's run were put into: the paper's prompt, as an
            instruction without input, or the chat template, as the user's turn.
        quantization: None, or "8bit" or "4bit" weights.
        h2o_retain_rate: fraction of each prompt's cache that is kept while decoding; None: all of it.
        compiled: decode by a compiled step over a static cache (a CUDA graph on a card); not with H2O.

    Raises:
        UserError: a prompt without a token, or as `load_folder`.
    """
    from uniattn_pl.config.sections.data_section import PAPER
    from uniattn_pl.data.prompt_file import AskedPrompt
    from uniattn_pl.inference.chat_prompt import learned_template
    from uniattn_pl.inference.token_choice import Sampling
    from uniattn_pl.modeling.loading.pretrained import load_folder_tokenizer

    tokenizer = load_folder_tokenizer(folder)
    asked = [AskedPrompt.of(prompt, instruction=instruction) for prompt in prompts]
    encoded = encoded_prompts(tokenizer, asked, in_chat=learned_template(folder) != PAPER)
    room = max(map(len, encoded)) + max_new_tokens
    model = load_text_model(
        folder,
        tokenizer,
        quantization=quantization,
        h2o_retain_rate=h2o_retain_rate,
        compiled_tokens=room if compiled else None,
    )
    tell_positions(model.model, room - max_new_tokens, max_new_tokens)
    sampling = Sampling(temperature=temperature, seed=seed)
    return [
        "".join(model.stream(ids, sampling, max_new_tokens=max_new_tokens, number=number))
        for number, ids in enumerate(encoded)
    ]


def load_text_model(
    folder: Path,
    tokenizer: PreTrainedTokenizerBase,
    *,
    quantization: str | None = None,
    h2o_retain_rate: float | None = None,
    compiled_tokens: int | None = None,
) -> TextModel:
    """Load a model folder onto the fastest device here. Raises UserError as `load_folder` and `TextModel`."""
    from uniattn_pl.inference.device import fastest_device
    from uniattn_pl.modeling.loading.pretrained import load_folder

    model = load_folder(folder, quantization=quantization, device=fastest_device())
    return TextModel(model, tokenizer, h2o_retain_rate=h2o_retain_rate, compiled_tokens=compiled_tokens)


def encoded_prompts(
    tokenizer: PreTrainedTokenizerBase, prompts: Sequence[AskedPrompt], *, in_chat: bool = False
) -> list[list[int]]:
    """The ids of every prompt, as training makes them; what is odd about one is told once.

    Args:
        in_chat: prompts that a template is asked for are put into the model's chat template.

    Raises:
        UserError: a prompt without a token, or that the chat template refuses; there is no such template.
    """
    from uniattn_pl.data.prompt_ids import prompt_ids, special_text
    from uniattn_pl.display.notices import tell_once
    from uniattn_pl.inference.chat_prompt import chat_ids, check_chat

    special = special_text(tokenizer)
    encoded = []
    for prompt in prompts:
        found = special.search(prompt.shown)
        if found:
            tell_once(f"'{found[0]}' in a prompt is text, as in training rows, and not this model's special token.")
        if prompt.messages is not None and (in_chat or not prompt.text):
            check_chat(tokenizer, str(tokenizer.name_or_path))
            ids = chat_ids(tokenizer, prompt.messages)
        else:
            ids = prompt_ids(tokenizer, prompt.text)
        if not ids:
            raise UserError(
                f"--prompt {prompt.shown!r} has no token, and this model's tokenizer begins a text with none."
            )
        encoded.append(ids)
    return encoded


def tell_positions(model: PreTrainedModel, prompt_tokens: int, new_tokens: int) -> None:
    """Say so, once, if a text may get longer than what the model was trained on."""
    from uniattn_pl.display.notices import tell_once
    from uniattn_pl.families.encoder_decoder import has_encoder
    from uniattn_pl.families.positions import positions_of

    positions = positions_of(model.config)
    # an encoder counts the prompt's by itself
    longest = max(prompt_tokens, new_tokens) if has_encoder(model.config) else prompt_tokens + new_tokens
    if positions is not None and longest > positions:
        tell_once(
            f"{prompt_tokens} tokens of a prompt and up to {new_tokens} new ones are more than the {positions} "
            "positions of this model, which was not trained on what lies beyond."
        )
