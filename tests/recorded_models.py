"""Models that answer from a script, and remember what they answered as a run's record does: a call that was made is
answered from memory, also after a crash."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace

from backplane.domain.model_calls import CallKey
from worker.llm.base import Message, ModelRequest, ModelResponse, Models, Spent, TextSink, ToolCall, Usage

Answer = ModelResponse | Exception


def says(text: str, *, tokens: tuple[int, int] = (100, 10), micro_usd: int | None = 0, seconds: float = 1.0) -> Answer:
    return ModelResponse(text, Usage(*tokens), micro_usd=micro_usd, seconds=seconds)


def calls(*requests: tuple[str, str], text: str = "", micro_usd: int | None = 0, seconds: float = 1.0) -> ModelResponse:
    """Of tools, each with its arguments as JSON text."""
    tool_calls = tuple(ToolCall(f"id{number}", *request) for number, request in enumerate(requests))
    return ModelResponse(text, Usage(100, 10), tool_calls, "tool_calls", micro_usd=micro_usd, seconds=seconds)


@dataclass
class RecordedModels(Models):
    """`script` is asked for what has no answer yet, and in the same order as such calls are made when it is a list.
    `crash` is called at each point at which a worker may be lost."""

    script: list[Answer] | Callable[[ModelRequest], Answer]
    record: dict[CallKey, ModelResponse] = field(default_factory=dict)
    asked: list[tuple[CallKey, ModelRequest, str | None]] = field(default_factory=list)
    crash: Callable[[str], None] = lambda where: None
    micro_usd_a_token: int | None = 0

    async def ask(
        self, request: ModelRequest, key: CallKey, *, model: str | None = None, on_text: TextSink | None = None
    ) -> ModelResponse:
        if key not in self.record:
            self.crash(f"before the call {key}")
            self.asked.append((key, request, model))
            answer = self.script.pop(0) if isinstance(self.script, list) else self.script(request)
            if isinstance(answer, Exception):
                raise answer
            self.record[key] = replace(answer, model="test/model")
            self.crash(f"after the call {key}")
        answer = self.record[key]
        if on_text and answer.text:
            on_text(answer.text)
        return answer

    def spent(self, step_id: str | None = None) -> Spent:
        answers = [answer for key, answer in self.record.items() if step_id is None or key.step == step_id]
        return Spent(
            len(answers),
            sum(answer.usage.input_tokens for answer in answers),
            sum(answer.usage.output_tokens for answer in answers),
            sum(answer.micro_usd or 0 for answer in answers),
        )

    def estimate_micro_usd(self, input_tokens: int, output_tokens: int, model: str | None = None) -> int | None:
        return None if self.micro_usd_a_token is None else (input_tokens + output_tokens) * self.micro_usd_a_token

    def prompts(self) -> list[str]:
        """The messages of each call, in one text."""
        return [_text(request.messages) for _, request, _ in self.asked]


def _text(messages: "list[Message] | tuple[Message, ...] | object") -> str:
    assert isinstance(messages, list | tuple)
    return "\n".join(message.content for message in messages)
