"""A new deployment: whose its namespace is, and its first revision."""

from typing import Any

from sqlalchemy import Connection, func, insert, select
from sqlalchemy.dialects import postgresql, sqlite

from backplane.domain.deployments import (
    NAMESPACES_MAX,
    Deployment,
    DeploymentEventType,
    DeploymentStatus,
    NewDeployment,
    Revision,
    Rollout,
    approval_reason,
    first_replicas,
)
from backplane.domain.runs import new_run_id
from backplane.domain.users import User
from backplane.errors import DeploymentExists, IdempotencyKeyReused, NamespaceTaken, TooLarge
from backplane.store.clock import database_now
from backplane.store.deployments.change import add_events, with_first_approval
from backplane.store.deployments.rows import deployment_of, revision_values, whole
from backplane.store.deployments.tables import deployment_namespaces, deployment_revisions, deployments


def made_before(connection: Connection, user_id: str, new: NewDeployment) -> Deployment | None:
    """The deployment that this idempotency key has made. Raises IdempotencyKeyReused when it was for another
    request."""
    if new.idempotency is None:
        return None
    key, digest = new.idempotency
    query = whole().where(deployments.c.user_id == user_id, deployments.c.idempotency_key == key)
    row = connection.execute(query).one_or_none()
    if row is None:
        return None
    if row.idempotency_digest != digest:
        raise IdempotencyKeyReused(
            f"Idempotency-Key {key!r} was used for another request (deployment {row.id}); send a new key with a new "
            "request"
        )
    return deployment_of(row)


def take_namespace(connection: Connection, user_id: str, namespace: str) -> None:
    """Make it this user's, where it is nobody's. Raises NamespaceTaken, TooLarge."""
    values: dict[str, Any] = {"namespace": namespace, "user_id": user_id, "created_at": database_now(connection)}
    dialect = sqlite if connection.dialect.name == "sqlite" else postgresql
    made = connection.execute(dialect.insert(deployment_namespaces).values(values).on_conflict_do_nothing()).rowcount
    columns = deployment_namespaces.c
    if connection.scalar(select(columns.user_id).where(columns.namespace == namespace)) != user_id:
        raise NamespaceTaken(f"the namespace {namespace} is not available to you; choose another")
    count = select(func.count()).select_from(deployment_namespaces).where(columns.user_id == user_id)
    if made and (connection.scalar(count) or 0) > NAMESPACES_MAX:
        raise TooLarge(f"you have {NAMESPACES_MAX} namespaces, and no more may be: use one of them")


def check_is_new(connection: Connection, new: NewDeployment) -> None:
    """Raises DeploymentExists."""
    query = select(deployments.c.id, deployments.c.deleted_at)
    query = query.where(deployments.c.namespace == new.namespace, deployments.c.agent_id == new.agent_id)
    there = connection.execute(query).one_or_none()
    if there is None:
        return
    what = "is being deleted; make it again when it is gone"
    if there.deleted_at is None:
        what = f"is there already; PATCH /api/deployments/{there.id} changes it"
    raise DeploymentExists(f"deployment {there.id} of {new.agent_id} in {new.namespace} {what}")


def insert_deployment(connection: Connection, user: User, new: NewDeployment) -> Deployment:
    at = database_now(connection)
    first = Revision(1, new.image, new.manifest, cause="created", created_by=user.id, created_at=at)
    revision = with_first_approval(first, user, at)
    made = Deployment(
        id=new_run_id(),
        user_id=user.id,
        agent_id=new.agent_id,
        namespace=new.namespace,
        current=revision,
        effective=revision if revision.may_run else None,
        replicas=first_replicas(new.manifest),
        status=DeploymentStatus.DEPLOYING,
        reason="",
        rollout=Rollout(),
        created_at=at,
        updated_at=at,
    )
    reason = "" if revision.may_run else approval_reason(made)
    key, digest = new.idempotency or (None, None)
    connection.execute(
        insert(deployments).values(
            id=made.id,
            user_id=user.id,
            agent_id=made.agent_id,
            namespace=made.namespace,
            revision=revision.number,
            effective=revision.number if revision.may_run else None,
            replicas=made.replicas,
            status=made.status.value,
            reason=reason,
            rollout=made.rollout.as_json(),
            paused=made.paused,
            created_at=at,
            updated_at=at,
            delete_grace_seconds=made.delete_grace_seconds,
            version=made.version,
            last_event=1,
            last_line=0,
            log_chars=0,
            idempotency_key=key,
            idempotency_digest=digest,
        )
    )
    connection.execute(insert(deployment_revisions).values(revision_values(made.id, revision)))
    add_events(connection, made, [(DeploymentEventType.CREATED, f"by {user.name}")], 1, at)
    return deployment_of(connection.execute(whole().where(deployments.c.id == made.id)).one())
