"""The outbox of webhooks, and the secrets that sign what goes out of it.

A delivery is written with the state that it reports, in one transaction, so it can neither be lost nor report what did
not happen. Any number of controllers work it off: a claim pushes the row's `next_at` a lease into the future, so two
never have the same one, and one that a killed controller had is due again when the lease is over. The times are the
database's own, so that clocks of machines which differ delay nothing and claim nothing twice.

Secrets are stored as they are, since they sign: whoever reads the database can sign in the platform's name.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import (
    Column,
    Connection,
    ForeignKey,
    Row,
    String,
    Table,
    bindparam,
    func,
    insert,
    select,
    text,
    update,
)

from backplane.domain.runs import Run, RunStatus, new_run_id
from backplane.domain.webhooks import (
    Delivery,
    DeliveryState,
    DeliveryStatus,
    WebhookSecret,
    event_of,
    message,
    new_secret,
)
from backplane.store.clock import database_now
from backplane.store.database import Database
from backplane.store.tables import UtcDateTime, decisions, metadata, webhook_deliveries

webhook_secrets = Table(
    "webhook_secrets",
    metadata,
    Column("user_id", ForeignKey("users.id"), primary_key=True),
    Column("secret", String(64), nullable=False),
    Column("created_at", UtcDateTime, nullable=False),
    Column("previous", String(64)),
    Column("previous_until", UtcDateTime),
)

_PENDING = webhook_deliveries.c.status == text("'pending'")  # as the index has it
_ANY_DUE = select(text("1")).where(_PENDING, webhook_deliveries.c.next_at <= bindparam("now")).limit(1)
_UPDATE_PENDING = update(webhook_deliveries).where(webhook_deliveries.c.id == bindparam("of_delivery"), _PENDING)
_SECRET = select(webhook_secrets).where(webhook_secrets.c.user_id == bindparam("of_user"))
_ADD_SECRET = text(
    "INSERT INTO webhook_secrets (user_id, secret, created_at) VALUES (:user_id, :secret, :now) ON CONFLICT DO NOTHING"
).bindparams(bindparam("now", type_=UtcDateTime))

_OPEN_DECISIONS = (
    select(decisions.c.id, decisions.c.kind, decisions.c.step_id)
    .where(decisions.c.run_id == bindparam("of_run"), decisions.c.status == text("'pending'"))
    .order_by(decisions.c.id)
    .limit(100)
)


def add_delivery(connection: Connection, run: Run) -> None:
    """Add a message for the run's webhook, if it has one, about the state that it has just entered."""
    if run.webhook_url is None:
        return
    delivery_id = new_run_id()
    add_message(
        connection,
        {
            "id": delivery_id,
            "run_id": run.id,
            "user_id": run.user_id,
            "url": run.webhook_url,
            "event": event_of(run),
            "body": message(run, delivery_id, _asked(connection, run)),
        },
    )


def add_message(connection: Connection, values: Mapping[str, Any]) -> None:
    """Add a message that is sent as soon as this transaction is committed. `values`: id, user_id, url, event and body,
    and run_id or service_id."""
    connection.execute(
        insert(webhook_deliveries).values(
            **values,
            created_at=datetime.now(UTC),
            next_at=func.now(),
            attempts=0,
            status=DeliveryStatus.PENDING.value,
        )
    )


def _asked(connection: Connection, run: Run) -> list[dict[str, str]]:
    """Which decisions a waiting run needs. The receiver asks the API for their content: it may be long, and secret."""
    if run.status is not RunStatus.WAITING:
        return []
    rows = connection.execute(_OPEN_DECISIONS, {"of_run": run.id})
    return [{"decision_id": row.id, "kind": row.kind, "step": row.step_id} for row in rows]


class Webhooks:
    def __init__(self, database: Database) -> None:
        self._database = database

    async def claim(
        self, limit: int, *, lease_seconds: float, user_limit: int, sending: Mapping[str, int]
    ) -> list[Delivery]:
        """Up to `limit` deliveries that are due, the longest due first; nobody else gets them before the lease ends.

        `user_limit`: the most of one user at once, with what the caller is already `sending` by user, so that nobody's
        slow receiver holds up those of others.
        """

        def look(connection: Connection) -> bool:
            return connection.scalar(_ANY_DUE, {"now": database_now(connection)}) is not None

        def write(connection: Connection) -> list[Delivery]:
            now, taken, shares = database_now(connection), list[Row[Any]](), Counter(sending)
            while len(taken) < limit:
                busy = [user_id for user_id, share in shares.items() if share >= user_limit]
                # Whoever's they are, no user gets over the limit by so many more.
                room = user_limit - max((share for share in shares.values() if share < user_limit), default=0)
                most = min(limit - len(taken), room)
                found = _claim(connection, most, busy, now, now + timedelta(seconds=lease_seconds))
                if not found:
                    break
                taken += found
                shares.update(row.user_id for row in found)
            signing = _signing_secrets(connection, {row.user_id for row in taken}, now)
            return [_delivery(row, signing[row.user_id]) for row in taken]

        # Most of the time there is nothing, and a look locks nothing.
        return await self._database.write(write) if await self._database.read(look) else []

    async def delivered(self, delivery: Delivery, response_code: int) -> None:
        """Write that the message has arrived, whichever controller claimed it meanwhile."""
        values = {"status": DeliveryStatus.DELIVERED.value, "response_code": response_code, "last_error": None}
        statement = _UPDATE_PENDING.values(values)
        await self._database.write(lambda connection: connection.execute(statement, {"of_delivery": delivery.id}))

    async def failed(self, delivery: Delivery, error: str, response_code: int | None, pause: float | None) -> None:
        """Write that an attempt failed: the message is tried again after so many seconds, or (None) given up. Nothing
        is changed when another controller has claimed it."""

        def write(connection: Connection) -> None:
            changes: dict[str, Any] = {"last_error": error, "response_code": response_code}
            if pause is None:
                changes |= {"status": DeliveryStatus.GIVEN_UP.value}
            else:
                changes |= {"next_at": database_now(connection) + timedelta(seconds=pause)}
            still_ours = _UPDATE_PENDING.where(webhook_deliveries.c.attempts == delivery.attempt)
            connection.execute(still_ours.values(changes), {"of_delivery": delivery.id})

        await self._database.write(write)

    async def last_of(self, run_id: str) -> DeliveryState | None:
        """What became of the run's newest delivery."""
        deliveries = webhook_deliveries.c
        query = select(webhook_deliveries).where(deliveries.run_id == run_id).order_by(deliveries.id.desc()).limit(1)
        row = await self._database.read(lambda connection: connection.execute(query).one_or_none())
        if row is None:
            return None
        status = DeliveryStatus(row.status)
        return DeliveryState(row.event, status, row.attempts, row.last_error, row.response_code, row.next_at)

    async def secret(self, user_id: str) -> WebhookSecret:
        """The user's, made when there is none."""
        return await self._database.write(lambda connection: _secret(connection, user_id, database_now(connection)))

    async def rotate_secret(self, user_id: str, *, overlap_seconds: float) -> WebhookSecret:
        """Make a new secret. The one before it signs too for so long; an older one no more."""

        def write(connection: Connection) -> WebhookSecret:
            now = database_now(connection)
            _secret(connection, user_id, now)
            previous = {
                "previous": webhook_secrets.c.secret,
                "previous_until": now + timedelta(seconds=overlap_seconds),
            }
            connection.execute(
                update(webhook_secrets)
                .where(webhook_secrets.c.user_id == user_id)
                .values(secret=new_secret(), created_at=now, **previous)
            )
            return _secret(connection, user_id, now)

        return await self._database.write(write)


def _claim(
    connection: Connection, most: int, busy: Sequence[str], now: datetime, until: datetime
) -> Sequence[Row[Any]]:
    deliveries = webhook_deliveries.c
    due = select(deliveries.id).where(_PENDING, deliveries.next_at <= now)
    if busy:
        due = due.where(deliveries.user_id.not_in(busy))
    # Not an IN over the query itself, which PostgreSQL may run more than once, and claim more than `most`.
    ids = connection.scalars(due.order_by(deliveries.next_at).limit(most).with_for_update(skip_locked=True)).all()
    if not ids:
        return []
    return connection.execute(
        update(webhook_deliveries)
        .where(deliveries.id.in_(ids))
        .values(next_at=until, attempts=deliveries.attempts + 1)
        .returning(webhook_deliveries)
    ).all()


def _delivery(row: Row[Any], secrets: tuple[str, ...]) -> Delivery:
    return Delivery(row.id, row.run_id, row.user_id, row.url, row.event, row.body, row.attempts, secrets)


def _secret(connection: Connection, user_id: str, now: datetime) -> WebhookSecret:
    row = connection.execute(_SECRET, {"of_user": user_id}).one_or_none()
    if row is None:
        connection.execute(_ADD_SECRET, {"user_id": user_id, "secret": new_secret(), "now": now})
        row = connection.execute(_SECRET, {"of_user": user_id}).one()
    if row.previous_until is None or row.previous_until <= now:
        return WebhookSecret(row.secret)
    return WebhookSecret(row.secret, row.previous, row.previous_until)


def _signing_secrets(connection: Connection, user_ids: Iterable[str], now: datetime) -> dict[str, tuple[str, ...]]:
    found = {user_id: _secret(connection, user_id, now) for user_id in sorted(user_ids)}
    return {
        user_id: (kept.secret, kept.previous) if kept.previous else (kept.secret,) for user_id, kept in found.items()
    }
