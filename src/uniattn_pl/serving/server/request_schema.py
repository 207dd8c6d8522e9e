"""What clients may send, checked field by field: OpenAI's completions and chat completions, and `top_k` besides."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from uniattn_pl.errors import did_you_mean
from uniattn_pl.inference.token_choice import Sampling

MOST_CHOICES, MOST_LOGPROBS, MOST_STOPS = 128, 20, 16
LEAST_DRAWN = 1e-6  # a temperature far below makes infinities of logits
DEFAULT_COMPLETION_TOKENS = 16  # OpenAI's
# Fields of OpenAI's that change a text in a way that is not built here: taken where they change nothing.
NEUTRAL: dict[str, tuple[Any, ...]] = {
    "presence_penalty": (0,),
    "frequency_penalty": (0,),
    "logit_bias": ({},),
    "suffix": ("",),
    "tools": ([],),
    "functions": ([],),
    "response_format": ({"type": "text"},),
}
IGNORED = frozenset({"user", "metadata", "store"})  # bookkeeping at OpenAI


def _prompts(value: Any) -> list[str] | list[list[int]]:
    """A prompt in any of the four forms as a list of texts, or of token ids."""
    if isinstance(value, str):
        return [_unicode(value)]
    if isinstance(value, list) and value:
        if all(isinstance(item, str) for item in value):
            return [_unicode(item) for item in value]
        if all(map(_is_token, value)):
            return [value]
        if all(isinstance(item, list) and item and all(map(_is_token, item)) for item in value):
            return value
    raise ValueError("a prompt is a text, a list of texts, a list of token ids, or a list of such lists; none is empty")


def _is_token(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _stops(value: Any) -> list[str]:
    stops = [value] if isinstance(value, str) else value
    if not isinstance(stops, list) or not all(isinstance(stop, str) and stop for stop in stops):
        raise ValueError("stop is a text or a list of texts, none of them empty")
    if len(stops) > MOST_STOPS:
        raise ValueError(f"at most {MOST_STOPS} stop strings are taken, got {len(stops)}")
    return stops


def _temperature(value: float) -> float:
    if 0 < value < LEAST_DRAWN:
        raise ValueError(f"temperature is 0, or a number of at least {LEAST_DRAWN:g}")
    return value


def _content(value: Any) -> Any:
    """The text of a message that comes in parts."""
    if not isinstance(value, list):
        return value
    parts = [part for part in value if isinstance(part, dict) and part.get("type") == "text"]
    if len(parts) < len(value) or not all(isinstance(part.get("text"), str) for part in parts):
        raise ValueError(
            "content is a text, or a list of parts {'type': 'text', 'text': ...}; this model reads text only"
        )
    return "".join(part["text"] for part in parts)


def _unicode(value: str) -> str:
    if any("\ud800" <= character <= "\udfff" for character in value):
        raise ValueError("this is not text: it has half a character")
    return value


Text = Annotated[str, AfterValidator(_unicode)]


class Body(BaseModel):
    """A JSON object whose unknown fields are refused, and whose null and neutral fields are as if left out."""

    model_config = ConfigDict(extra="forbid", strict=True)

    @model_validator(mode="before")
    @classmethod
    def _without_neutral(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            raise ValueError("expected a JSON object")
        return {
            key: value
            for key, value in data.items()
            if value is not None and key not in IGNORED and value not in NEUTRAL.get(key, ())
        }


class StreamOptions(Body):
    """`include_usage`: a last event with the number of tokens."""

    include_usage: bool = False


class GenerationBody(Body):
    """What both kinds of requests have in common."""

    model: str | None = None
    temperature: Annotated[float, Field(ge=0, allow_inf_nan=False), AfterValidator(_temperature)] = 1.0
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    top_k: Annotated[int, Field(ge=-1)] = 0
    n: Annotated[int, Field(ge=1, le=MOST_CHOICES)] = 1
    seed: Annotated[int, Field(ge=-(2**63), lt=2**64)] | None = None
    stop: Annotated[list[Text], BeforeValidator(_stops)] = []
    stream: bool = False
    stream_options: StreamOptions = StreamOptions()

    @property
    def sampling(self) -> Sampling:
        """How its tokens are drawn."""
        return Sampling(self.temperature, max(self.top_k, 0), self.top_p, self.seed)

    @property
    def include_usage(self) -> bool:
        """Whether a stream ends with the number of tokens."""
        return self.stream_options.include_usage


class CompletionBody(GenerationBody):
    """`POST /v1/completions`."""

    prompt: Annotated[Sequence[Any], BeforeValidator(_prompts)]
    max_tokens: Annotated[int, Field(ge=0)] = DEFAULT_COMPLETION_TOKENS
    echo: bool = False
    logprobs: Annotated[int, Field(ge=0, le=MOST_LOGPROBS)] | None = None
    best_of: int | None = None

    @model_validator(mode="after")
    def _all_choices(self) -> CompletionBody:
        if self.best_of not in (None, self.n):
            raise ValueError("best_of other than n is not built into this server; leave it out")
        if self.max_tokens == 0 and not self.echo:
            raise ValueError("max_tokens is 0, which leaves nothing to answer without echo=true")
        return self


class Message(Body):
    """One message of a conversation."""

    role: Literal["system", "user", "assistant"]
    content: Annotated[Text, BeforeValidator(_content)]


class ChatBody(GenerationBody):
    """`POST /v1/chat/completions`."""

    messages: Annotated[list[Message], Field(min_length=1)]
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    logprobs: bool = False
    top_logprobs: Annotated[int, Field(ge=0, le=MOST_LOGPROBS)] = 0


def unknown_field(key: str, body: type[Body], where: str) -> str:
    """The message for a field that there is not."""
    inner: dict[str, type[Body]] = {"messages": Message, "stream_options": StreamOptions}
    if key in NEUTRAL:
        return f"'{key}' is not built into this server; leave it out"
    fields = inner.get(where, body).model_fields
    return f"unknown field '{key}'.{did_you_mean(key, fields)} Fields: {', '.join(sorted(fields))}"
