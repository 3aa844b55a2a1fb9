"""Deployments: what users want of them, and what a controller found.

Each change locks the row of its deployment. What users change raises its version; a controller names the version that
it saw, and what it writes about an older one is dropped. What is announced on the event bus is stored in the same
transaction.
"""

from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, Select, delete, func, or_, select

from backplane.domain.agent_manifest import AgentManifest
from backplane.domain.bus import Announcement
from backplane.domain.deployments import (
    PLATFORM,
    Approval,
    Deployment,
    DeploymentEvent,
    DeploymentEventType,
    DeploymentFilter,
    DeploymentKey,
    DeploymentStatus,
    LogPage,
    NewDeployment,
    PrintedLine,
    Revision,
    RevisionOutcome,
    Rollout,
    content_digest,
    the_one_named,
)
from backplane.domain.users import User
from backplane.errors import DeploymentAutoscaled, NotFound, TooLarge, TransitionNotAllowed
from backplane.store.bus.bell import BusBell
from backplane.store.database import Database
from backplane.store.deployments import logs
from backplane.store.deployments.change import RUNNABLE, DeploymentChange, NewEvent, publish
from backplane.store.deployments.creation import check_is_new, insert_deployment, made_before, take_namespace
from backplane.store.deployments.replicas import check_replicas
from backplane.store.deployments.revising import RevisionContent, decide, go_back, revise
from backplane.store.deployments.rows import deployment_of, event_of, missing, revision_of, whole
from backplane.store.deployments.tables import deployment_events, deployment_revisions, deployments
from backplane.store.tables import users

PAGE = 500
NAMED_READ = 100
"""Of one name: a user has fewer namespaces (NAMESPACES_MAX)."""
_OUTCOME_EVENT = {
    RevisionOutcome.ROLLED_OUT: DeploymentEventType.ROLLED_OUT,
    RevisionOutcome.FAILED: DeploymentEventType.FAILED,
}


class DeploymentStore:
    def __init__(self, database: Database, bell: BusBell) -> None:
        self._database = database
        self._bell = bell

    async def create(
        self, user: User, new: NewDeployment, *, most: int, replicas: int | None = None
    ) -> tuple[Deployment, bool]:
        """The deployment, and whether it is new: the same key and request answer the one that they made before.
        `replicas`: so many may be wanted of the user's deployments in all, here and below; None: any number. Raises
        IdempotencyKeyReused, TooLarge when the user has `most` already or would want too many replicas, NamespaceTaken
        and DeploymentExists."""

        def write(connection: Connection) -> tuple[Deployment, bool, list[Announcement]]:
            # One writer a user at a time, so that two of them cannot both be the last that fits.
            connection.execute(select(users.c.id).where(users.c.id == user.id).with_for_update())
            if (there := made_before(connection, user.id, new)) is not None:
                return there, False, []
            count = select(func.count()).select_from(deployments).where(deployments.c.user_id == user.id)
            if (connection.scalar(count) or 0) >= most:
                raise TooLarge(f"you have {most} deployments, and no more may be: delete one that is not needed")
            take_namespace(connection, user.id, new.namespace)
            check_is_new(connection, new)
            made = insert_deployment(connection, user, new)
            check_replicas(connection, None, made, replicas)
            return made, True, publish(connection, made, [made.status.value], made.created_at)

        made, is_new, announced = await self._database.write(write)
        await self._bell.ring(announced)
        return made, is_new

    async def get(self, user_id: str | None, deployment_id: str) -> Deployment:
        """`user_id` None: whosever it is. Raises NotFound."""
        query = whole().where(deployments.c.id == deployment_id)
        if user_id is not None:
            query = query.where(deployments.c.user_id == user_id)
        row = await self._database.read(lambda connection: connection.execute(query).one_or_none())
        if row is None:
            raise missing(deployment_id)
        return deployment_of(row)

    async def named(self, user_id: str, name: str) -> Deployment:
        """The user's deployment with this id, or of the agent with this `agent_id`. Raises NotFound, Conflict where it
        is deployed in several namespaces, and TransitionNotAllowed where it is being deleted."""
        is_it = or_(deployments.c.id == name, deployments.c.agent_id == name)
        query = whole().where(deployments.c.user_id == user_id, is_it).order_by(deployments.c.id).limit(NAMED_READ)
        return the_one_named(name, await self._page(query))

    async def list_of(
        self, user_id: str | None, wanted: DeploymentFilter, *, before: str | None, limit: int
    ) -> list[Deployment]:
        """The newest first. `user_id` None: of all users. `before`: the id of the last one of the page before."""
        query = whole().order_by(deployments.c.id.desc()).limit(limit)
        conditions = {
            deployments.c.user_id: user_id,
            deployments.c.namespace: wanted.namespace,
            deployments.c.status: wanted.status,
            deployments.c.agent_id: wanted.agent_id,
        }
        for column, value in conditions.items():
            if value is not None:
                query = query.where(column == value)
        if wanted.approval is not None:
            approval = select(deployment_revisions.c.approval).where(
                deployment_revisions.c.deployment_id == deployments.c.id,
                deployment_revisions.c.number == deployments.c.revision,
            )
            query = query.where(approval.scalar_subquery() == wanted.approval.value)
        if before is not None:
            query = query.where(deployments.c.id < before)
        return await self._page(query)

    async def revise(
        self,
        deployment_id: str,
        by: User,
        *,
        image: str | None = None,
        manifest: AgentManifest | None = None,
        most: int | None = None,
    ) -> Deployment:
        """Make a new revision with another image, another manifest, or both. The same content changes nothing. `most`:
        replicas of its user's deployments in all. Raises NotFound, TransitionNotAllowed, TooLarge."""

        def revised(change: DeploymentChange) -> None:
            current = change.before.current
            content = RevisionContent(image or current.image, manifest or current.manifest)
            if content_digest(*content) != current.digest:
                is_new = {"image": content.image != current.image, "manifest": content.manifest != current.manifest}
                revise(change, by, content, f"another {' and '.join(name for name, new in is_new.items() if new)}")
            check_replicas(change.connection, change.before, change.after, most)

        return await self._change(deployment_id, revised)

    async def roll_back_to(
        self, deployment_id: str, by: User, number: int | None = None, *, most: int | None = None
    ) -> Deployment:
        """Make a new revision with the content of an older one: of `number`, or of the last one that has another
        content than the current one. `most`: replicas of its user's deployments in all. Raises NotFound,
        TransitionNotAllowed, also for one that was rejected, and TooLarge."""

        def rolled_back(change: DeploymentChange) -> None:
            revisions, current = deployment_revisions.c, change.before.current
            if number is None:
                wanted = (revisions.digest != current.digest, revisions.approval != Approval.REJECTED.value)
                older = change.revision(revisions.number < current.number, *wanted)
                if older is None:
                    raise TransitionNotAllowed("there is no revision before this one with another content")
            else:
                older = change.revision(revisions.number == number)
                if older is None:
                    raise NotFound(
                        f"no revision {number} of deployment {deployment_id} is kept; GET "
                        f"/api/deployments/{deployment_id}/revisions lists those there are"
                    )
                if older.approval is Approval.REJECTED:
                    raise TransitionNotAllowed(
                        f"revision {number} was rejected; go back to another one, or deploy its content as a change, "
                        "which an administrator looks at anew"
                    )
            if older.digest != current.digest:
                content = RevisionContent(older.image, older.manifest)
                revise(change, by, content, f"back to revision {older.number}")
            check_replicas(change.connection, change.before, change.after, most)

        return await self._change(deployment_id, rolled_back)

    async def restart(self, deployment_id: str, by: User) -> Deployment:
        """Start all replicas anew, with the same content. Raises NotFound, TransitionNotAllowed."""

        def restarted(change: DeploymentChange) -> None:
            current = change.before.current
            if current.approval is Approval.PENDING:
                raise TransitionNotAllowed(f"revision {current.number} waits for approval, and nothing of it runs")
            if current.approval is Approval.REJECTED:
                raise TransitionNotAllowed(
                    f"revision {current.number} was rejected, and nothing of it runs; deploy another image or manifest"
                )
            revise(change, by, RevisionContent(current.image, current.manifest), "restart", restarts=1)

        return await self._change(deployment_id, restarted)

    async def scale(self, deployment_id: str, replicas: int, by: User, *, most: int | None = None) -> Deployment:
        """`most`: replicas of its user's deployments in all. Raises NotFound, DeploymentAutoscaled,
        TransitionNotAllowed, TooLarge."""

        def scaled(change: DeploymentChange) -> None:
            before = change.before
            if before.replicas is None:
                scaling = (before.effective or before.current).manifest.scaling
                raise DeploymentAutoscaled(
                    f"an autoscaler keeps {scaling.min_replicas} to {scaling.max_replicas} replicas; change "
                    "spec.deployment.scaling in its manifest, or leave max_replicas out there to scale by hand"
                )
            if replicas != before.replicas:
                change.wants(replicas=replicas)
                if not before.awaits_approval:
                    change.wants(status=DeploymentStatus.DEPLOYING, reason="")
                change.event(DeploymentEventType.SCALED, f"from {before.replicas} to {replicas} replicas, by {by.name}")
                check_replicas(change.connection, before, change.after, most)

        return await self._change(deployment_id, scaled)

    async def pause(self, deployment_id: str, by: User) -> Deployment:
        """Again, it changes nothing. Raises NotFound, TransitionNotAllowed."""
        return await self._set_paused(deployment_id, by, paused=True)

    async def resume(self, deployment_id: str, by: User) -> Deployment:
        """Again, it changes nothing. Raises NotFound, TransitionNotAllowed."""
        return await self._set_paused(deployment_id, by, paused=False)

    async def decide(
        self, deployment_id: str, by: User, *, approve: bool, reason: str = "", number: int | None = None
    ) -> Deployment:
        """Approve or reject the current revision. One that is rejected is followed by one with the content of the last
        that may run. The same decision again changes nothing. `number`: the revision that is meant. Raises NotFound,
        and TransitionNotAllowed where another one waits, or none."""
        wanted = Approval.APPROVED if approve else Approval.REJECTED

        def decided(change: DeploymentChange) -> None:
            which = change.before.current.number if number is None else number
            revision = change.revision(deployment_revisions.c.number == which)
            if revision is not None and revision.approval is wanted and revision.decided_at is not None:
                return
            if not change.before.awaits_approval or which != change.before.current.number:
                raise TransitionNotAllowed(f"revision {which} of deployment {deployment_id} waits for no decision")
            decide(change, by, approve=approve, reason=reason)

        return await self._change(deployment_id, decided)

    async def delete(self, deployment_id: str, by: User, grace_seconds: int) -> Deployment:
        """Ask for its end. The row goes when a controller found that nothing is left (`gone`). Again, it changes
        nothing. Raises NotFound."""

        def deleted(change: DeploymentChange) -> None:
            change.wants(
                deleted_at=change.at,
                delete_grace_seconds=grace_seconds,
                status=DeploymentStatus.STOPPED,
                reason="",
                paused=False,
            )
            change.event(DeploymentEventType.DELETING, f"within {grace_seconds} s, by {by.name}")

        return await self._change(deployment_id, deleted, if_deleted=False)

    async def forget(self, deployment_id: str) -> None:
        """Remove the row, whatever is left in the target."""
        await self._remove(deployment_id, only_deleted=False)

    async def revisions(self, deployment_id: str, before: int | None, limit: int) -> list[Revision]:
        """The newest first, older than number `before`."""
        query = select(deployment_revisions).where(deployment_revisions.c.deployment_id == deployment_id)
        if before is not None:
            query = query.where(deployment_revisions.c.number < before)
        query = query.order_by(deployment_revisions.c.number.desc()).limit(limit)
        rows = await self._database.read(lambda connection: connection.execute(query).all())
        return [revision_of(dict(row._mapping)) for row in rows]

    async def events(self, deployment_id: str, before: int | None, limit: int) -> list[DeploymentEvent]:
        """The newest first, older than number `before`."""
        query = select(deployment_events).where(deployment_events.c.deployment_id == deployment_id)
        if before is not None:
            query = query.where(deployment_events.c.number < before)
        query = query.order_by(deployment_events.c.number.desc()).limit(limit)
        rows = await self._database.read(lambda connection: connection.execute(query).all())
        return [event_of(row) for row in rows]

    async def keys_of_all(self) -> dict[str, DeploymentKey]:
        """By id, of all that are not gone, also those that are being deleted: a key that is another one when anything
        of the deployment has changed."""
        columns = deployments.c
        query = select(columns.id, columns.version, columns.last_event, columns.updated_at).order_by(columns.id)
        rows = await self._database.read(lambda connection: connection.execute(query).all())
        return {row.id: (row.version, row.last_event, row.updated_at) for row in rows}

    async def of_ids(self, ids: Sequence[str]) -> list[Deployment]:
        """Those of them that are there."""
        found: list[Deployment] = []
        for at in range(0, len(ids), PAGE):
            found += await self._page(whole().where(deployments.c.id.in_(ids[at : at + PAGE])))
        return found

    async def _page(self, query: Select[Any]) -> list[Deployment]:
        rows = await self._database.read(lambda connection: connection.execute(query).all())
        return [deployment_of(row) for row in rows]

    async def write_rollout(
        self,
        deployment: Deployment,
        rollout: Rollout,
        status: DeploymentStatus,
        reason: str,
        events: Sequence[NewEvent] = (),
    ) -> bool:
        """Write what was found of a deployment as it was read. False, and nothing is written: it was changed meanwhile,
        or is gone."""

        def written(change: DeploymentChange) -> None:
            change.found(rollout=rollout, status=status, reason=reason)
            for type, message in events:
                change.event(type, message)

        return await self._change_as_read(deployment, written) is not None

    async def end_revision(self, deployment: Deployment, outcome: RevisionOutcome, reason: str = "") -> bool:
        """Write what became of the effective revision of a deployment as it was read: `rolled_out` or `failed`. One
        that has failed may roll out yet. Again, it changes nothing. False: it was changed meanwhile, or is gone."""

        def ended(change: DeploymentChange) -> None:
            revision = change.before.effective
            ends = {RevisionOutcome.PENDING: True, RevisionOutcome.FAILED: outcome is RevisionOutcome.ROLLED_OUT}
            if revision is not None and ends.get(revision.outcome, False):
                change.change_revision(
                    revision.number, outcome=outcome.value, outcome_reason=reason, ended_at=change.at
                )
                said = f"revision {revision.number}" + (f": {reason}" if reason else "")
                change.event(_OUTCOME_EVENT[outcome], said)

        return await self._change_as_read(deployment, ended) is not None

    async def roll_back(self, deployment: Deployment, reason: str) -> Deployment | None:
        """Go back, by the platform itself, from the current revision, whose rollout failed, to the last one that was
        rolled out. None: there is none with another content, the current one is such a way back already, or the
        deployment was changed meanwhile."""

        def rolled_back(change: DeploymentChange) -> None:
            revisions, current = deployment_revisions.c, change.before.current
            if current.created_by == PLATFORM or current != change.before.effective:
                return
            older = change.revision(
                revisions.number < current.number,
                revisions.outcome == RevisionOutcome.ROLLED_OUT.value,
                revisions.digest != current.digest,
                revisions.approval.in_(RUNNABLE),
            )
            if older is None:
                return
            if current.outcome is RevisionOutcome.PENDING:
                change.end_current(RevisionOutcome.FAILED, reason)
            go_back(change, older, f"revision {current.number} failed; back to revision {older.number}")
            # Why it failed, the event before says: the words of a target are long.
            why = f"revision {current.number} failed"
            change.event(DeploymentEventType.ROLLED_BACK, f"to revision {older.number}, since {why}")

        changed = await self._change_as_read(deployment, rolled_back)
        return changed if changed is not None and changed.version != deployment.version else None

    async def gone(self, deployment: Deployment) -> None:
        """Remove a deployment that is being deleted: nothing of it is left."""
        await self._remove(deployment.id, only_deleted=True)

    async def add_log_lines(self, deployment_id: str, lines: Sequence[PrintedLine]) -> None:
        """Number and store them, in this order. What is over a cap goes: of these lines the oldest, and of those that
        are kept. Nothing where the deployment is gone."""
        await self._database.write(lambda connection: logs.add_lines(connection, deployment_id, lines))

    async def logs_after(self, deployment_id: str, cursor: int, limit: int) -> LogPage:
        """Lines with higher numbers than `cursor`, the oldest first. Raises NotFound."""
        return await self._database.read(lambda connection: logs.lines_after(connection, deployment_id, cursor, limit))

    async def last_lines(self, deployment_ids: Sequence[str]) -> dict[str, int]:
        """The number of the last line of each of these that are there."""
        return await self._database.read(lambda connection: logs.last_numbers(connection, deployment_ids))

    async def last_log_times(self, deployment_id: str) -> dict[str, tuple[datetime, int]]:
        """By replica, when the last line that is kept was printed, and how many lines with that time are kept: where a
        reader of the target's logs goes on."""
        return await self._database.read(lambda connection: logs.last_times(connection, deployment_id))

    async def _set_paused(self, deployment_id: str, by: User, *, paused: bool) -> Deployment:
        def change_it(change: DeploymentChange) -> None:
            if change.before.paused is not paused:
                change.wants(paused=paused)
                type = DeploymentEventType.PAUSED if paused else DeploymentEventType.RESUMED
                change.event(type, f"by {by.name}")

        return await self._change(deployment_id, change_it)

    async def _change(
        self, deployment_id: str, make: Callable[[DeploymentChange], None], *, if_deleted: bool | None = None
    ) -> Deployment:
        """`if_deleted` False: one that is being deleted stays as it is; None: to change it is refused."""

        def write(connection: Connection) -> tuple[Deployment, list[Announcement]]:
            change = DeploymentChange.of(connection, deployment_id)
            if change.before.deleted_at is not None:
                if if_deleted is None:
                    raise TransitionNotAllowed(f"deployment {deployment_id} is being deleted; make another one")
                return change.before, []
            make(change)
            return change.after, change.write() if change.after != change.before or change.events else []

        after, announced = await self._database.write(write)
        await self._bell.ring(announced)
        return after

    async def _change_as_read(
        self, deployment: Deployment, make: Callable[[DeploymentChange], None]
    ) -> Deployment | None:
        """None: it has another version now, or is gone."""

        def write(connection: Connection) -> tuple[Deployment | None, list[Announcement]]:
            change = DeploymentChange.of(connection, deployment.id)
            if change.before.version != deployment.version:
                return None, []
            make(change)
            return change.after, change.write()

        try:
            after, announced = await self._database.write(write)
        except NotFound:
            return None
        await self._bell.ring(announced)
        return after

    async def _remove(self, deployment_id: str, *, only_deleted: bool) -> None:
        def write(connection: Connection) -> list[Announcement]:
            change = DeploymentChange.of(connection, deployment_id)
            if only_deleted and change.before.deleted_at is None:
                return []
            connection.execute(delete(deployments).where(deployments.c.id == deployment_id))
            return publish(connection, change.before, ["deleted"], change.at)

        try:
            announced = await self._database.write(write)
        except NotFound:
            return
        await self._bell.ring(announced)
