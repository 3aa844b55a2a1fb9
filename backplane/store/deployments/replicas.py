"""How many replicas a user's deployments may have in all: a cap that is checked with each change that wants more.

An autoscaled deployment counts its `max_replicas`, since nobody is asked before it has them. A revision that waits for
an administrator counts already, so that its approval is never refused for this.
"""

from sqlalchemy import Connection, func, or_, select

from backplane.domain.deployments import Deployment, replicas_at_most
from backplane.errors import TooLarge
from backplane.store.deployments.rows import deployment_of, whole
from backplane.store.deployments.tables import deployments
from backplane.store.tables import users


def check_replicas(connection: Connection, before: Deployment | None, after: Deployment, most: int | None) -> None:
    """`before` None: it is new. `most` None: there is no cap. What wants no more than before fits always: a user may be
    over a cap that was lowered since. Raises TooLarge."""
    wanted = replicas_at_most(after)
    if most is None or wanted <= (replicas_at_most(before) if before is not None else 0):
        return
    # One writer a user at a time, so that two changes cannot both be the last that fits.
    connection.execute(select(users.c.id).where(users.c.id == after.user_id).with_for_update())
    others = _others(connection, after)
    if others + wanted > most:
        raise TooLarge(
            f"it would have up to {wanted} replicas, and your other deployments have {others}: {most} in all may be "
            "(an autoscaled one counts its max_replicas); scale one down, or delete it"
        )


def _others(connection: Connection, one: Deployment) -> int:
    """Of the user's other deployments, also of those that are not gone yet. Only where the row's number does not say
    all are manifests read."""
    columns = deployments.c
    others = (columns.user_id == one.user_id, columns.id != one.id)
    needs_manifest = or_(columns.replicas.is_(None), columns.effective.is_(None), columns.effective != columns.revision)
    simple = connection.scalar(select(func.sum(columns.replicas)).where(*others, ~needs_manifest)) or 0
    rows = connection.execute(whole().where(*others, needs_manifest))
    return int(simple) + sum(replicas_at_most(deployment_of(row)) for row in rows)
