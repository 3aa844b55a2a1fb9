"""Users' secrets, sealed: the store never has a value in plain text, nor a key.

What a run was given is kept with the run as well, as it was sealed then. A worker that takes the run over, and a run
that was made from it, have its files and its results, and must know what to redact in them.
"""

from collections.abc import Collection
from datetime import UTC, datetime
from hashlib import sha256

from sqlalchemy import Connection, bindparam, delete, func, insert, literal, select, text, update

from backplane.domain.secrets import SealedValue, Secret, SecretInfo
from backplane.errors import NotFound, TooLarge
from backplane.store.database import Database
from backplane.store.tables import run_secrets, secrets, users

_ONE = (secrets.c.user_id == bindparam("of_user"), secrets.c.name == bindparam("of_name"))
_INFO = select(secrets.c.name, secrets.c.tools, secrets.c.hosts, secrets.c.created_at, secrets.c.updated_at)

# Two workers may keep the same value at one moment.
_KEEP = text(
    "INSERT INTO run_secrets (run_id, name, version, sealed) VALUES (:run_id, :name, :version, :sealed) "
    "ON CONFLICT DO NOTHING"
)


class SecretStore:
    def __init__(self, database: Database) -> None:
        self._database = database

    async def put(self, user_id: str, secret: Secret, *, most: int) -> SecretInfo:
        """Keep it, in place of one of the same name. Raises TooLarge when that makes more than `most` of the user."""
        now = datetime.now(UTC)
        values = {
            "sealed": secret.sealed,
            "tools": list(secret.tools),
            "hosts": list(secret.hosts),
            "updated_at": now,
        }

        def write(connection: Connection) -> SecretInfo:
            # One writer a user at a time, so that two of them cannot both be the last that fits.
            connection.execute(select(users.c.id).where(users.c.id == user_id).with_for_update())
            which = {"of_user": user_id, "of_name": secret.name}
            created = connection.scalar(select(secrets.c.created_at).where(*_ONE), which)
            if created is not None:
                connection.execute(update(secrets).where(*_ONE), {**which, **values})
                return SecretInfo(secret.name, secret.tools, secret.hosts, created, now)
            count = connection.scalar(select(func.count()).where(secrets.c.user_id == user_id)) or 0
            if count >= most:
                raise TooLarge(f"a user has at most {most} secrets: delete one that is not needed any more")
            connection.execute(insert(secrets).values(user_id=user_id, name=secret.name, created_at=now, **values))
            return SecretInfo(secret.name, secret.tools, secret.hosts, now, now)

        return await self._database.write(write)

    async def list_of(self, user_id: str) -> list[SecretInfo]:
        query = _INFO.where(secrets.c.user_id == user_id).order_by(secrets.c.name)
        rows = await self._database.read(lambda connection: connection.execute(query).all())
        return [
            SecretInfo(row.name, tuple(row.tools), tuple(row.hosts), row.created_at, row.updated_at) for row in rows
        ]

    async def get(self, user_id: str, name: str) -> Secret:
        """Raises NotFound."""
        which = {"of_user": user_id, "of_name": name}
        row = await self._database.read(
            lambda connection: connection.execute(select(secrets).where(*_ONE), which).one_or_none()
        )
        if row is None:
            raise _not_found(name)
        return Secret(row.name, row.sealed, tuple(row.tools), tuple(row.hosts))

    async def delete(self, user_id: str, name: str) -> None:
        """Raises NotFound."""
        statement = delete(secrets).where(*_ONE)
        which = {"of_user": user_id, "of_name": name}
        if not await self._database.write(lambda connection: connection.execute(statement, which).rowcount):
            raise _not_found(name)

    async def kept_with_run(self, run_id: str) -> frozenset[SealedValue]:
        return await self._database.read(lambda connection: _kept_with(connection, run_id))

    async def named(self, user_id: str, names: Collection[str]) -> frozenset[SealedValue]:
        """The user's secrets of these names, as they are now; names of which there is none are left out."""
        query = select(secrets.c.name, secrets.c.sealed).where(secrets.c.user_id == user_id, secrets.c.name.in_(names))
        rows = await self._database.read(lambda connection: connection.execute(query).all())
        return frozenset(SealedValue(row.name, row.sealed) for row in rows)

    async def keep_with_run(self, run_id: str, values: Collection[SealedValue]) -> None:
        """Keep these values until the run is removed. Those that are kept already stay as they are."""

        def write(connection: Connection) -> None:
            for value in sorted(values):
                version = sha256(value.sealed.encode()).hexdigest()
                connection.execute(_KEEP, {"run_id": run_id, "version": version, **value._asdict()})

        await self._database.write(write)


def copy_run_secrets(connection: Connection, source_id: str, run_id: str) -> None:
    """Copy the kept secrets of a run to one that is made from it."""
    copied = select(literal(run_id), run_secrets.c.name, run_secrets.c.version, run_secrets.c.sealed)
    columns = ["run_id", "name", "version", "sealed"]
    connection.execute(insert(run_secrets).from_select(columns, copied.where(run_secrets.c.run_id == source_id)))


def _kept_with(connection: Connection, run_id: str) -> frozenset[SealedValue]:
    query = select(run_secrets.c.name, run_secrets.c.sealed).where(run_secrets.c.run_id == run_id)
    return frozenset(SealedValue(row.name, row.sealed) for row in connection.execute(query))


def _not_found(name: str) -> NotFound:
    return NotFound(f"there is no secret {name}")
