"""Runs that a handler starts: made in the transaction of its effect, pushed into the queue after it.

A child has the rights, the model and the limits of its parent. When it ends, in whatever way, the same transaction
queues a parent that waits for it (`store.runs.wake_parent`).
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

from backplane.domain.agents import MESSAGE_EXPIRED, root_of
from backplane.domain.events import Event, EventType, encode
from backplane.domain.plans import parse_plan
from backplane.domain.runs import FINAL, HANDLER_PATTERN, QUEUE_PATTERN, Run, RunError, RunStatus, new_run_id
from backplane.domain.sizes import readable_size
from backplane.errors import InvalidInput, StorageExceeded, Unavailable
from backplane.limits.storage.limits import StorageLimits
from backplane.process.retrying import until_available
from backplane.resources import Resources
from backplane.run_actions.pushing import push_run
from backplane.settings import fixed
from worker.handlers.values import due_after
from worker.llm.untrusted_json import storable

_HANDLER, _QUEUE = re.compile(HANDLER_PATTERN), re.compile(QUEUE_PATTERN)
_NUMBER_MAX = 2**31 - 1
"""What the database holds."""


@dataclass(frozen=True, slots=True)
class Over:
    """A run that is over: what it gave, or why it gave nothing."""

    value: Any = None
    error: RunError | None = None


class ChildRuns:
    """The children of one run. `limits`: of what their user may keep."""

    def __init__(self, resources: Resources, run: Run, limits: StorageLimits) -> None:
        self._resources = resources
        self._run = run
        self._limits = limits

    def new(self, step_id: str, asked: Mapping[str, Any]) -> tuple[Run, list[Event]]:
        """A run, queued, with its first events. `asked`: the arguments of `worker.handlers.run.HandlerRun.start`.
        Raises InvalidInput for a time that is none."""
        parent, now = self._run, datetime.now(UTC)
        handler, prompt = asked.get("handler"), asked.get("prompt")
        child = Run(
            id=new_run_id(),
            user_id=parent.user_id,
            status=RunStatus.QUEUED,
            priority=parent.priority,
            prompt=storable(str(prompt or (f"handler {handler}" if handler else f"a plan of {step_id}"))),
            created_at=now,
            timeout_seconds=asked.get("timeout_seconds", parent.timeout_seconds),
            max_retries=asked.get("max_retries", parent.max_retries),
            given_plan=asked.get("plan"),
            queued_at=now,
            resource=parent.resource,
            agent=parent.agent,
            model=parent.model,
            budget=parent.budget,
            mcp_servers=parent.mcp_servers,
            origin={
                **{"kind": "child", "run_id": parent.id, "by": step_id, "depth": self._depth + 1},
                **root_of(parent.origin),
            },
            handler=handler,
            input=asked.get("input"),
            parent_id=parent.id,
            queue=asked.get("queue") or parent.queue,
            expires_at=due_after(asked["timeout"], "timeout") if "timeout" in asked else None,
        )
        new_events: Sequence[tuple[EventType, dict[str, Any]]] = (
            (EventType.STATUS, {"status": "created", "attempt": 1, "origin": child.origin}),
            (EventType.STATUS, {"status": "queued", "attempt": 1}),
        )
        return child, [encode(child.id, number, kind, data, now) for number, (kind, data) in enumerate(new_events, 1)]

    @property
    def _depth(self) -> int:
        return int((self._run.origin or {}).get("depth", 0))

    async def why_not(self, child: Run) -> RunError | None:
        """Why the run cannot be started now; None: it can."""
        try:
            check(child)
        except InvalidInput as error:
            return RunError(error.code, error.message)
        if self._depth >= fixed.HANDLER_DEPTH_MAX:
            message = (
                f"runs may start runs {fixed.HANDLER_DEPTH_MAX} deep, and this one is so deep: does it start itself?"
            )
            return RunError("too_deep", message)
        try:
            await self._limits.check_new_run(child.user_id)
        except StorageExceeded as error:
            return RunError(error.code, error.message)
        try:
            full = await self._resources.queue.admit(child.id, child.user_id, child.priority, child.queue)
        except Unavailable:
            return None  # as for a user's run: the leading worker pushes it
        if full is None:
            return None
        message = f"{full.waiting} runs wait, and {full.most} may ({full.limit})"
        return RunError("queue_full", message, retryable=True)

    async def push(self, child: Run, events: Sequence[Event]) -> None:
        await push_run(self._resources.queue, self._resources.event_log, child, events)

    async def over(self, run_id: str) -> Over | None:
        """None while it is not over. Waits while the database is away."""
        child = await until_available(lambda: self._resources.store.runs.find(run_id))
        if child is None:
            return Over(error=RunError("child_gone", f"run {run_id} has been deleted"))
        if child.status not in FINAL:
            return None
        if child.status is RunStatus.COMPLETED:
            result = child.result or {}
            return Over(result.get("value") if child.handler is not None else result.get("summary"))
        if child.error is not None and child.error.code == MESSAGE_EXPIRED:
            return Over(error=RunError("child_timeout", f"run {run_id} was not over in the time that it was given"))
        why = f": {child.error.message}" if child.error else ""
        error = RunError("child_failed", f"run {run_id} is {child.status}{why}")
        return Over(error=replace(error, retryable=bool(child.error and child.error.retryable)))


def check(child: Run) -> None:
    """What the API checks of a new run, for one that a handler starts. Raises InvalidInput."""
    if child.handler is not None and not _matches(_HANDLER, child.handler):
        raise InvalidInput(f"handler: {_shown(child.handler)} is no name of a handler")
    if not _matches(_QUEUE, child.queue):
        raise InvalidInput(f"queue: {_shown(child.queue)} is no name of a queue: small letters, digits, '.', '_', '-'")
    if len(child.prompt) > fixed.PROMPT_MAX_CHARS:
        raise InvalidInput(f"prompt: give a text of at most {fixed.PROMPT_MAX_CHARS:,} characters")
    for name, number, least in (("timeout_seconds", child.timeout_seconds, 1), ("max_retries", child.max_retries, 0)):
        if type(number) is not int or not least <= number <= _NUMBER_MAX:
            raise InvalidInput(f"{name}: {_shown(number)} is no whole number from {least} on")
    if child.given_plan is not None:
        parse_plan(child.given_plan)
    if child.input is not None and (size := len(json.dumps(child.input))) > fixed.HANDLER_VALUE_MAX_BYTES:
        most = readable_size(fixed.HANDLER_VALUE_MAX_BYTES)
        raise InvalidInput(
            f"input: it has {readable_size(size)} of JSON; at most {most} are taken: use a file or a store"
        )


def _matches(pattern: re.Pattern[str], value: Any) -> bool:
    return isinstance(value, str) and pattern.fullmatch(value) is not None


def _shown(value: Any) -> str:
    return repr(value)[:80]
