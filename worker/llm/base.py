"""The port of model servers: messages in, text or tool calls out, with what it took.

An adapter speaks one protocol (Ollama, OpenAI, Anthropic) and nothing else: it does not wait for its turn, try again,
count money or write anything down. The gateway does all that, so that it is the same for every server.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from backplane.domain.model_calls import CallKey
from backplane.errors import ModelError


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A tool call that a model asks for. `arguments` is the JSON text as it came: it may be anything."""

    id: str
    name: str
    arguments: str


@dataclass(frozen=True, slots=True)
class Message:
    """`tool_calls` only of the assistant; `tool_call_id` only of the role tool: whose result `content` is."""

    role: Literal["system", "user", "assistant", "tool"]
    content: str
    tool_calls: tuple[ToolCall, ...] = ()
    tool_call_id: str | None = None


@dataclass(frozen=True, slots=True)
class ToolSchema:
    """`parameters` is a JSON schema of an object."""

    name: str
    description: str
    parameters: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class ModelRequest:
    """`schema`: the JSON schema that the answer's text must have. `temperature` and `seed`: the server's when None, or
    where its protocol does not have them. `max_output_tokens` bounds the answer, and with it what is reserved for
    it."""

    messages: Sequence[Message]
    max_output_tokens: int
    tools: Sequence[ToolSchema] = ()
    schema: Mapping[str, Any] | None = None
    temperature: float | None = None
    seed: int | None = None


@dataclass(frozen=True, slots=True)
class Usage:
    """In tokens, as the server counts them; estimated by the adapter where it does not (`is_estimate`)."""

    input_tokens: int
    output_tokens: int
    is_estimate: bool = False


@dataclass(frozen=True, slots=True)
class ModelResponse:
    """`finish`: `length` is an answer that was cut at its most tokens. What follows it is filled in by `Models.ask`,
    from the record where there is one, so that it is the same for a resumed run: the model that answered
    (SERVER/NAME), what that cost (None: it has no price), and how long it took, its waiting left out."""

    text: str
    usage: Usage
    tool_calls: tuple[ToolCall, ...] = ()
    finish: Literal["stop", "length", "tool_calls"] = "stop"
    model: str = ""
    micro_usd: int | None = None
    seconds: float = 0.0


class ModelUnavailable(ModelError):
    """The server does not answer, breaks off, answers 5xx, or is too busy: the same call may be made again.
    `retry_after` is in seconds, where the server says. `usage`: what it may charge for all the same, estimated."""

    code: ClassVar[str] = "model_unavailable"
    retryable: ClassVar[bool] = True

    def __init__(self, message: str, *, retry_after: float | None = None, usage: Usage | None = None) -> None:
        super().__init__(message)
        self.retry_after = retry_after
        self.usage = usage


class ModelTimeout(ModelUnavailable):
    """It took longer than a call may, or sent nothing for too long."""

    code = "model_timeout"


class ModelRateLimited(ModelUnavailable):
    """429."""

    code = "model_rate_limited"


class ModelRefused(ModelError):
    """The server understood the call and refused it (400, 401, 403, 404, 422): asking again gives the same answer."""

    code = "model_refused"


class ModelContextTooLong(ModelRefused):
    """The prompt is longer than the model takes, or than MODEL_MAX_INPUT_BYTES."""

    code = "model_context_too_long"


class ModelOutputInvalid(ModelError):
    """The answer is not what the protocol promises, or does not fit the schema. `usage`: what the server may charge for
    it all the same, estimated."""

    code = "model_output_invalid"
    retryable = True

    def __init__(self, message: str, *, usage: Usage | None = None) -> None:
        super().__init__(message)
        self.usage = usage


class ModelOutputTooLong(ModelOutputInvalid):
    """It is over `fixed.MODEL_MAX_OUTPUT_BYTES`: the server does not keep to `max_output_tokens`, and was cut off."""

    retryable = False


TextSink = Callable[[str], None]
"""Takes an answer's text as it comes. Returns at once."""


SizeSink = Callable[[int], None]
"""Takes how many bytes an answer has by now, also of what is not text: thoughts and calls of tools."""


@dataclass(frozen=True, slots=True)
class CallLimits:
    """In seconds and bytes. `silence_seconds`: between two pieces of an answer."""

    timeout_seconds: float
    silence_seconds: float
    max_output_bytes: int


class ModelServer(ABC):
    """One server. Cancelling a call ends it at the server as well, by closing its connection."""

    name: str

    @abstractmethod
    async def complete(
        self,
        model: str,
        request: ModelRequest,
        limits: CallLimits,
        on_text: TextSink,
        on_size: SizeSink | None = None,
    ) -> ModelResponse:
        """Raises the errors above."""

    @abstractmethod
    async def embed(self, model: str, texts: Sequence[str], limits: CallLimits) -> tuple[list[list[float]], Usage]:
        """One vector for each text. Raises the errors above; ModelRefused where the server knows no embeddings."""

    @abstractmethod
    async def models(self) -> list[str]:
        """The names of the models that it has. Raises the errors above."""

    @abstractmethod
    async def close(self) -> None: ...


class Models(ABC):
    """The models as one run may use them: what planners and agents' steps are given."""

    @abstractmethod
    async def ask(
        self, request: ModelRequest, key: CallKey, *, model: str | None = None, on_text: TextSink | None = None
    ) -> ModelResponse:
        """The answer to this call: the recorded one where the call was made before, else that of the first model that
        answers. The call waits for its turn, is paid from the budgets, and is recorded with the run.

        Raises ModelError, BudgetExhausted, Superseded."""

    @abstractmethod
    def spent(self, step_id: str | None = None) -> "Spent":
        """What this run has spent so far, or the calls of one step."""

    @abstractmethod
    def estimate_micro_usd(self, input_tokens: int, output_tokens: int, model: str | None = None) -> int | None:
        """The price of so many tokens, in millionths of a dollar; None: the model has no price."""


@dataclass(frozen=True, slots=True)
class Spent:
    """`micro_usd` is None when a call of a model without a price is among them; `seconds` of calls alone."""

    calls: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    micro_usd: int | None = 0
    seconds: float = field(default=0.0, compare=False)
