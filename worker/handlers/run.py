"""What a handler is given: the run, by which everything is done that must not happen twice.

Each method makes an effect and numbers it; to await it carries it out. An effect that the journal has gives its
recorded result and is not carried out again. How that is done is `worker.handlers.driver`'s.
"""

import asyncio
from collections.abc import Awaitable, Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import Any, Generic, Protocol, TypeVar, overload

from pydantic import BaseModel

from backplane.domain.plans import StepRetry
from backplane.domain.runs import RunError
from worker.handlers.registry import Handler
from worker.handlers.values import arguments_of

Value = TypeVar("Value")
Other = TypeVar("Other")
Model = TypeVar("Model", bound=BaseModel)

EFFECTS = "run."
STEP, APPROVE, MODEL, SLEEP, START, RESULT, WAIT_EVENT = (
    f"{EFFECTS}{name}" for name in ("step", "approve", "model", "sleep", "start", "result", "wait_event")
)
"""Kinds of effects, as the journal names them in place of a tool. No tool has a dot in its name."""


class StepError(Exception):
    """An effect failed. A handler may catch it and go on; the same is raised again when the code is run again. `code`
    and `message` are those of the step's error, `step` is the step's id, `output` what its tool printed."""

    def __init__(self, error: RunError, output: str = "") -> None:
        super().__init__(error.message)
        self.error = error
        self.output = output

    @property
    def code(self) -> str:
        return self.error.code

    @property
    def message(self) -> str:
        return self.error.message

    @property
    def step(self) -> str | None:
        return self.error.step


@dataclass(frozen=True, slots=True)
class ToolOutput:
    """What a tool gave: the text that it wrote (cut at STEP_RESULT_MAX_BYTES), and the paths that it changed."""

    output: str
    files: tuple[str, ...] = ()
    exit_code: int = 0


@dataclass(frozen=True, slots=True)
class Options:
    """How an effect is carried out; what is not set is as for a step of a plan."""

    repeatable: bool = False
    retry: StepRetry = field(default_factory=StepRetry)
    timeout_seconds: int | None = None
    approval: bool = False


@dataclass(frozen=True, slots=True)
class EffectRequest:
    """What an effect asks for: of this kind (a tool's name, or one of those above), with these arguments, which are
    JSON. `read` makes the value of the step's result. `function` and `args`: what this process has of it, such as the
    function that is to be called. `compared`: what is compared with the journal in place of the arguments, where these
    may change while the run goes on."""

    kind: str
    name: str
    arguments: dict[str, Any]
    read: Callable[[Mapping[str, Any]], Any]
    function: Callable[..., Any] | None = None
    args: tuple[Any, ...] = ()
    options: Options = field(default_factory=Options)
    compared: Any = None


class Driver(Protocol):
    """Carries the effects of one run out (`worker.handlers.driver`)."""

    @property
    def is_replaying(self) -> bool: ...

    def numbered(self) -> int:
        """The number of the next effect."""
        ...

    def begin(self, ordinal: int, request: EffectRequest) -> "asyncio.Future[Any]": ...

    def log(self, line: str) -> None: ...

    def progress(self, done: float, total: float, text: str) -> None: ...


class HandlerEffect(Generic[Value]):
    """Something that is done once. Await it, or give it to `run.gather`; its number is that of its making."""

    def __init__(self, driver: Driver, request: EffectRequest) -> None:
        self._driver = driver
        self._request = request
        self._ordinal = driver.numbered()
        self._begun: asyncio.Future[Any] | None = None

    @property
    def kind(self) -> str:
        """The tool that it is carried out by."""
        return self._request.kind

    @property
    def ordinal(self) -> int:
        return self._ordinal

    def options(
        self,
        *,
        repeatable: bool = False,
        attempts: int = 1,
        pause_seconds: float = 1.0,
        timeout_seconds: int | None = None,
        approval: bool = False,
    ) -> "HandlerEffect[Value]":
        """How it is carried out. `repeatable`: done twice it does no harm, so that nobody is asked when a worker was
        lost in the middle of it. `attempts`: tries in all, with pauses that double. `approval`: a person is asked
        first."""
        retry = StepRetry(max_attempts=attempts, backoff_seconds=pause_seconds)
        self._request = replace(self._request, options=Options(repeatable, retry, timeout_seconds, approval))
        return self

    def __await__(self) -> Generator[Any, None, Value]:
        return self._value().__await__()

    async def _value(self) -> Value:
        if self._begun is None:
            self._begun = self._driver.begin(self._ordinal, self._request)
        # Whoever stops waiting for it does not undo it.
        found: Value = await asyncio.shield(self._begun)
        return found


class Start(HandlerEffect["Child"]):
    """The start of a run. `result` awaits its end too."""

    def within(self, seconds: float) -> "Start":
        """Cancel the run when it is not over so many seconds after its start, also while it waits in a queue. Its
        result is a StepError of the code `child_timeout` then. To be called before the start is awaited."""
        self._request = replace(self._request, arguments={**self._request.arguments, "timeout": seconds})
        return self

    def result(self) -> "HandlerEffect[Any]":
        """What the run's handler returned, or the summary of a run without a handler. The handler waits for it without
        a worker. Raises StepError when the run does not end well."""
        return _result_of(self._driver, self._ordinal, self)


@dataclass(frozen=True, slots=True)
class Child:
    """A run that this one has started."""

    run_id: str
    _start: Start = field(repr=False, compare=False)

    def result(self) -> HandlerEffect[Any]:
        """As `Start.result`."""
        return self._start.result()


def _result_of(driver: Driver, started: int, start: Start) -> HandlerEffect[Any]:
    async def run_id() -> str:
        return (await start).run_id

    return HandlerEffect(driver, EffectRequest(RESULT, f"result-of-{started}", {"of": started}, value_of, run_id))


def value_of(result: Mapping[str, Any]) -> Any:
    return result.get("value")


def _output_of(result: Mapping[str, Any]) -> ToolOutput:
    return ToolOutput(
        str(result.get("output", "")), tuple(result.get("files_changed", ())), int(result.get("exit_code") or 0)
    )


class JournalledCode:
    """What code may ask for. `id`: the run's. Everything here but `log` and `progress` is journalled."""

    def __init__(self, driver: Driver, id: str, default_model: str | None = None) -> None:
        self.id = id
        self._driver = driver
        self._default_model = default_model

    @property
    def is_replaying(self) -> bool:
        """Whether the code is run again over effects that were done before."""
        return self._driver.is_replaying

    def step(self, name: str, function: Callable[..., Any], /, *args: Any) -> HandlerEffect[Any]:
        """Call the function, once. It may be `async`; any other is called in a thread of its own. Its result comes back
        as JSON. What it raises is a StepError of the code `function_failed`. Raises TypeError for what is no function,
        such as the result of one that was called already."""
        if not callable(function):
            raise TypeError(
                f"run.step({name!r}, …) takes a function and then its arguments, no {type(function).__name__}"
            )
        arguments = {"args": arguments_of(list(args))}
        return HandlerEffect(self._driver, EffectRequest(STEP, name, arguments, value_of, function, args))

    def tool(self, name: str, /, **arguments: Any) -> HandlerEffect[ToolOutput]:
        """Carry a tool out, as a step of a plan would, with approvals and limits as they are there. Raises StepError
        where it fails, or is not there."""
        if name.startswith(EFFECTS):
            raise ValueError(f"{name!r} is no tool")
        return HandlerEffect(self._driver, EffectRequest(name, name, arguments_of(arguments), _output_of))

    @overload
    def model(self, prompt: str, /, *, system: str = ..., model: str | None = ...) -> HandlerEffect[str]: ...

    @overload
    def model(
        self, prompt: str, /, *, schema: type[Model], system: str = ..., model: str | None = ...
    ) -> HandlerEffect[Model]: ...

    def model(
        self, prompt: str, /, *, schema: type[BaseModel] | None = None, system: str = "", model: str | None = None
    ) -> HandlerEffect[Any]:
        """Ask a model: its text, or with `schema` an object of that class. `model`: SERVER/NAME in place of the
        run's."""
        arguments: dict[str, Any] = {"prompt": prompt, "system": system, "model": model or self._default_model}
        if schema is None:
            return HandlerEffect(
                self._driver, EffectRequest(MODEL, "model", arguments, lambda result: str(value_of(result) or ""))
            )
        arguments["schema"] = schema.model_json_schema()
        check = schema.model_validate
        return HandlerEffect(
            self._driver, EffectRequest(MODEL, "model", arguments, lambda result: check(value_of(result)), check)
        )

    def approve(self, text: str, /) -> HandlerEffect[bool]:
        """Ask the run's user to approve something; whether they did. The run waits for the answer without a worker."""
        return HandlerEffect(
            self._driver, EffectRequest(APPROVE, "approve", {"text": text}, lambda result: bool(value_of(result)))
        )

    def ask_person(self, text: str, /, choices: Sequence[str] = ()) -> HandlerEffect[str]:
        """Ask the run's user for words. Raises StepError of the code `rejected` where they refuse."""
        arguments = {"question": text, "choices": list(choices)}
        return HandlerEffect(
            self._driver,
            EffectRequest("ask_person", "ask", arguments, lambda result: str(result.get("output", "")).rstrip("\n")),
        )

    def sleep(
        self, seconds: float = 0, *, minutes: float = 0, hours: float = 0, days: float = 0
    ) -> HandlerEffect[None]:
        """Go on after that time. The run waits in the queue meanwhile, without a worker."""
        length = timedelta(seconds=seconds, minutes=minutes, hours=hours, days=days).total_seconds()
        return HandlerEffect(self._driver, EffectRequest(SLEEP, "sleep", {"seconds": max(length, 0.0)}, lambda _: None))

    def wait_event(
        self, type: str, /, match: Mapping[str, Any] | None = None, *, timeout: float | None = None
    ) -> HandlerEffect[dict[str, Any] | None]:
        """The first event of the user's from now on that is of this type (`order.*`: all below it) and has what `match`
        names (docs/events.md), as a JSON object; None after `timeout` seconds without one. The run waits without a
        worker."""
        arguments = {"type": type, "match": arguments_of(match), "timeout": timeout}
        return HandlerEffect(self._driver, EffectRequest(WAIT_EVENT, "wait-event", arguments, value_of))

    def start(
        self,
        handler: "str | Handler | None" = None,
        input: Any = None,
        /,
        *,
        prompt: str | None = None,
        plan: Mapping[str, Any] | None = None,
        timeout_seconds: int | None = None,
        max_retries: int | None = None,
        queue: str | None = None,
    ) -> Start:
        """Start another run: by a handler with its input, or by a prompt, with a plan or without. It is started once.
        Its rights, its model and its limits are those of this run, where no other ones are given."""
        named = handler.name if isinstance(handler, Handler) else handler
        arguments = {"handler": named, "input": arguments_of(input), "prompt": prompt, "plan": plan}
        arguments |= {"timeout_seconds": timeout_seconds, "max_retries": max_retries, "queue": queue}
        given = {name: value for name, value in arguments.items() if value is not None}
        start: Start

        def child(result: Mapping[str, Any]) -> Child:
            return Child(str((value_of(result) or {}).get("run_id")), start)

        start = Start(self._driver, EffectRequest(START, named or "prompt", given, child))
        return start

    async def gather(self, *effects: Awaitable[Any]) -> list[Any]:
        """Carry these effects out at once; their values in the order in which they are given here. All come to their
        end before the error of the first that failed is raised."""
        ended = await asyncio.gather(*effects, return_exceptions=True)
        for end in ended:
            if isinstance(end, BaseException):
                raise end
        return list(ended)

    def log(self, line: str) -> None:
        """Publish a line. It is not published again when the code is run again over what was done."""
        self._driver.log(line)

    def progress(self, done: float, total: float, text: str = "") -> None:
        """Tell those who watch how far it is. It is kept nowhere."""
        self._driver.progress(done, total, text)


class HandlerRun(JournalledCode):
    """The run that a handler carries out."""

    def ask(self, text: str, /, choices: Sequence[str] = ()) -> HandlerEffect[str]:
        """As `ask_person`."""
        return self.ask_person(text, choices)
