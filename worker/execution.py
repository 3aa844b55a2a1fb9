"""One run, from its claim to its end. While it runs, nobody else writes its status.

    take the row → recover what a lost worker published → open its parts → plan → carry out → settle

Every way out of here is one of: finished (completed, failed, cancelled), waiting for a person, given back to the queue,
or superseded; the last writes nothing at all.
"""

import asyncio
import random
import time
import traceback
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any

import structlog
from structlog.contextvars import bind_contextvars

from backplane.domain.bus import EventArrived, EventWait
from backplane.domain.dead_letters import dead_reason
from backplane.domain.decisions import DecisionMade
from backplane.domain.events import NUMBERS_SKIPPED, EventType
from backplane.domain.retry import RetryPolicy
from backplane.domain.runs import (
    WAITS_FOR_EVENT,
    WAITS_FOR_RUN,
    CancelRequested,
    Run,
    RunError,
    RunIsOver,
    RunStatus,
    Taken,
)
from backplane.errors import PlatformError, Superseded
from backplane.logs.base import Appended, Batch
from backplane.process import log as process_log
from backplane.process.retrying import until_available
from backplane.queue.base import Claim, RunOutcome, Settlement
from backplane.run_actions.pushing import push_again, push_open_message
from backplane.store import RunTransaction
from worker.context import WorkerContext
from worker.files.checkouts import Checkouts
from worker.handlers.waiting import Sleeps, WaitsForEvents, WaitsForRuns
from worker.run.decisions import why_waiting
from worker.run.endings import log_settlement, not_stored, seconds_left, set_aside, why_cancelled
from worker.run.events import RunEvents, Write
from worker.run.interruption import Cause, Interrupted, Interruption
from worker.run.send_buffer import SHARE
from worker.run_work import HandlerElsewhere, RunWork, open_work
from worker.steps.outcomes import RunWaits, StepFailed, StepUncertain, ToolFault

log = structlog.get_logger()

RECOVERED_MAX = 100_000
ELSEWHERE = timedelta(seconds=0.5)
"""After so long, another worker may take a run that this one has no handler for."""


class EventsRefused(Exception):
    """What a run has published cannot be stored."""


class Execution:
    """`interruption` may be set from outside at any moment."""

    def __init__(self, claim: Claim, worker: WorkerContext) -> None:
        self.claim = claim
        self.interruption = Interruption()
        self._worker = worker
        self._began = time.monotonic()
        self._lease_ends = 0.0
        self._checkouts: Checkouts | None = None
        self._work: RunWork | None = None
        self._parent_id: str | None = None
        self._agent_id: str | None = None

    def lease_renewed(self, asked_at: float) -> None:
        """Redis has confirmed the request that was sent at `asked_at` (`time.monotonic()`): the lease counts from then
        on. Any thread may call this."""
        self._lease_ends = max(self._lease_ends, asked_at + self._worker.rules.runs.lease_seconds)

    async def ensure_ours(self) -> None:
        """Raises Superseded when another worker has the run. Asks the database only when the lease may have ended."""
        if time.monotonic() < self._lease_ends:
            return
        runs, run_id = self._worker.resources.store.running_runs, self.claim.run_id
        rights = await until_available(lambda: runs.rights({run_id: self.claim.generation}))
        if run_id in rights.superseded:
            self.interruption.set(Cause.SUPERSEDED)
            raise Superseded(f"another worker has run {run_id}")

    async def run(self) -> Settlement | None:
        """Carry the run out, and return what is to become of the claim; None: another worker has the run. Raises
        nothing but CancelledError: whatever goes wrong becomes the run's end, or its next try."""
        # These stand in each line that is logged for this run.
        bind_contextvars(run=self.claim.run_id, worker=self._worker.worker_id)
        apart, limit = self._worker.apart, self._worker.rules.runs.crash_limit
        if not apart.enters(self.claim, alone=limit - 1 <= self.claim.crashes < limit and self.claim.crashes > 0):
            log_settlement(aside := set_aside(self.claim))
            return aside
        try:
            settlement = await self._run()
        except Superseded:
            log.warning("run lost: another worker has taken it", generation=self.claim.generation)
            self._worker.metrics.run_superseded()
            return None
        except Exception as error:
            settlement = await self._end_by_row(error, None)
        finally:
            apart.leaves(self.claim)
        if settlement is not None:
            log_settlement(settlement)
        return settlement

    async def _run(self) -> Settlement | None:
        runs, claim = self._worker.resources.store.running_runs, self.claim
        worker_id = self._worker.worker_id
        taken = await until_available(lambda: runs.take(claim.run_id, claim.generation, worker_id))
        if taken is None:
            return await self._pass_on()
        bind_contextvars(attempt=taken.run.attempt)
        self._parent_id, self._agent_id = taken.run.parent_id, taken.run.agent_id
        lost = {"lost_worker": taken.lost_worker or "unknown"} if taken.from_lost_worker else {}
        log.info("run taken", generation=claim.generation, **lost)
        if taken.run.queued_at and taken.run.attempt == 1 and not taken.from_lost_worker:
            waited = datetime.now(UTC) - taken.run.queued_at
            self._worker.metrics.run_taken(taken.run.priority, waited.total_seconds())
        events = self._worker.events.open(
            claim.run_id,
            taken.run.user_id,
            claim.generation,
            taken.last_event_id,
            superseded=lambda: self.interruption.set(Cause.SUPERSEDED),
            not_stored=lambda: self.interruption.set(Cause.NOT_STORED),
        )
        process_log.clean_texts_of_this_task(events.redactor.text)
        try:
            try:
                await self._recover(events, taken)
                settlement = await self._work_on(events, taken)
            except Superseded:
                raise
            except Exception as error:
                return await self._end_without_details(events, error)
            await events.all_published.wait()
            return settlement
        finally:
            self._worker.events.close(events)
            if self._checkouts:
                await asyncio.shield(self._clean_up(self._checkouts))

    async def _clean_up(self, checkouts: Checkouts) -> None:
        await self._worker.shared.sandbox.release(self.claim.run_id)
        for folder in checkouts.folders:
            await self._worker.shared.scratch.removal.remove_when_few_wait(folder)

    async def _pass_on(self) -> Settlement:
        """Settle the claim of a run that is over, is cancelled, or belongs to another worker. Its watchers may have
        missed the end."""
        resources, run_id = self._worker.resources, self.claim.run_id

        async def pass_on() -> None:
            last_published = await resources.event_log.last_id(run_id)
            if last_published is None:
                last_published = max(await resources.store.events.last_id(run_id) - SHARE, 0)
            unpublished = await resources.store.events.after(run_id, last_published, RECOVERED_MAX)
            if unpublished:
                batch = Batch(run_id, self.claim.generation, unpublished, stored_id=unpublished[-1].id)
                await resources.event_log.append([batch])

        await until_available(pass_on)
        run = await until_available(lambda: resources.store.runs.find(run_id))
        log.info("claimed a run that may not run", status=run.status if run else None)
        if run and run.status is RunStatus.RUNNING:
            # Redis has failed over to a replica that did not know of the claim before.
            return Settlement(self.claim, RunOutcome.DISOWNED)
        return Settlement(self.claim, RunOutcome.FINISHED, run.status if run else None)

    async def _recover(self, events: RunEvents, taken: Taken) -> None:
        """Store what the lost worker had published and could not store any more."""
        if self.claim.generation == 1 or not taken.from_lost_worker:
            return
        event_log = self._worker.resources.event_log
        last_published = await until_available(lambda: event_log.last_id(taken.run.id))
        if last_published is None:
            if self.claim.crashes:
                # Redis saw the worker's lease end, so it has lost nothing: the database has all that was published.
                return
            events.skip_numbers(NUMBERS_SKIPPED, "Redis lost its data while a worker was lost")
        elif last_published > taken.last_event_id:
            published = await until_available(lambda: event_log.after(taken.run.id, taken.last_event_id, RECOVERED_MAX))
            if published:
                events.continue_after(published)
            else:
                events.skip_numbers(NUMBERS_SKIPPED, "Redis lost its data while a worker was lost")

    async def _work_on(self, events: RunEvents, taken: Taken) -> Settlement:
        run = taken.run
        running: dict[str, Any] = {"status": RunStatus.RUNNING, "attempt": run.attempt}
        if taken.from_lost_worker:
            lost = f"its worker {taken.lost_worker}" if taken.lost_worker else "the worker that had it"
            running["reason"] = f"{lost} was lost; it goes on behind the last step that has ended"
        events.emit(EventType.STATUS, running)
        deadline = asyncio.get_running_loop().call_later(seconds_left(run), self.interruption.set, Cause.TIMED_OUT)
        try:
            if run.cancel_requested_at:
                raise Interrupted(Cause.CANCELLED)
            if self.claim.crashes >= self._worker.rules.runs.crash_limit:
                raise StepFailed(
                    RunError(
                        "worker_lost",
                        f"{self.claim.crashes} workers were lost while they carried out this run, so it is not tried "
                        "again. Look at what its steps ask of the worker's machine, then retry it.",
                    )
                )
            work = await self._open(events, taken)
            return await self._carry_out(work)
        except Interrupted as interrupted:
            return await self._interrupted(events, run, interrupted.cause)
        except StepFailed as failed:
            return await self._fail(events, run, failed.error)
        except StepUncertain as uncertain:
            return await self._ask_whether_done(events, run, uncertain)
        except Superseded:
            raise
        except PlatformError as error:
            return await self._fail(events, run, RunError(error.code, error.message, error.retryable))
        except ToolFault as fault:
            log.error("run failed by a fault of a tool", exception=fault.trace)
            return await self._fail(events, run, fault.error, fault.trace)
        except Exception as error:
            log.exception("run failed by a fault of the platform")
            message = f"a fault of the platform: {type(error).__name__}; the worker's log has the details"
            return await self._fail(
                events, run, RunError("internal_error", message, retryable=True), traceback.format_exc()
            )
        finally:
            deadline.cancel()

    async def _open(self, events: RunEvents, taken: Taken) -> RunWork:
        work = await open_work(self._worker, events, taken, self.interruption, self.ensure_ours)
        self._work, self._checkouts = work, work.context.files.checkouts
        await work.restore_files()
        return work

    async def _carry_out(self, work: RunWork) -> Settlement:
        """Carry the run out, to its end or until a person has to decide."""
        while True:
            try:
                await work.carry_out()
                return await self._finish(work.events, RunStatus.COMPLETED, None, summary=await work.summary())
            except RunWaits as waits:
                try:
                    return await self._wait_for_person(
                        work.events, why_waiting(waits.decisions), [decision.id for decision in waits.decisions]
                    )
                except DecisionMade:
                    await work.context.decisions.look()
            except Sleeps as sleeps:
                until = sleeps.until
                reason = f"its handler sleeps until {until:%Y-%m-%d %H:%M:%S} UTC"
                return await self._postpone(work.events, until, reason)
            except HandlerElsewhere as error:
                reason = f"its worker has no handler {str(error)!r}, and another one has"
                return await self._postpone(work.events, datetime.now(UTC) + ELSEWHERE, reason)
            except WaitsForRuns as waits:
                with suppress(RunIsOver):
                    return await self._wait_for_runs(work.events, waits.run_ids)
            except WaitsForEvents as waits:
                with suppress(EventArrived):
                    return await self._wait_for_events(work.events, waits.waits)

    async def _postpone(self, events: RunEvents, until: datetime, reason: str) -> Settlement:
        left = max((until - datetime.now(UTC)).total_seconds(), 0.0)
        return await self._leave(
            events,
            lambda transaction: transaction.sleep_until(until),
            {"status": RunStatus.QUEUED, "reason": reason},
            Settlement(self.claim, RunOutcome.POSTPONED, delay_seconds=left),
        )

    async def _wait_for_runs(self, events: RunEvents, run_ids: Sequence[str]) -> Settlement:
        """Let the run wait for these. Raises RunIsOver when one of them is over already."""
        more = f" and {len(run_ids) - 1} more" if len(run_ids) > 1 else ""
        error = RunError(WAITS_FOR_RUN, f"it waits for run {run_ids[0]}{more}")
        return await self._wait(events, lambda transaction: transaction.wait_for_runs(error, run_ids), error)

    async def _wait_for_events(self, events: RunEvents, waits: Sequence[EventWait]) -> Settlement:
        """Let the run wait for these. Raises EventArrived when the first of them has ended already."""
        error = RunError(WAITS_FOR_EVENT, f"it waits for an event {waits[0].pattern}")
        return await self._wait(events, lambda transaction: transaction.wait_for_event(waits[0], error), error)

    async def _wait(self, events: RunEvents, write: Write, error: RunError) -> Settlement:
        settlement = Settlement(self.claim, RunOutcome.FINISHED, RunStatus.WAITING, error.code)
        return await self._leave(events, write, {"status": RunStatus.WAITING, "error": error.as_dict()}, settlement)

    async def _leave(
        self, events: RunEvents, write: Write, status: dict[str, Any], settlement: Settlement
    ) -> Settlement:
        """Write that no worker has the run, unless it is to be cancelled. Raises what refuses the write."""
        try:
            await events.record(
                lambda transaction: transaction.unless_cancelled(), write, publish=[(EventType.STATUS, status)]
            )
        except CancelRequested:
            return await self._finish(events, RunStatus.CANCELLED, None)
        return settlement

    async def _interrupted(self, events: RunEvents, run: Run, cause: Cause) -> Settlement:
        match cause:
            case Cause.SUPERSEDED:
                raise Superseded(f"another worker has run {run.id}")
            case Cause.CANCELLED:
                return await self._finish(events, RunStatus.CANCELLED, why_cancelled(run))
            case Cause.TIMED_OUT:
                message = (
                    f"the run took longer than its {run.timeout_seconds} s; give it more with timeout_seconds, or "
                    "split it"
                )
                return await self._fail(events, run, RunError("run_timeout", message))
            case Cause.DRAINED:
                return await self._give_back(events, run)
            case Cause.NOT_STORED:
                raise EventsRefused("the database refuses events of this run")

    async def _fail(self, events: RunEvents, run: Run, error: RunError, trace: str = "") -> Settlement:
        """Queue the next attempt, or end the run. The error is kept in both cases."""
        error = _redacted(events, error)
        note = partial(_note_failure, attempt=run.attempt, error=error, trace=trace, worker_id=self._worker.worker_id)
        policy = RetryPolicy(
            run.max_retries, self._worker.rules.runs.retry_base_seconds, self._worker.rules.runs.retry_max_seconds
        )
        draw = random.random()  # noqa: S311 - jitter, no secret
        pause = policy.pause(run.attempt, retryable=error.retryable, draw=draw, asked=error.retry_after)
        if pause is None:
            return await self._finish(events, RunStatus.FAILED, error, note)
        line = f"attempt {run.attempt} failed: {error.kept_message}; the next begins in {pause:.1f} s"
        queued = {"status": RunStatus.QUEUED, "attempt": run.attempt + 1, "error": error.as_dict()}
        try:
            await events.record(
                lambda transaction: transaction.unless_cancelled(),
                note,
                lambda transaction: transaction.reopen_steps(error.step if run.is_of_code else None),
                lambda transaction: transaction.queue_again(attempt=run.attempt + 1, error=error),
                publish=[(EventType.LOG, {"line": line, "level": "warning"}), (EventType.STATUS, queued)],
            )
        except CancelRequested:
            return await self._finish(events, RunStatus.CANCELLED, None)
        self._worker.metrics.run_retried(error.code)
        return Settlement(self.claim, RunOutcome.POSTPONED, delay_seconds=pause)

    async def _ask_whether_done(self, events: RunEvents, run: Run, uncertain: StepUncertain) -> Settlement:
        if uncertain.trace:
            log.error("a step is uncertain by a fault of its tool", exception=uncertain.trace)
            note = partial(
                _note_failure,
                attempt=run.attempt,
                error=uncertain.error,
                trace=uncertain.trace,
                worker_id=self._worker.worker_id,
            )
            events.defer(note)
        return await self._wait_for_person(events, uncertain.error)

    async def _give_back(self, events: RunEvents, run: Run) -> Settlement:
        queued = {"status": RunStatus.QUEUED, "attempt": run.attempt, "reason": "the worker stops"}
        await events.record(
            lambda transaction: transaction.queue_again(attempt=None, error=None), publish=[(EventType.STATUS, queued)]
        )
        return Settlement(self.claim, RunOutcome.HANDED_BACK)

    async def _wait_for_person(
        self, events: RunEvents, error: RunError, decision_ids: Sequence[str] = ()
    ) -> Settlement:
        """Let the run wait. Raises DecisionMade when one of these decisions has been made: then the run need not
        wait."""
        error = _redacted(events, error)
        return await self._wait(events, lambda transaction: transaction.wait_for_person(error, decision_ids), error)

    async def _finish(
        self,
        events: RunEvents,
        status: RunStatus,
        error: RunError | None,
        *writes: Write,
        summary: str | None = None,
        with_result: bool = True,
    ) -> Settlement:
        result = self._work.result(summary) if self._work and with_result else None
        body = {"status": status, "error": error.as_dict() if error else None}
        reason = dead_reason(error) if error else None
        if status is not RunStatus.COMPLETED:
            events.defer(lambda transaction: transaction.skip_pending_steps())
        if reason:
            events.defer(lambda transaction: transaction.dead_letter(reason, self.claim.crashes))
        await events.record(
            *writes,
            lambda transaction: transaction.finish(status, error, result, self._parent_id),
            *self._end_of_turn(status),
            publish=[(EventType.STATUS, body), (EventType.END, {**body, "result": result})],
        )
        await self._push_others()
        seconds = time.monotonic() - self._began
        self._worker.metrics.run_finished(status, seconds)
        return Settlement(
            self.claim,
            RunOutcome.FINISHED,
            status,
            error.code if error else "",
            duration_seconds=None if status is RunStatus.CANCELLED else seconds,
            is_dead=reason is not None,
        )

    def _end_of_turn(self, status: RunStatus) -> Sequence[Write]:
        """Of a message, what its agent keeps of it. Only a turn that is completed changes the agent."""
        agent_id = self._agent_id
        if agent_id is None:
            return ()
        is_completed = self._work is not None and status is RunStatus.COMPLETED
        state, summary = self._work.agent_changes() if self._work and is_completed else (None, None)
        return (lambda transaction: transaction.end_turn(agent_id, state=state, summary=summary),)

    async def _push_others(self) -> None:
        """Let a run that has waited for this one go on, and the next message of the agent."""
        resources = self._worker.resources
        if self._parent_id is not None:
            await push_again(resources.store, resources.queue, resources.event_log, self._parent_id)
        if self._agent_id is not None:
            await push_open_message(resources.store, resources.queue, resources.event_log, self._agent_id)

    # --- when not even its end can be stored ---

    async def _end_without_details(self, events: RunEvents, error: Exception) -> Settlement:
        """The run fails, and what the database refused is left out: to try it again would fail again."""
        log.exception("what became of a run cannot be stored")
        try:
            await events.forget_unsaved("the database refused what was to be stored")
            settlement = await self._finish(events, RunStatus.FAILED, not_stored(error), with_result=False)
        except Superseded:
            raise
        except Exception as again:
            # Its events may never be published: those that wait to be stored first are refused.
            return await self._end_by_row(again, events.last_id)
        await events.all_published.wait()
        return settlement

    async def _end_by_row(self, error: Exception, last_id: int | None) -> Settlement:
        """End the run by its row, with as much else as can be stored. `last_id`: of its last event, where it is known.
        Where not even that is possible, it is tried again after the longest pause between attempts."""
        resources, claim, reason = self._worker.resources, self.claim, not_stored(error)
        log.error("a run is ended by its row alone", exc_info=error)
        try:
            ended = await until_available(
                lambda: resources.store.running_runs.end_by_row(claim.run_id, claim.generation, reason, last_id)
            )
            if ended.events:
                batch = Batch(claim.run_id, claim.generation, ended.events, ended.user_id, ended.stored_id)
                [answer] = await until_available(lambda: resources.event_log.append([batch]))
                if answer is Appended.STORE_FIRST:
                    log.warning("the end of a run is not published: Redis has no room for it")
            await self._push_others()
        except Superseded:
            return Settlement(claim, RunOutcome.DISOWNED)
        except Exception:
            log.critical("a run cannot be ended", exc_info=True)
            return Settlement(claim, RunOutcome.POSTPONED, delay_seconds=self._worker.rules.runs.retry_max_seconds)
        return Settlement(
            claim, RunOutcome.FINISHED, ended.status, reason.code, is_dead=ended.status is RunStatus.FAILED
        )


def _redacted(events: RunEvents, error: RunError) -> RunError:
    """The error without secrets. To be called before the message is cut, which may be in the middle of a secret."""
    return replace(error, message=events.redactor.text(error.message))


def _note_failure(transaction: RunTransaction, *, attempt: int, error: RunError, trace: str, worker_id: str) -> None:
    transaction.note_failure(attempt, error, trace, worker_id)
