"""What this package's models of lm-evaluation-harness have in common, in this process and behind a server."""

from __future__ import annotations

from typing import Any

from lm_eval.models.utils import normalize_gen_kwargs

from uniattn_pl.errors import UserError


class OwnPrompts:
    """Prompts that begin as in training, once; the harness's model class is the other base, behind this one.

    Attributes:
        prefix: the ids before every prompt.
        max_length: tokens that a text may have.
    """

    prefix: list[int]
    max_length: int

    def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = False) -> list[float]:
        """Whole texts, before which the harness puts the token that begins one itself."""
        own: Any = super()
        begins = self.prefix
        self.prefix = [] if begins == [self.prefix_token_id] else begins  # type: ignore[attr-defined]
        try:
            likelihoods: list[float] = own.loglikelihood_rolling(requests, disable_tqdm)
        finally:
            self.prefix = begins
        return likelihoods

    def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
        """As the harness. Raises UserError where a task asks for more new tokens than a text may have."""
        own: Any = super()
        most = self._most_new_tokens
        asked = max(normalize_gen_kwargs(request.args[1], most)["max_gen_toks"] for request in requests)
        if asked >= self.max_length:
            raise UserError(
                f"evaluation.tasks: '{requests[0].task_name}' has {asked} tokens generated, which leaves no room for a "
                f"prompt in the {self.max_length} positions of the model."
            )
        texts: list[str] = own.generate_until(requests, disable_tqdm)
        return texts

    @property
    def _most_new_tokens(self) -> int:
        """The new tokens of a task that asks for no number."""
        raise NotImplementedError
