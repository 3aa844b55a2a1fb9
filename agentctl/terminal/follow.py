"""Following a run: its events as a person or a program reads them, until its end.

A terminal gets finished lines above one live line, which names the running step and how long it has taken; a pipe gets
the same finished lines; `--json` gets each event as it came. Times are counted from the run's first event shown.
"""

import asyncio
import time
from contextlib import AbstractContextManager, aclosing, nullcontext
from datetime import datetime
from types import TracebackType
from typing import Any, Self

from rich.console import Console, ConsoleOptions, RenderResult
from rich.live import Live
from rich.spinner import Spinner
from rich.text import Text

from agentctl.api.api_error import JsonObject
from agentctl.api.client import Client
from agentctl.exit_codes import CommandError, ExitCode, exit_code_of_status
from agentctl.terminal.advice import IN_A_RUN, advice
from agentctl.terminal.output import STATUS_STYLES, Output, duration, program, some_of
from agentctl.terminal.questions import answer_in_words, asked_in_words, texts_in_lines
from backplane.domain.events import EventType
from backplane.domain.runs import FINAL, IN_MAILBOX, WAITS_FOR_EVENT, WAITS_FOR_RUN, RunStatus
from backplane.process.terminal_text import printable

GOING_ON = {RunStatus.CREATED, RunStatus.QUEUED, RunStatus.RUNNING}
NARROW_COLUMNS = 60
LABEL_CHARS, LABEL_CHARS_NARROW = 20, 10
"""The width of a step's name before its lines, in cells."""
_TEXT_LEAST = 10
"""Where there is room for fewer characters, what a model writes at this moment is not shown."""
GOES_ON_BY_ITSELF = frozenset({WAITS_FOR_RUN, WAITS_FOR_EVENT, IN_MAILBOX})
"""The codes of what a run waits for that is no person."""
UNCERTAIN = "step_uncertain"
"""The code of what a run waits for that has a step which may have happened."""
_ANSWERS = {
    "approval_required": "approve {0}, or reject {0}",
    "answer_required": "answer {0} TEXT",
    "budget_exhausted": "approve {0} --add-tokens N (or --add-usd, --add-steps, --add-seconds), or reject {0}",
}
"""The command by which a waiting run goes on, by the code of what it waits for."""


class FollowedRun:
    """Prints events as they come. Use as a context manager, so that the terminal is left as it was; again, where
    somebody has typed in between."""

    def __init__(self, output: Output) -> None:
        self._output = output
        self._began_at: datetime | None = None
        self._steps = OpenSteps()
        self._live_line = LiveLine()
        self._live: AbstractContextManager[object] = (
            Live(self._live_line, console=output.out, transient=True, refresh_per_second=10)
            if output.live
            else nullcontext()
        )

    def __enter__(self) -> Self:
        self._live.__enter__()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._live.__exit__(kind, error, at)

    def show(self, event: JsonObject) -> None:
        if event["type"] == EventType.PROGRESS:
            # It is over in a moment, so it is for people who look, and for no file.
            self._live_line.follow(event["type"], event["data"])
            return
        if self._output.json:
            self._output.json_line(event)
            return
        at = datetime.fromisoformat(event["at"])
        self._began_at = self._began_at or at
        elapsed = max(0.0, (at - self._began_at).total_seconds())
        self._live_line.follow(event["type"], event["data"])
        data = event["data"]
        label = self._steps.label(event["type"], data, narrow=self._output.out.width < NARROW_COLUMNS)
        for line in describe(event["type"], {**data, "label": label} if label else data):
            self._output.line(Text.assemble((f"{elapsed:7.2f}s  ", "dim"), line))


class OpenSteps:
    """Which steps are under way, as far as events have said. Where lines of several may be mixed, each carries the name
    of its step; where one step alone writes below its own heading, none does."""

    def __init__(self) -> None:
        self._titles: dict[str, str] = {}
        self._shown = ""
        """The step that the last line which names one is about."""

    def label(self, kind: str, data: dict[str, Any], *, narrow: bool) -> str:
        """What stands before this event's line; empty: nothing."""
        step = str(data.get("step") or "")
        if kind == "step":
            if data.get("status") == "started":
                self._titles[step] = str(data.get("title") or step)
            else:
                self._titles.pop(step, None)
            self._shown = step
            return ""
        if kind != "log" or not step:
            return ""
        if self._shown == step and not self._overlap(step):
            return ""
        self._shown = step
        return _cut_middle(self._name(step), LABEL_CHARS_NARROW if narrow else LABEL_CHARS)

    def _overlap(self, step: str) -> bool:
        """Whether another step may write between this one's lines; not the steps above it, which wait for it."""
        return any(other != step and not step.startswith(f"{other}/") for other in self._titles)

    def _name(self, step: str) -> str:
        """Its title, as its heading has it, unless another one under way has the same."""
        title = self._titles.get(step, step)
        return step if list(self._titles.values()).count(title) > 1 else title


def _cut_middle(text: str, most: int) -> str:
    """Steps that are alike often differ in their last characters."""
    tail = most // 3
    return text if len(text) <= most else f"{text[: most - tail - 1]}…{text[-tail:]}"


def describe(kind: str, data: dict[str, Any]) -> list[Text]:
    """The lines of one event, without its time. An unknown kind has none: a newer server may send it."""
    match kind:
        case "status":
            status = str(data["status"])
            if status in FINAL:  # `end` comes at once, and says the same
                return []
            text = status if data.get("attempt", 1) == 1 else f"{status} (attempt {data['attempt']})"
            text += f": {data['reason']}" if data.get("reason") else ""
            if (error := data.get("error") or {}).get("code") in GOES_ON_BY_ITSELF:
                return [Text(printable(f"● {text}: {error['message']}"), STATUS_STYLES.get(status, ""))]
            return [Text(printable(f"● {text}"), STATUS_STYLES.get(status, "")), *_error(data.get("error"))]
        case "position":
            wait = data.get("estimated_wait_seconds")
            about = "" if wait is None else f", about {duration(float(wait))}"
            return [Text(f"○ position {data['position']} in the queue{about}", "dim")]
        case "plan":
            steps = data["steps"]
            count = "1 step" if len(steps) == 1 else f"{len(steps)} steps"
            lines = [Text(printable(f"● plan: {count}, planner {data['planner']}"), "bold")]
            return lines + (
                [Text(printable(f"    {with_flag(data['planner'], data['note'])}"), "dim")] if data.get("note") else []
            )
        case "step":
            return _step(data)
        case "decision":
            return _decision(data)
        case "model":
            return _model(data)
        case "log":
            style = {"warning": "yellow", "error": "red"}.get(str(data.get("level")), "")
            label = (printable(f"{data['label']} "), "cyan") if data.get("label") else ""
            return [Text.assemble("  ", label, ("│ ", "dim"), (printable(str(data["line"])), style))]
        case "gap":
            numbers = f"events {data['after'] + 1} to {data['before'] - 1}"
            return [Text(printable(f"… {numbers} are not to be had: {data['reason']}"), "yellow")]
        case "end":
            status = str(data["status"])
            return [Text(f"● {status}", f"bold {STATUS_STYLES.get(status, '')}"), *_error(data.get("error"))]
    return []


def with_flag(planner: str, note: str) -> str:
    """The note on who makes the plan, which names a field of the API, with the option of this command line."""
    other = "model" if planner == "runbook" else "runbook"
    field, flag = f"name the planner {other}", f"add --planner {other}"
    return note.replace(field, flag) if field in note else f"{note} (--planner {other})"


def _decision(data: dict[str, Any]) -> list[Text]:
    about = f"{data['kind']} of step {data['step']}" if data.get("step") else str(data["kind"])
    lines = [Text(f"      {line}") for line in texts_in_lines(data)]
    if data["status"] != "pending":
        edited = bool((data.get("answer") or {}).get("arguments"))
        answer = answer_in_words(data.get("answer"))
        return [Text(printable(f"● {about}: {data['status']}{answer}"), "bold"), *(lines if edited else [])]
    of_step = f"step {data['step']}" if data.get("step") else "the planner"
    what = asked_in_words({"kind": data["kind"], "asked": data.get("asked") or {}})
    verb = {"question": "asks", "budget": "needs more"}.get(str(data["kind"]), "is to be approved")
    return [Text(printable(f"? {of_step} {verb}: {what}  [{data['decision']}]"), "bold yellow"), *lines]


def _model(data: dict[str, Any]) -> list[Text]:
    tokens = f"{data.get('input_tokens', 0):,} + {data.get('output_tokens', 0):,} tokens"
    details = [tokens, duration(data.get("duration_ms", 0) / 1000)]
    if data.get("usd"):
        details.append(f"${data['usd']:.6f}")
    error = data.get("error")
    mark = f"{data['status']}: {error['message']}" if error else f"({'; '.join(details)})"
    return [Text(printable(f"  ◇ {data['purpose']} by {data['model']}  {mark}"), "yellow" if error else "dim")]


def _step(data: dict[str, Any]) -> list[Text]:
    title = printable(str(data.get("title") or data["step"]))
    files = [printable(str(path)) for path in data.get("files_changed") or ()]
    details = []
    if data.get("exit_code"):
        details.append(f"exit code {data['exit_code']}")
    if data.get("duration_ms") is not None:
        details.append(duration(data["duration_ms"] / 1000))
    if files:
        details.append(f"changed {some_of(files, data.get('files_left_out') or 0)}")
    rest = f"  ({'; '.join(details)})" if details else ""
    match data["status"]:
        case "started":
            return [
                Text.assemble(("  ▸ ", "blue"), (title, "bold"), (f"  {printable(str(data.get('tool', '')))}", "dim"))
            ]
        case "completed":
            return [Text.assemble(("  ✓ ", "green"), title, (rest, "dim"))]
        case "skipped":
            return [Text.assemble(("  – ", "dim"), (f"{title}: skipped{rest}", "dim"))]
        case "retrying":
            return [
                Text.assemble(("  ↻ ", "yellow"), f"{title}: trying again", (rest, "dim")),
                *_error(data.get("error")),
            ]
        case "uncertain":
            unknown = Text.assemble(("  ? ", "magenta"), f"{title}: it is not known whether it happened")
            return [unknown, *_error(data.get("error"))]
        case "failed":
            return [Text.assemble(("  ✗ ", "red"), (title, "red"), (rest, "dim")), *_error(data.get("error"))]
    return []


def _error(error: dict[str, Any] | None) -> list[Text]:
    if not error:
        return []
    lines = [Text(printable(f"    {error['message']} [{error['code']}]"), "red")]
    if helps := advice(error["code"], IN_A_RUN):
        lines.append(Text(f"    {helps}", "dim"))
    return lines


class LiveLine:
    """What a run does at this moment, and for how long: rendered ten times a second."""

    def __init__(self) -> None:
        self._what = "waiting for the run"
        self._step = self._text = ""
        self._since = time.monotonic()
        self._spinner = Spinner("dots", style="blue")

    def follow(self, kind: str, data: dict[str, Any]) -> None:
        match kind:
            case "status":
                self._set(str(data["status"]))
            case "position":
                self._what = f"queued, position {data['position']}"
            case "progress":
                self._thinks(data)
            case "model" if self._step:
                self._set(self._step)
            case "step" if data["status"] == "started":
                self._step = printable(str(data.get("title") or data["step"]))
                self._set(self._step)
            case "model" | "step":
                self._step = ""
                self._set("running")
            case "end":
                self._set("")

    def _thinks(self, data: dict[str, Any]) -> None:
        """Its own seconds are counted on from, as the next may be long in coming."""
        if data["purpose"] == "handler":
            self._set(printable(f"{self._step}  {data['text']}".strip()))
            return
        about = [self._step, f"{data['purpose']} by {data['model']}", f"about {data['output_tokens']:,} tokens"]
        self._what = printable("  ".join(filter(None, about)))
        self._text = printable(" ".join(str(data.get("text", "")).split()))
        self._since = time.monotonic() - float(data["seconds"])

    def _set(self, what: str) -> None:
        self._what, self._text, self._since = what, "", time.monotonic()

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        if self._what:
            elapsed = time.monotonic() - self._since
            width = max(options.max_width - 2, 1)
            line = Text(f"{self._what}  {elapsed:.1f} s", style="dim")
            if (room := width - line.cell_len - 2) >= _TEXT_LEAST:
                line.append(f"  {self._text[-room:]}".rstrip())
            # In two lines it would push the finished ones up.
            line.truncate(width, overflow="ellipsis")
            self._spinner.update(text=line)
            yield self._spinner


async def follow(client: Client, output: Output, run_id: str, after: int = 0, wait: float | None = None) -> ExitCode:
    """Show a run's events until its end; the exit code that its end stands for.

    Ends early, with GAVE_UP, when the run waits for a person, or when `wait` seconds are over.
    """
    status = ""
    try:
        async with asyncio.timeout(wait):
            with FollowedRun(output) as view:
                # A run that was retried while its old end was on the way goes on behind it.
                while not status or status in GOING_ON:
                    async with aclosing(client.events(run_id, after)) as events:
                        async for event in events:
                            view.show(event)
                            after = max(after, event["id"])
                            if await still_waits(client, run_id, event):
                                break
                    status = (await client.run(run_id))["status"]
    except TimeoutError:
        raise CommandError(
            ExitCode.GAVE_UP, f"Not over after {wait:g} s; the run goes on. Follow it: {program()} logs -f {run_id}"
        ) from None
    if status == "waiting":
        output.note(await _what_it_waits_for(client, run_id), style="magenta")
    return exit_code_of_status(status)


async def _what_it_waits_for(client: Client, run_id: str) -> str:
    run = await client.run(run_id)
    message = (run.get("error") or {}).get("message", "it is not known whether a step happened")
    return f"The run waits for you: {message}. {how_it_goes_on(run)}"


def how_it_goes_on(run: JsonObject) -> str:
    """The commands by which a run that waits for a person goes on."""
    run_id, code = run["run_id"], (run.get("error") or {}).get("code", UNCERTAIN)
    if code in GOES_ON_BY_ITSELF:
        return "It goes on by itself."
    if code in _ANSWERS:
        return f"See what it asks: {program()} decisions {run_id}   Then: {program()} {_ANSWERS[code].format(run_id)}"
    return (
        f"Repeat the step: {program()} retry {run_id} --repeat   Or go on behind it: {program()} retry {run_id} "
        "--take-as-done"
    )


async def still_waits(client: Client, run_id: str, event: JsonObject) -> bool:
    """Whether this event says what the run waits for now. An old one says what was: the run may have gone on since, and
    wait for something else."""
    if event["data"].get("status") != "waiting":
        return False
    run = await client.run(run_id)
    asked, reported = run.get("error") or {}, event["data"].get("error") or {}
    if asked.get("code") in GOES_ON_BY_ITSELF:
        return False
    return bool(run["status"] == "waiting" and asked.get("message") == reported.get("message"))
