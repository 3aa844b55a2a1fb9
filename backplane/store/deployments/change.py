"""One change of a deployment, within a transaction: its row, its revisions, its events, and what its user's bus gets.

A change begins with the locked row and collects what is new; `write` writes all of it. So each function that changes a
deployment says what it changes, and no more.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any

from sqlalchemy import ColumnElement, Connection, delete, func, insert, select, update

from backplane.domain.bus import SPEC_VERSION, Announcement, cloud_event
from backplane.domain.deployments import (
    EVENTS_KEPT,
    REASON_CHARS,
    REVISIONS_KEPT,
    Approval,
    Deployment,
    DeploymentEventType,
    DeploymentStatus,
    Revision,
    RevisionOutcome,
    approval_reason,
    needs_approval,
    next_replicas,
)
from backplane.domain.runs import new_run_id
from backplane.domain.sizes import shortened
from backplane.domain.users import Tier, User
from backplane.store.bus.events import add_bus_events
from backplane.store.clock import database_now
from backplane.store.deployments.rows import locked, revision_of, revision_values
from backplane.store.deployments.tables import deployment_events, deployment_revisions, deployments

RUNNABLE = (Approval.NOT_NEEDED.value, Approval.APPROVED.value)
_PUBLISHED = frozenset({DeploymentEventType.DEGRADED, DeploymentEventType.ROLLED_BACK, DeploymentEventType.DRIFTED})
"""Events that the bus gets beside each new status."""
NewEvent = tuple[DeploymentEventType, str]


@dataclass(slots=True)
class DeploymentChange:
    """`before`: as it was when it was locked; `after`: as it will be. `at`: the database's time."""

    connection: Connection
    before: Deployment
    after: Deployment
    at: datetime
    events: list[NewEvent] = field(default_factory=list)
    revisions: list[Revision] = field(default_factory=list)

    @classmethod
    def of(cls, connection: Connection, deployment_id: str) -> "DeploymentChange":
        """Locks the row. Raises NotFound."""
        before = locked(connection, deployment_id)
        return cls(connection, before, before, database_now(connection))

    def wants(self, **values: Any) -> None:
        """Change what is wanted: what a controller wrote about the version before no longer counts."""
        self.after = replace(self.after, **values, version=self.before.version + 1, updated_at=self.at)

    def found(self, **values: Any) -> None:
        """Change what is known of it."""
        self.after = replace(self.after, **values, updated_at=self.at)

    def event(self, type: DeploymentEventType, message: str) -> None:
        self.events.append((type, shortened(message, REASON_CHARS)))

    def new_revision(self, revision: Revision) -> None:
        """Make it the current one. The one before whose rollout has not ended is replaced."""
        current = self.after.current
        if current.outcome is RevisionOutcome.PENDING:
            self.change_revision(current.number, outcome=RevisionOutcome.REPLACED.value, ended_at=self.at)
        self.revisions.append(revision)
        if revision.may_run:
            self.wants(current=revision)
            self.take_effect(revision)
            return
        replicas = self.after.replicas
        if self.after.effective is None:
            replicas = next_replicas(replicas, current.manifest, revision.manifest)
        self.wants(current=revision, replicas=replicas, status=DeploymentStatus.DEPLOYING)
        self.wants(reason=approval_reason(self.after))

    def take_effect(self, revision: Revision) -> None:
        """The target is to have this one from now on."""
        before, replicas = self.after.effective, self.after.replicas
        if before is not None:
            replicas = next_replicas(replicas, before.manifest, revision.manifest)
        self.wants(effective=revision, replicas=replicas, status=DeploymentStatus.DEPLOYING, reason="")

    def end_current(self, outcome: RevisionOutcome, reason: str) -> None:
        """Write what became of the current revision."""
        current = self.after.current
        self.change_revision(current.number, outcome=outcome.value, outcome_reason=reason, ended_at=self.at)
        self.after = replace(
            self.after, current=replace(current, outcome=outcome, outcome_reason=reason, ended_at=self.at)
        )

    def change_revision(self, number: int, **values: Any) -> None:
        revisions = deployment_revisions.c
        which = (revisions.deployment_id == self.before.id, revisions.number == number)
        self.connection.execute(update(deployment_revisions).where(*which).values(values))

    def revision(self, *conditions: ColumnElement[bool]) -> Revision | None:
        """The newest that fits."""
        query = select(deployment_revisions).where(deployment_revisions.c.deployment_id == self.before.id, *conditions)
        query = query.order_by(deployment_revisions.c.number.desc()).limit(1)
        row = self.connection.execute(query).one_or_none()
        return revision_of(dict(row._mapping)) if row is not None else None

    def approved(self, revision: Revision, by: User) -> Revision:
        """The revision with what its access tier asks for. The leave that the same content was given once holds."""
        asked = with_first_approval(revision, by, self.at)
        if asked.may_run:
            return asked
        revisions = deployment_revisions.c
        same = self.revision(revisions.digest == revision.digest, revisions.approval == Approval.APPROVED.value)
        if same is None:
            return asked
        return replace(revision, approval=Approval.APPROVED, decided_by=same.decided_by, decided_at=same.decided_at)

    def write(self) -> list[Announcement]:
        """Who is to be called after the commit."""
        before, after = self.before, self.after
        values = {
            "revision": after.current.number,
            "effective": after.effective.number if after.effective else None,
            "replicas": after.replicas,
            "status": after.status.value,
            "reason": shortened(after.reason, REASON_CHARS),
            "rollout": after.rollout.as_json(),
            "paused": after.paused,
            "updated_at": after.updated_at,
            "deleted_at": after.deleted_at,
            "delete_grace_seconds": after.delete_grace_seconds,
            "version": after.version,
            "last_event": deployments.c.last_event + len(self.events),
        }
        written = update(deployments).where(deployments.c.id == before.id).values(values)
        last_event = self.connection.scalar(written.returning(deployments.c.last_event))
        assert last_event is not None
        for revision in self.revisions:
            self.connection.execute(insert(deployment_revisions).values(revision_values(before.id, revision)))
        if self.revisions:
            _trim_revisions(self.connection, after)
        add_events(self.connection, after, self.events, last_event, self.at)
        kinds = [type.value for type, _ in self.events if type in _PUBLISHED]
        if after.status is not before.status:
            kinds.append(after.status.value)
        return publish(self.connection, after, kinds, self.at)


def with_first_approval(revision: Revision, by: User, at: datetime) -> Revision:
    """What the access tier of a new content asks for: nothing, the leave of the administrator who makes it, or one that
    is still to come."""
    if not needs_approval(revision.manifest.access_tier):
        return replace(revision, approval=Approval.NOT_NEEDED)
    if by.tier is Tier.ADMIN:
        return replace(revision, approval=Approval.APPROVED, decided_by=by.id, decided_at=at)
    return replace(revision, approval=Approval.PENDING)


def add_events(connection: Connection, deployment: Deployment, new: list[NewEvent], last: int, at: datetime) -> None:
    """`last`: the number of the last one of them."""
    if not new:
        return
    rows = [
        {
            "deployment_id": deployment.id,
            "number": number,
            "type": type.value,
            "message": message,
            "revision": deployment.current.number,
            "at": at,
        }
        for number, (type, message) in enumerate(new, last - len(new) + 1)
    ]
    connection.execute(insert(deployment_events), rows)
    events = deployment_events.c
    old = (events.deployment_id == deployment.id, events.number <= last - EVENTS_KEPT)
    connection.execute(delete(deployment_events).where(*old))


def publish(connection: Connection, deployment: Deployment, kinds: Iterable[str], at: datetime) -> list[Announcement]:
    """Store events `deployment.KIND` on the bus of its user; who is to be called after the commit."""
    data = {
        "deployment_id": deployment.id,
        "agent_id": deployment.agent_id,
        "namespace": deployment.namespace,
        "status": deployment.status.value,
        "revision": deployment.current.number,
        "ready_replicas": deployment.rollout.ready_replicas,
        "reason": deployment.reason,
    }
    new = [
        cloud_event(
            {
                "specversion": SPEC_VERSION,
                "id": new_run_id(),
                "source": f"/api/deployments/{deployment.id}",
                "type": f"deployment.{kind}",
                "subject": deployment.agent_id,
                "time": at.isoformat(),
                "datacontenttype": "application/json",
                "data": data,
            },
            of_platform=True,
        )
        for kind in kinds
    ]
    if not new:
        return []
    stored = add_bus_events(connection, deployment.user_id, new)
    return [
        Announcement(deployment.user_id, event.type, each.cursor)
        for event, each in zip(new, stored.published, strict=True)
    ]


def _trim_revisions(connection: Connection, deployment: Deployment) -> None:
    """The effective one stays, and the one that a rollback would go to."""
    revisions, current = deployment_revisions.c, deployment.current.number
    of_this = revisions.deployment_id == deployment.id
    good = select(func.max(revisions.number)).where(
        of_this, revisions.outcome == RevisionOutcome.ROLLED_OUT.value, revisions.number < current
    )
    kept = {deployment.effective.number if deployment.effective else current, connection.scalar(good) or current}
    old = (of_this, revisions.number <= current - REVISIONS_KEPT, revisions.number.not_in(kept))
    connection.execute(delete(deployment_revisions).where(*old))
