"""Schedules become messages to their agents, each time once.

All is found in the database (`store.schedules`). A message has its schedule and its time as its key, so any number of
controllers may do it at once, and one that is killed in between leaves nothing half done. An agent whose mailbox is
full gets its message when there is room again.
"""

from datetime import UTC, datetime

import structlog

from backplane.domain.agents import message_to
from backplane.domain.runs import FINAL, Priority, Run, RunStatus, new_run_id
from backplane.domain.schedules import Schedule, ScheduleOutcome, ScheduleOverlap
from backplane.errors import AgentTerminated, MailboxFull, NotFound, StorageExceeded, Unavailable
from backplane.run_actions.actions import RunActions
from backplane.settings import fixed
from backplane.store import Store
from controller.agent_events import TurnRules
from controller.batches import repeat_batches

log = structlog.get_logger()


class SchedulesLoop:
    def __init__(self, store: Store, actions: RunActions, rules: TurnRules) -> None:
        self._store = store
        self._actions = actions
        self._rules = rules

    async def run(self) -> None:
        await repeat_batches(self.work, what="schedules", pause_seconds=fixed.SCHEDULES_POLL_SECONDS)

    async def work(self) -> bool:
        """One batch of those that are due. Returns whether there may be more. Raises Unavailable."""
        due = await self._store.schedules.due(fixed.SCHEDULES_BATCH)
        for schedule in due:
            try:
                await self._fire(schedule)
            except Unavailable:
                raise
            except Exception as fault:
                # A time zone that this machine does not know, say. The others have their messages all the same.
                log.error("a schedule cannot fire here; it is tried again later", schedule=schedule.id, exc_info=fault)
                await self._store.schedules.put_off(schedule, fixed.SCHEDULE_FAULT_SECONDS)
        return len(due) == fixed.SCHEDULES_BATCH

    async def _fire(self, schedule: Schedule) -> None:
        schedules, time = self._store.schedules, schedule.next_at
        if time is None:
            return
        if schedule.given.overlap is ScheduleOverlap.SKIP and not await self._is_over(schedule.last_run_id):
            await schedules.fired(schedule, ScheduleOutcome.SKIPPED)
            return
        try:
            run_id = await send_scheduled(self._store, self._actions, self._rules, schedule, time)
        except MailboxFull as error:
            log.info("a schedule waits for room in the mailbox of its agent", schedule=schedule.id)
            await schedules.put_off(schedule, error.retry_after or fixed.SCHEDULES_POLL_SECONDS)
        except (AgentTerminated, NotFound):
            await schedules.fired(schedule, ScheduleOutcome.AGENT_TERMINATED)
        except StorageExceeded:
            await schedules.fired(schedule, ScheduleOutcome.STORAGE_FULL)
        else:
            await schedules.fired(schedule, ScheduleOutcome.SENT, run_id)

    async def _is_over(self, run_id: str | None) -> bool:
        run = await self._store.runs.find(run_id) if run_id else None
        return run is None or run.status in FINAL


async def send_scheduled(
    store: Store, actions: RunActions, rules: TurnRules, schedule: Schedule, time: datetime
) -> str:
    """Send the message of this time, once. Answers its run. Raises MailboxFull, AgentTerminated, NotFound,
    StorageExceeded."""
    key = (schedule.message_key(time), "")
    try:
        await actions.check_new_run(schedule.user_id)
    except StorageExceeded:
        # A controller that was killed may have sent it, and that filled the store.
        if earlier := await store.runs.made_before(schedule.user_id, *key):
            return earlier.id
        raise
    agent = await store.agents.get(schedule.user_id, schedule.given.agent_id)
    at = time.astimezone(UTC).isoformat()
    message = Run(
        id=new_run_id(),
        user_id=schedule.user_id,
        status=RunStatus.CREATED,
        priority=Priority.NORMAL,
        prompt=schedule.given.text,
        created_at=datetime.now(UTC),
        timeout_seconds=rules.timeout_seconds,
        max_retries=rules.max_retries,
        input=schedule.given.data,
        origin={"kind": "schedule", "name": schedule.name, "id": schedule.id, "at": at},
    )
    added = await store.agent_messages.add(
        message_to(agent, message),
        mailbox_max=fixed.AGENT_MAILBOX_MAX,
        idempotency=key,
    )
    if added.is_new:
        await actions.push_added(added)
    return added.run.id
