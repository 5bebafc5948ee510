"""OpenAI's chat API: what a request may say, and the shape of answers and errors."""

import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from dialogkit.dialog import Message, Role
from dialogkit.errors import did_you_mean
from dialogkit.text import without_surrogates

MOST_CHOICES, MOST_STOPS, MOST_MESSAGES = 8, 4, 1000
IGNORED = ("user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key")
"""Parameters that change no reply."""
ROLES: dict[str, Role] = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}


class ApiError(Exception):
    """An answer that is an error.

    Attributes:
        status: of HTTP.
        body: the error in OpenAI's shape.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        code: str,
        param: str | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        kinds = {401: "authentication_error", 429: "rate_limit_error"}
        kind = kinds.get(status, "invalid_request_error" if status < 500 else "server_error")
        self.status, self.headers = status, headers or {}
        self.body = {"error": {"message": message, "type": kind, "param": param, "code": code}}


def _text_of(content: object) -> object:
    """Return the text of a content that is a list of parts of text; anything else as it is."""
    if not isinstance(content, list):
        return content
    if not all(isinstance(part, dict) and part.get("type") == "text" for part in content):
        raise ValueError("only parts of text are understood")
    texts = [part.get("text") for part in content]
    if not all(isinstance(text, str) for text in texts):
        raise ValueError("a part of text has no text")
    return "".join(texts)


def _one_or_more(stop: object) -> object:
    return [stop] if isinstance(stop, str) else stop


def _without_nothing(value: object) -> object:
    """Return an object without the keys that say nothing, as clients send back what a server sent."""
    if not isinstance(value, dict):
        return value
    return {key: given for key, given in value.items() if given is not None and given != []}


class _Part(BaseModel):
    """A part of a request; unknown keys are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class Turn(_Part):
    """One message."""

    role: Literal["system", "developer", "user", "assistant"]
    content: Annotated[str, BeforeValidator(_text_of)]


class StreamOptions(_Part):
    """What a stream contains."""

    include_usage: bool = False
    include_obfuscation: bool = False


class ResponseFormat(_Part):
    """How a reply is written."""

    type: Literal["text"]


class ChatRequest(_Part):
    """The body of a request for a reply."""

    model: str | None = None
    messages: list[Annotated[Turn, BeforeValidator(_without_nothing)]] = Field(
        min_length=1, max_length=MOST_MESSAGES
    )
    stream: bool = False
    stream_options: StreamOptions = StreamOptions()
    n: int = Field(1, ge=1, le=MOST_CHOICES)
    stop: Annotated[list[Annotated[str, Field(min_length=1, max_length=256)]], BeforeValidator(_one_or_more)] = (
        Field(default_factory=list, max_length=MOST_STOPS)
    )
    max_tokens: int | None = Field(None, ge=1, le=1_000_000)
    max_completion_tokens: int | None = Field(None, ge=1, le=1_000_000)
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, gt=0, le=1)
    top_k: int | None = Field(None, ge=0, le=1_000_000)
    repetition_penalty: float | None = Field(None, ge=1, le=10)
    seed: int | None = Field(None, ge=-(2**63), lt=2**64)
    frequency_penalty: Literal[0] = 0
    presence_penalty: Literal[0] = 0
    logprobs: Literal[False] = False
    response_format: ResponseFormat = ResponseFormat(type="text")
    truncation: Literal["disabled", "auto"] = "disabled"

    def dialog(self) -> list[Message]:
        """Return the messages."""
        return [Message(ROLES[turn.role], without_surrogates(turn.content)) for turn in self.messages]

    def sampling(self) -> dict[str, Any]:
        """Return the sampling settings that the request gives."""
        given = {name: getattr(self, name) for name in ("temperature", "top_p", "top_k", "repetition_penalty")}
        given["max_new_tokens"] = self.max_completion_tokens or self.max_tokens
        given["seed"] = None if self.seed is None else self.seed % 2**32
        return {name: value for name, value in given.items() if value is not None}


def read_request(body: object) -> ChatRequest:
    """Return a request for a reply. Raises: ApiError that names the parameter."""
    if not isinstance(body, dict):
        raise ApiError(400, "the body is not a JSON object", code="invalid_json")
    given = {name: value for name, value in body.items() if value is not None and name not in IGNORED}
    for name in ("frequency_penalty", "presence_penalty"):
        if given.get(name) == 0:  # also 0.0
            del given[name]
    for name in ("tools", "logit_bias", "functions"):
        if name in given and not given[name]:
            del given[name]
    try:
        request = ChatRequest.model_validate(given)
    except ValidationError as error:
        raise _refused(error) from None
    if request.messages[-1].role != "user":
        role = request.messages[-1].role
        raise ApiError(
            400, f"the last message is from {role!r}, not from 'user'", code="invalid_value", param="messages"
        )
    if not request.messages[-1].content.strip():
        raise ApiError(400, "the last message is empty", code="invalid_value", param="messages")
    return request


def _refused(error: ValidationError) -> ApiError:
    first = error.errors(include_url=False, include_context=False)[0]
    place = ".".join(map(str, first["loc"]))
    name = str(first["loc"][0]) if first["loc"] else ""
    if first["type"] == "extra_forbidden":
        nearest = did_you_mean(place, ChatRequest.model_fields) if place == name else ""
        text = f"the parameter {place!r} is not supported{nearest}"
        return ApiError(400, text, code="unsupported_parameter", param=place)
    if first["type"] == "missing":
        return ApiError(400, f"the parameter {place!r} is missing", code="missing_required_parameter", param=place)
    if first["type"] == "too_short":
        return ApiError(400, f"{place}: the list is empty", code="invalid_value", param=name)
    problem = first["msg"].removeprefix("Value error, ")
    shown = repr(first["input"])
    shown = shown if len(shown) <= 80 else f"{shown[:77]}..."
    return ApiError(
        400, f"{place}: {problem[:1].lower()}{problem[1:]}, not {shown}", code="invalid_value", param=name
    )


@dataclass(frozen=True)
class Usage:
    """Tokens of a prompt and of all replies to it."""

    prompt_tokens: int
    reused: int
    """Tokens of the prompt that had been read before."""
    completion_tokens: int

    def body(self) -> dict[str, Any]:
        """Return it as the API writes it."""
        total = self.prompt_tokens + self.completion_tokens
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "total_tokens": total,
            "prompt_tokens_details": {"cached_tokens": self.reused},
        }


class Answer:
    """The bodies of one answer, whole or in chunks.

    Besides OpenAI's keys each has the `seed` of the first choice, and `left_out`, the messages that did not fit.
    """

    def __init__(self, model: str, *, seed: int, left_out: int) -> None:
        self._head = {"id": f"chatcmpl-{uuid.uuid4().hex}", "created": int(time.time()), "model": model}
        self._own = {"seed": seed, "left_out": left_out}

    def whole(self, texts: Sequence[str], reasons: Sequence[str], usage: Usage) -> dict[str, Any]:
        """Return the answer with all choices."""
        choices = [
            {
                "index": index,
                "message": {"role": "assistant", "content": text, "refusal": None},
                "logprobs": None,
                "finish_reason": reason,
            }
            for index, (text, reason) in enumerate(zip(texts, reasons, strict=True))
        ]
        return {
            **self._head,
            "object": "chat.completion",
            "choices": choices,
            "usage": usage.body(),
            **self._own,
        }

    def chunk(self, index: int, delta: dict[str, str], reason: str | None = None) -> dict[str, Any]:
        """Return a piece of one choice."""
        choice = {"index": index, "delta": delta, "logprobs": None, "finish_reason": reason}
        return {**self._head, "object": "chat.completion.chunk", "choices": [choice], **self._own}

    def usage_chunk(self, usage: Usage) -> dict[str, Any]:
        """Return the last chunk of a stream that reports its usage."""
        return {**self._head, "object": "chat.completion.chunk", "choices": [], "usage": usage.body(), **self._own}
