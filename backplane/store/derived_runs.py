"""Runs that are made from runs: forks and replays; and runs that go back to one of their own steps.

What is copied is rows only, in one transaction with the source locked, so that the copy is of one moment. The worker
that claims the run brings the files, as `Run.restore` names them; whether they can be had is not known here.

Steps count as done before another in the order in which they ended: that is the order in which their files became what
they are. What a step that failed had changed by then stays, as a part of the next one that is copied.
"""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import Connection, and_, delete, insert, or_, select, update
from sqlalchemy.exc import IntegrityError

from backplane.domain.derived_runs import NewFork
from backplane.domain.events import Event, EventType, encode
from backplane.domain.plans import Plan
from backplane.domain.runs import DEFAULT_QUEUE, Changed, Priority, Run, RunStatus
from backplane.domain.steps import StepRecord, StepStatus, pending_steps
from backplane.errors import Conflict, FilesGone, InvalidInput, InvalidPlan, NotFound, TransitionNotAllowed
from backplane.store.agents.turns import lock_agent_of
from backplane.store.database import Database
from backplane.store.decisions import copy_decided
from backplane.store.events import add_events
from backplane.store.identity import CALL_STEP, DECISION_PARENT, STEP_PARENT
from backplane.store.journal import records_of
from backplane.store.runs import Runs, locked_run, may_have_happened, retried, values_of
from backplane.store.secrets import copy_run_secrets
from backplane.store.tables import decisions, model_calls, runs, steps

Idempotency = tuple[str, str]


class DerivedRuns:
    def __init__(self, database: Database) -> None:
        self._database = database

    async def fork(
        self, user_id: str, source_id: str, new: NewFork, *, start: bool, idempotency: Idempotency | None = None
    ) -> Changed:
        """Make a new run that goes on from where `new.step` of the source had ended. Returns it with its events; there
        are none where the idempotency key had made it before.

        Raises NotFound, FilesGone, Conflict (the step has not been completed), InvalidPlan (the steps that were taken
        over are others in the new plan), IdempotencyKeyReused.
        """

        def make(connection: Connection) -> tuple[Run, list[StepRecord], str]:
            source = _source(connection, user_id, source_id)
            run = _derived(source, new.id, new.priority, "fork", new.step)
            run = replace(run, prompt=new.prompt if new.prompt is not None else source.prompt)
            if source.handler is not None:
                return _fork_of_handler(connection, source, new, run)
            if new.step is None:
                given = new.plan.model_dump(mode="json") if new.plan else None
                kept = source.given_plan if new.prompt is not None else source.plan or source.given_plan
                return replace(run, given_plan=given or kept), [], f"made from the beginning of run {source_id}"
            if source.plan is None:
                raise Conflict(f"run {source_id} has no plan yet, so it has no step {new.step!r}")
            done = _done_with(connection, source_id, new.step)
            old, plan = Plan.model_validate(source.plan), new.plan or Plan.model_validate(source.plan)
            _check_prefix(old, plan, done)
            body = plan.model_dump(mode="json")
            note = f"made from run {source_id} after its step {new.step}; done already: {_names(done)}"
            return replace(run, given_plan=body, plan=body), _journal(plan, done), note

        return await self._make(user_id, source_id, make, start, idempotency)

    async def replay(
        self,
        user_id: str,
        source_id: str,
        new_id: str,
        priority: Priority,
        *,
        execute: bool = False,
        idempotency: Idempotency | None = None,
    ) -> Changed:
        """A new run, queued, that goes the way of the source: its model calls are answered from the source's, its
        questions as they were there, and its steps have the results that they had; with `execute`, they are carried
        out again. Raises NotFound, FilesGone, IdempotencyKeyReused, and TransitionNotAllowed
        for a source that is not over."""

        def make(connection: Connection) -> tuple[Run, list[StepRecord], str]:
            source = _source(connection, user_id, source_id)
            if source.status not in (RunStatus.COMPLETED, RunStatus.FAILED, RunStatus.CANCELLED):
                raise TransitionNotAllowed(f"run {source_id} is {source.status}; only a run that is over is replayed")
            if source.agent_id is not None:
                raise Conflict(
                    f"run {source_id} is a message to an agent, whose state has changed since: send it again, or make "
                    "a fork, which is a run without an agent"
                )
            # What a fork took over when it was made is no work of its own.
            taken_over = (source.origin or {}).get("step")
            # A replay needs no budget, as its cost was paid. What was approved meanwhile would be missing.
            run = replace(_derived(source, new_id, priority, "replay", taken_over), budget=None)
            run = replace(run, origin={**(run.origin or {}), "execute": execute})
            journal: list[StepRecord] = []
            if source.handler is not None:
                journal = [] if execute else [one for one in records_of(connection, source_id) if _is_ended(one)]
                return run, journal, f"replays run {source_id}"
            if taken_over is not None and source.given_plan is not None:
                done = _done_with(connection, source_id, taken_over)
                run = replace(run, plan=source.given_plan)
                journal = _journal(Plan.model_validate(source.given_plan), done)
            return run, journal, f"replays run {source_id}"

        def copy(connection: Connection) -> None:
            copy_decided(connection, source_id, new_id)

        return await self._make(user_id, source_id, make, True, idempotency, copy)

    async def retry_from(
        self, user_id: str, run_id: str, step: str, *, uncertain_step_is_done: bool | None = None
    ) -> Changed:
        """Put a run that failed, waits or was completed in the queue again, to do this step and all that require it
        once more, with the files as they were without them. A person who names a step lets it be done again, also where
        it may have happened. For any other step that may have happened, also a sub-step of the named step, a person has
        to say what becomes of it. Raises NotFound, FilesGone, TransitionNotAllowed, Conflict (also when nobody says
        it), and InvalidInput when a step would be taken as done and done again."""

        def write(connection: Connection) -> Changed:
            lock_agent_of(connection, run_id)
            run = _source(connection, user_id, run_id)
            plan = Plan.model_validate(run.plan) if run.plan is not None else None
            records = {record.step_id: record for record in records_of(connection, run_id)}
            if run.handler is not None or run.agent_id is not None:
                return _retry_handler_from(
                    connection, run, records, step, uncertain_step_is_done=uncertain_step_is_done
                )
            if plan is None or step not in {planned.id for planned in plan.steps}:
                raise NotFound(f"run {run_id} has no step {step!r}; GET /agent/runs/{run_id} shows those it has")
            if step in records and not records[step].tries:
                raise Conflict(f"step {step!r} of run {run_id} has not been begun yet; retry the run instead")
            again = _requiring(plan, step)
            queued, new_events = retried(
                connection, run, uncertain_step_is_done=uncertain_step_is_done, from_a_step=True
            )
            if uncertain_step_is_done is not False:
                _check_nothing_in_doubt(run, records.values(), step, again, is_done=bool(uncertain_step_is_done))
            # What was cut off before it said that it changes something, the worker decides about.
            kept = set() if uncertain_step_is_done is False else again - {step}
            cut_off = {id for id in kept if id in records and records[id].status is StepStatus.STARTED}
            _forget(connection, run_id, again)
            _mark_cut_off(connection, run_id, cut_off)
            restore = run.restore or {"run_id": run_id, "steps": []}
            connection.execute(update(runs).where(runs.c.id == run_id).values(restore=restore))
            return replace(queued, restore=restore), new_events

        return await self._database.write(write)

    async def _make(
        self,
        user_id: str,
        source_id: str,
        make: Callable[[Connection], tuple[Run, list[StepRecord], str]],
        start: bool,
        idempotency: Idempotency | None,
        and_then: Callable[[Connection], None] | None = None,
    ) -> Changed:
        """`make` returns the run, its journal, and a line that says where it comes from."""

        def write(connection: Connection) -> Changed:
            run, journal, line = make(connection)
            status = RunStatus.QUEUED if start else RunStatus.CREATED
            new_events = _history(run, line, journal, status)
            connection.execute(insert(runs), values_of(run, status, idempotency))
            copy_run_secrets(connection, source_id, run.id)
            if journal:
                connection.execute(insert(steps), [{"run_id": run.id, **asdict(record)} for record in journal])
                _copy_files(connection, source_id, run.id)
            if and_then is not None:
                and_then(connection)
            add_events(connection, new_events, {run.id: user_id})
            return replace(run, status=status, queued_at=run.created_at if start else None), new_events

        try:
            return await self._database.write(write)
        except IntegrityError:
            earlier = await Runs(self._database).made_before(user_id, *idempotency) if idempotency else None
            if earlier is None:
                raise
            return earlier, []


def _fork_of_handler(connection: Connection, source: Run, new: NewFork, run: Run) -> tuple[Run, list[StepRecord], str]:
    """A fork of a run that a handler carries out: its code goes on behind the effects that are taken over."""
    if new.plan is not None:
        raise InvalidPlan(f"plan: run {source.id} is carried out by a handler, which has no plan", field="plan")
    if new.step is None:
        return run, [], f"made from the beginning of run {source.id}"
    done = _done_with(connection, source.id, new.step)
    return run, done, f"made from run {source.id} after its step {new.step}; done already: {_names(done)}"


def _retry_handler_from(
    connection: Connection,
    run: Run,
    records: Mapping[str, StepRecord],
    step: str,
    *,
    uncertain_step_is_done: bool | None,
) -> Changed:
    """The effect and all that come after it are forgotten: the code may ask for others in their place."""
    first = records[step].ordinal if step in records else None
    if first is None:
        raise NotFound(f"run {run.id} has no effect {step!r}; GET /agent/runs/{run.id} shows those it has")
    again = {record.step_id for record in records.values() if record.ordinal is not None and record.ordinal >= first}
    queued, new_events = retried(connection, run, uncertain_step_is_done=uncertain_step_is_done, from_a_step=True)
    if uncertain_step_is_done is not False:
        _check_nothing_in_doubt(run, records.values(), step, again, is_done=bool(uncertain_step_is_done))
        for record in records.values():
            if record.step_id in again - {step} and record.status is StepStatus.STARTED:
                raise may_have_happened(run.id, record.step_id)
    _forget(connection, run.id, again)
    connection.execute(delete(steps).where(steps.c.run_id == run.id, steps.c.step_id.in_(sorted(again))))
    restore = run.restore or {"run_id": run.id, "steps": []}
    connection.execute(update(runs).where(runs.c.id == run.id).values(restore=restore))
    return replace(queued, restore=restore), new_events


def _is_ended(record: StepRecord) -> bool:
    """Whether it counts as done. A handler has gone on from an effect that failed as from any other."""
    return record.status is StepStatus.COMPLETED or (record.status is StepStatus.FAILED and record.ordinal is not None)


def _source(connection: Connection, user_id: str, run_id: str) -> Run:
    run = locked_run(connection, user_id, run_id)
    if run.files_expired_at is not None:
        raise FilesGone(f"run {run_id} is past its time and its files are gone (RETENTION_WORKSPACE_DAYS)")
    return run


def _derived(source: Run, new_id: str, priority: Priority, kind: str, step: str | None) -> Run:
    origin = {"kind": kind, "run_id": source.id, **({"step": step} if step is not None else {})}
    return Run(
        id=new_id,
        user_id=source.user_id,
        status=RunStatus.CREATED,
        priority=priority,
        prompt=source.prompt,
        created_at=datetime.now(UTC),
        timeout_seconds=source.timeout_seconds,
        max_retries=source.max_retries,
        metadata=source.metadata,
        given_plan=source.given_plan,
        resource=source.resource,
        # A run that is made from a message is no message.
        queue=DEFAULT_QUEUE if source.agent_id is not None else source.queue,
        webhook_url=source.webhook_url,
        agent=source.agent,
        model=source.model,
        planner=source.planner,
        budget=source.budget,
        mcp_servers=source.mcp_servers,
        handler=source.handler,
        input=source.input,
        origin=origin,
        # A source that has not brought its own files yet would bring them from the same run.
        restore={"run_id": (source.restore or {}).get("run_id", source.id), "steps": []},
    )


def _done_with(connection: Connection, run_id: str, step: str) -> list[StepRecord]:
    """Those that were completed when this one was, in the order in which they ended. What changed in the workspace is
    here only of those that a step that was not completed had ended before: it is theirs too. That of all others stays
    in the database (`_copy_files`)."""
    records = records_of(connection, run_id)
    last = next((record for record in records if record.step_id == step), None)
    if last is None or last.status is not StepStatus.COMPLETED or last.finished_at is None:
        possible = _names([record for record in records if record.status is StepStatus.COMPLETED]) or "none"
        state = "is not there" if last is None else f"is {last.status}"
        raise Conflict(f"step {step!r} {state}; a fork goes on after a step that was completed: {possible}")
    until = (last.finished_at, last.position)
    ended = [
        (finished_at, record.position, record) for record in records if (finished_at := record.finished_at) is not None
    ]
    done, not_completed = list[StepRecord](), list[str]()
    for finished_at, position, record in sorted(ended, key=lambda one: one[:2]):
        if (finished_at, position) > until:
            break
        if not _is_ended(record):
            not_completed.append(record.step_id)
        elif not_completed:
            done.append(_with_files_of(connection, run_id, [*not_completed, record.step_id], record))
            not_completed = []
        else:
            done.append(record)
    return done


def _with_files_of(connection: Connection, run_id: str, step_ids: Sequence[str], record: StepRecord) -> StepRecord:
    """The step with what all of these changed, in their order."""
    query = select(steps.c.step_id, steps.c.files, steps.c.attributes).where(
        steps.c.run_id == run_id, steps.c.step_id.in_(step_ids)
    )
    rows = {row.step_id: row for row in connection.execute(query)}
    files, attributes = dict[str, str | None](), dict[str, Any]()
    for step_id in step_ids:
        files |= rows[step_id].files or {}
        attributes |= rows[step_id].attributes or {}
    return replace(record, files=files or None, attributes=attributes or None)


def _copy_files(connection: Connection, source_id: str, run_id: str) -> None:
    """Copy the files of steps within the database: they may take 100 MiB and more."""
    source = steps.alias()
    copied = {
        name: select(source.c[name])
        .where(source.c.run_id == source_id, source.c.step_id == steps.c.step_id)
        .scalar_subquery()
        for name in ("files", "attributes")
    }
    connection.execute(
        update(steps)
        .where(
            steps.c.run_id == run_id,
            steps.c.status == StepStatus.COMPLETED.value,
            steps.c.files.is_(None),
            steps.c.attributes.is_(None),
        )
        .values(copied)
    )


def _check_prefix(old: Plan, new: Plan, done: Sequence[StepRecord]) -> None:
    before, after = ({step.id: step for step in plan.steps} for plan in (old, new))
    for record in done:
        if record.step_id in before and after.get(record.step_id) != before[record.step_id]:
            raise InvalidPlan(
                f"plan: step {record.step_id!r} was carried out already, so the new plan must have it as it was",
                field="plan",
            )


def _journal(plan: Plan, done: Sequence[StepRecord]) -> list[StepRecord]:
    """The plan's steps, with what was done; with what steps did within them, and those of earlier plans, too."""
    by_id = {record.step_id: record for record in done}
    planned = [
        replace(by_id[record.step_id], position=record.position) if record.step_id in by_id else record
        for record in pending_steps(plan)
    ]
    known = {record.step_id for record in planned}
    return planned + [record for record in done if record.step_id not in known]


def _requiring(plan: Plan, step: str) -> set[str]:
    """The step, and all steps that require it."""
    found = {step}
    for planned, requires in plan.requirements().items():
        if not found.isdisjoint(requires):
            found.add(planned)
    return found


def _check_nothing_in_doubt(
    run: Run, records: Iterable[StepRecord], step: str, again: set[str], *, is_done: bool
) -> None:
    """`again`: the steps that are done again from `step` on. One of these, or one below them, that a worker was cut off
    in while it changed something may have happened as well as one that is uncertain."""
    for record in records:
        is_again = (record.parent or record.step_id) in again
        is_named, is_uncertain = record.step_id == step, record.status is StepStatus.UNCERTAIN
        if is_done and is_again and (is_uncertain or (record.status is StepStatus.CHANGING and not is_named)):
            raise InvalidInput(
                f"uncertain_step: step {record.step_id!r} cannot be taken as done, because a retry from step {step!r} "
                'does it again: say "repeat", or leave out from_step',
                field="uncertain_step",
            )
        in_doubt = is_uncertain or (record.status is StepStatus.CHANGING and is_again)
        if not is_done and in_doubt and not is_named:
            raise may_have_happened(run.id, record.step_id)


def _mark_cut_off(connection: Connection, run_id: str, step_ids: Collection[str]) -> None:
    connection.execute(
        update(steps)
        .where(steps.c.run_id == run_id, steps.c.step_id.in_(sorted(step_ids)))
        .values(status=StepStatus.STARTED.value)
    )


def _forget(connection: Connection, run_id: str, step_ids: set[str]) -> None:
    """Reset these steps, as if they had not been done, but for the count of their tries."""
    names = sorted(step_ids)
    connection.execute(
        update(steps)
        .where(steps.c.run_id == run_id, steps.c.step_id.in_(names))
        .values(
            status=StepStatus.PENDING.value,
            failed_tries=0,
            started_at=None,
            finished_at=None,
            result=None,
            files=None,
            attributes=None,
        )
    )
    is_below = and_(steps.c.run_id == run_id, STEP_PARENT.in_(names))
    # The run's summary is made anew, too.
    is_summary = and_(CALL_STEP == "", model_calls.c.purpose == "summary")
    of_these = or_(CALL_STEP.in_(names), CALL_STEP.in_(select(steps.c.step_id).where(is_below)), is_summary)
    connection.execute(delete(model_calls).where(model_calls.c.run_id == run_id, of_these))
    connection.execute(delete(steps).where(is_below))
    of_steps = or_(decisions.c.step_id.in_(names), DECISION_PARENT.in_(names))
    connection.execute(delete(decisions).where(decisions.c.run_id == run_id, of_steps))


def _history(run: Run, line: str, journal: Sequence[StepRecord], status: RunStatus) -> list[Event]:
    new_events: list[tuple[EventType, dict[str, Any]]] = [
        (EventType.STATUS, {"status": "created", "attempt": 1, "origin": run.origin}),
        (EventType.LOG, {"line": line}),
    ]
    if run.plan is not None:
        planned = [{"id": step["id"], "title": step["title"], "tool": step["tool"]} for step in run.plan["steps"]]
        new_events.append((EventType.PLAN, {"planner": run.plan["planner"], "version": 1, "steps": planned}))
    if status is RunStatus.QUEUED:
        new_events.append((EventType.STATUS, {"status": "queued", "attempt": 1}))
    return [encode(run.id, number, kind, data, run.created_at) for number, (kind, data) in enumerate(new_events, 1)]


def _names(records: Sequence[StepRecord]) -> str:
    return ", ".join(record.step_id for record in records if record.parent is None)
