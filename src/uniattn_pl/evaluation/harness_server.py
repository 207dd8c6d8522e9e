"""A model behind an OpenAI-compatible server, scored as one in this process: ids go in, log-probabilities come out."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import aiohttp
import requests
from lm_eval.models.openai_completions import LocalCompletionsAPI

from uniattn_pl.data.prompt_ids import prefix_ids, text_ids
from uniattn_pl.errors import RunFailure
from uniattn_pl.evaluation.harness_prompts import OwnPrompts
from uniattn_pl.evaluation.open_server import OpenServer

DEFAULT_LENGTH = 2048  # tokens, of a server that does not say how many it takes


class ServedLM(OwnPrompts, LocalCompletionsAPI):
    """The harness's local-completions with this package's prompts; see `harness.ProductHFLM`.

    `cut` counts prompts that lost their beginning.
    """

    def __init__(self, server: OpenServer, tokenizer: Any, *, concurrent: int) -> None:
        super().__init__(
            base_url=f"{server.url}/v1/completions",
            model=server.model,
            tokenizer_backend=None,  # would be loaded by a name; this one is here
            num_concurrent=concurrent,
            add_bos_token=True,  # before prompts to answer: what `tok_encode` puts there
            max_length=server.max_length or DEFAULT_LENGTH,
            header={} if server.key is None else {"Authorization": f"Bearer {server.key}"},
        )
        self.tokenizer, self.tokenizer_backend, self.tokenized_requests = tokenizer, "huggingface", True
        self.server, self.prefix, self.cut = server, prefix_ids(tokenizer), 0

    @property
    def tokenizer_name(self) -> str:
        return str(self.tokenizer.name_or_path)

    def tok_encode(
        self,
        string: Any,
        left_truncate_len: int | None = None,
        add_special_tokens: bool = True,
        truncation: bool = False,
        **kwargs: Any,
    ) -> Any:
        """The ids of a prompt, or of several; of bare text where the harness asks for no special tokens."""
        texts = [string] if isinstance(string, str) else list(string)
        begins = self.prefix if add_special_tokens else []
        encoded = [begins + ids for ids in text_ids(self.tokenizer, texts)]
        if left_truncate_len:
            self.cut += sum(len(ids) > left_truncate_len for ids in encoded)
            encoded = [ids[-left_truncate_len:] for ids in encoded]
        return encoded[0] if isinstance(string, str) else encoded

    def batch_loglikelihood_requests(self, chunks: Any) -> Any:
        """As the harness; counts what is cut."""
        listed = [list(chunk) for chunk in chunks]
        self.cut += sum(len(before) + len(after) > self.max_length for chunk in listed for _, before, after in chunk)
        return super().batch_loglikelihood_requests(listed)

    def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
        """As the harness. Raises UserError as `OwnPrompts`, RunFailure where the server does not go on answering."""
        with self._answers_expected():
            return super().generate_until(requests, disable_tqdm)

    def _loglikelihood_tokens(self, requests: list[Any], **options: Any) -> list[tuple[float, bool]]:
        with self._answers_expected():
            scores: list[tuple[float, bool]] = super()._loglikelihood_tokens(requests, **options)
            return scores

    @contextmanager
    def _answers_expected(self) -> Iterator[None]:
        """Say in one line that the server stopped answering, or answers something else, behind all retries."""
        try:
            yield
        except (requests.RequestException, aiohttp.ClientError, OSError, ValueError, LookupError, TypeError) as error:
            first = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise RunFailure(
                f"the server at {self.server.url} does not go on answering ({first}); nothing it said is kept."
            ) from error

    @property
    def _most_new_tokens(self) -> int:
        return int(self._max_gen_toks)

    def likelihoods(self, pairs: list[tuple[list[int], list[int]]]) -> list[tuple[float, bool]]:
        """Log-probability (nats, summed) of the second ids behind the first, and whether greedy decoding gives them."""
        scores: list[tuple[float, bool]] = self._loglikelihood_tokens([(None, *pair) for pair in pairs])
        return scores
