"""Services, their health, and the history of it.

What is written of a service's health names how many checks had been written when it was read (`Health.checks`), and the
revision of what was checked: of two controllers that check at once the second one's result is dropped, and so is a
result about a service that was changed meanwhile. The history, the event and the webhook of a change are committed with
it.
"""

import json
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import (
    BigInteger,
    Column,
    Connection,
    Float,
    ForeignKey,
    Index,
    Integer,
    Row,
    String,
    Table,
    UniqueConstraint,
    delete,
    func,
    insert,
    or_,
    select,
    update,
)
from sqlalchemy.exc import IntegrityError

from backplane.domain.bus import Announcement
from backplane.domain.runs import new_run_id
from backplane.domain.services import (
    HISTORY_MAX,
    ContainerState,
    Health,
    Judgement,
    Report,
    Service,
    ServiceSpec,
    ServiceStatus,
    StatusChange,
    report_data,
    report_event,
)
from backplane.errors import Conflict, NotFound, TooLarge
from backplane.store.bus.events import add_bus_events
from backplane.store.database import Database
from backplane.store.tables import ForeignText, Json, UtcDateTime, metadata, webhook_deliveries
from backplane.store.webhooks import add_message

DELIVERIES_MAX = 100
"""Messages about a service that are kept."""

services = Table(
    "services",
    metadata,
    Column("id", String(36), primary_key=True),
    Column("owner_id", ForeignKey("users.id"), nullable=False),
    Column("name", String(64), nullable=False),
    Column("spec", Json, nullable=False),
    Column("revision", Integer, nullable=False),
    Column("created_at", UtcDateTime, nullable=False),
    Column("updated_at", UtcDateTime, nullable=False),
    Column("deleted_at", UtcDateTime),
    Column("status", String(16), nullable=False),
    Column("since", UtcDateTime),
    Column("checked_at", UtcDateTime),
    Column("reason", ForeignText, nullable=False),
    Column("latency_ms", Float),
    Column("streak", Integer, nullable=False),
    Column("changes", Json, nullable=False),
    Column("flapping_since", UtcDateTime),
    Column("checks", BigInteger, nullable=False),
    Column("container", String(16), nullable=False),
    Column("container_reason", ForeignText, nullable=False),
    UniqueConstraint("name"),
)

service_changes = Table(
    "service_changes",
    metadata,
    Column("number", BigInteger().with_variant(Integer, "sqlite"), primary_key=True),
    Column("service_id", ForeignKey("services.id", ondelete="CASCADE"), nullable=False),
    Column("at", UtcDateTime, nullable=False),
    Column("status", String(16), nullable=False),
    Column("reason", ForeignText, nullable=False),
    Index("ix_service_changes_service_id_number", "service_id", "number"),
    sqlite_autoincrement=True,
)


class Services:
    def __init__(self, database: Database) -> None:
        self._database = database

    async def create(self, owner_id: str, name: str, spec: ServiceSpec, *, most: int) -> Service:
        """Raises Conflict where the name is taken, TooLarge when there are `most` already."""

        def write(connection: Connection) -> Service:
            count = connection.scalar(select(func.count()).select_from(services)) or 0
            if count >= most:
                raise TooLarge(f"there are {most} services, and no more may be: delete one that is not needed any more")
            made = insert(services).values(_new(owner_id, name, spec)).returning(services)
            return _service(connection.execute(made).one())

        try:
            return await self._database.write(write)
        except IntegrityError:
            raise Conflict(f"there is a service {name} already; PUT /api/nas/services/{name} changes it") from None

    async def list_all(self) -> list[Service]:
        """By name, also those that are being deleted."""
        query = select(services).order_by(services.c.name)
        return [_service(row) for row in await self._database.read(lambda connection: connection.execute(query).all())]

    async def get(self, id_or_name: str) -> Service:
        """Raises NotFound."""
        query = select(services).where(or_(services.c.id == id_or_name, services.c.name == id_or_name))
        row = await self._database.read(lambda connection: connection.execute(query).one_or_none())
        if row is None:
            raise _not_found(id_or_name)
        return _service(row)

    async def change(self, service: Service, spec: ServiceSpec) -> Service:
        """Declare it anew, as it was read. Its status stays until it is checked again. Raises NotFound, and Conflict
        where somebody else was quicker."""
        values: dict[str, Any] = {
            "spec": spec.as_json(),
            "revision": service.revision + 1,
            "updated_at": datetime.now(UTC),
            "checked_at": None,
        }
        # One that lost its image still has a container, until whoever runs containers has looked.
        if service.container is ContainerState.NONE:
            values |= {"container": _container_of(spec).value}

        def write(connection: Connection) -> Service:
            row = connection.execute(
                update(services)
                .where(services.c.id == service.id, services.c.revision == service.revision)
                .where(services.c.deleted_at.is_(None))
                .values(values)
                .returning(services)
            ).one_or_none()
            if row is None:
                raise _gone_or_changed(connection, service)
            return _service(row)

        return await self._database.write(write)

    async def delete(self, service: Service, *, force: bool = False) -> bool:
        """Whether it is gone. One that has a container goes when that is gone (`container_gone`), or with `force` at
        once: whoever runs containers removes one that has no service."""
        where = services.c.id == service.id

        def write(connection: Connection) -> bool:
            row = connection.execute(select(services).where(where).with_for_update()).one_or_none()
            if row is None:
                return True
            if force or row.container in (ContainerState.NONE.value, ContainerState.WAITING.value):
                _remove(connection, service.id)
                return True
            if row.deleted_at is None:
                state = {"deleted_at": datetime.now(UTC), "container": ContainerState.STOPPING.value}
                connection.execute(update(services).where(where).values(**state, container_reason=""))
            return False

        return await self._database.write(write)

    async def write_health(self, service: Service, judgement: Judgement) -> list[Announcement] | None:
        """Write what a check came to, with what follows from it; what the owner's readers are to be woken with. None:
        it was dropped, for another one was quicker or the service was changed."""
        health = judgement.health
        values = {
            "status": health.status.value,
            "since": health.since,
            "checked_at": health.checked_at,
            "reason": health.reason,
            "latency_ms": health.latency_ms,
            "streak": health.streak,
            "changes": [at.isoformat() for at in health.changes],
            "flapping_since": health.flapping_since,
            "checks": health.checks,
        }

        def write(connection: Connection) -> list[Announcement] | None:
            found = connection.execute(
                update(services)
                .where(services.c.id == service.id, services.c.revision == service.revision)
                .where(services.c.checks == service.health.checks, services.c.deleted_at.is_(None))
                .values(values)
            )
            if not found.rowcount:
                return None
            if judgement.changed:
                _add_change(connection, service.id, health)
            return _publish(connection, service, health, judgement.report) if judgement.report else []

        return await self._database.write(write)

    async def write_container(self, service: Service, state: ContainerState, reason: str = "") -> None:
        """Nothing where the service was changed or deleted meanwhile."""
        statement = (
            update(services)
            .where(services.c.id == service.id, services.c.revision == service.revision)
            .where(services.c.deleted_at.is_(None))
            .values(container=state.value, container_reason=reason)
        )
        await self._database.write(lambda connection: connection.execute(statement))

    async def container_gone(self, service_id: str) -> None:
        """Remove a service that is being deleted, once its container is gone."""

        def write(connection: Connection) -> None:
            which = select(services.c.id).where(services.c.id == service_id, services.c.deleted_at.is_not(None))
            if connection.scalar(which.with_for_update()) is not None:
                _remove(connection, service_id)

        await self._database.write(write)

    async def container_not_gone(self, service_id: str, reason: str) -> None:
        """Note why the container of a service that is being deleted is still there."""
        which = (services.c.id == service_id, services.c.deleted_at.is_not(None))
        statement = update(services).where(*which).values(container_reason=reason)
        await self._database.write(lambda connection: connection.execute(statement))

    async def history(self, service_id: str, before: int | None, limit: int) -> list[StatusChange]:
        """The newest first, older than number `before`."""
        query = select(service_changes).where(service_changes.c.service_id == service_id)
        if before is not None:
            query = query.where(service_changes.c.number < before)
        query = query.order_by(service_changes.c.number.desc()).limit(limit)
        return [
            StatusChange(row.number, row.at, ServiceStatus(row.status), row.reason)
            for row in await self._database.read(lambda connection: connection.execute(query).all())
        ]


def _new(owner_id: str, name: str, spec: ServiceSpec) -> dict[str, Any]:
    now, health = datetime.now(UTC), Health()
    return {
        "id": new_run_id(),
        "owner_id": owner_id,
        "name": name,
        "spec": spec.as_json(),
        "revision": 1,
        "created_at": now,
        "updated_at": now,
        "status": health.status.value,
        "reason": health.reason,
        "streak": health.streak,
        "changes": [],
        "checks": health.checks,
        "container": _container_of(spec).value,
        "container_reason": "",
    }


def _container_of(spec: ServiceSpec) -> ContainerState:
    return ContainerState.NONE if spec.container is None else ContainerState.WAITING


def _add_change(connection: Connection, service_id: str, health: Health) -> None:
    row = {"service_id": service_id, "at": health.since, "status": health.status.value, "reason": health.reason}
    connection.execute(insert(service_changes).values(row))
    oldest_kept = (
        select(service_changes.c.number)
        .where(service_changes.c.service_id == service_id)
        .order_by(service_changes.c.number.desc())
        .offset(HISTORY_MAX - 1)
        .limit(1)
    )
    number = connection.scalar(oldest_kept)
    if number is not None:
        old = (service_changes.c.service_id == service_id, service_changes.c.number < number)
        connection.execute(delete(service_changes).where(*old))


def _publish(connection: Connection, service: Service, health: Health, report: Report) -> list[Announcement]:
    """The event of the owner, and the message to the service's webhook."""
    event = report_event(service, health, report)
    if service.spec.webhook_url is not None:
        _trim_deliveries(connection, service.id)
        message_id = new_run_id()
        body = {"event": report.value, "delivery_id": message_id, **report_data(service, health)}
        add_message(
            connection,
            {
                "id": message_id,
                "service_id": service.id,
                "user_id": service.owner_id,
                "url": service.spec.webhook_url,
                "event": report.value,
                "body": json.dumps(body, separators=(",", ":")),
            },
        )
    stored = add_bus_events(connection, service.owner_id, [event])
    return [Announcement(service.owner_id, event.type, each.cursor) for each in stored.published if each.is_new]


def _trim_deliveries(connection: Connection, service_id: str) -> None:
    deliveries = webhook_deliveries.c
    of_service = select(deliveries.id).where(deliveries.service_id == service_id).order_by(deliveries.id.desc())
    old = connection.scalars(of_service.offset(DELIVERIES_MAX - 1)).all()
    if old:
        connection.execute(delete(webhook_deliveries).where(deliveries.id.in_(old)))


def _remove(connection: Connection, service_id: str) -> None:
    connection.execute(delete(webhook_deliveries).where(webhook_deliveries.c.service_id == service_id))
    connection.execute(delete(services).where(services.c.id == service_id))


def _service(row: Row[Any]) -> Service:
    values = row._mapping
    health = Health(
        status=ServiceStatus(row.status),
        changes=tuple(datetime.fromisoformat(at) for at in row.changes),
        **{name: values[name] for name in ("since", "checked_at", "reason", "latency_ms", "streak", "flapping_since")},
        checks=row.checks,
    )
    return Service(
        spec=ServiceSpec.of_json(row.spec),
        health=health,
        container=ContainerState(row.container),
        **{
            name: values[name]
            for name in (
                *("id", "owner_id", "name", "revision"),
                *("created_at", "updated_at", "container_reason", "deleted_at"),
            )
        },
    )


def _gone_or_changed(connection: Connection, service: Service) -> NotFound | Conflict:
    row = connection.execute(select(services).where(services.c.id == service.id)).one_or_none()
    if row is None:
        return _not_found(service.name)
    if row.deleted_at is not None:
        return Conflict(f"service {service.name} is being deleted; make it again when it is gone")
    return Conflict(f"service {service.name} was changed by somebody else meanwhile; read it and send the change again")


def _not_found(id_or_name: str) -> NotFound:
    return NotFound(f"there is no service {id_or_name}; GET /api/nas/services lists those there are")
