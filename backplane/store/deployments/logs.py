"""What the replicas of deployments printed: the newest lines of each, numbered.

Each line has how many characters there were up to its end, so what is over a cap is found without counting.
"""

from collections.abc import Iterable, Sequence
from datetime import datetime

from sqlalchemy import Connection, and_, delete, func, insert, select, update

from backplane.domain.deployments import (
    LOG_BATCH_LINES,
    LOG_CHARS_KEPT,
    LOG_LINE_CHARS,
    LOG_LINES_KEPT,
    LogPage,
    PrintedLine,
)
from backplane.domain.sizes import shortened
from backplane.store.deployments.rows import line_of, missing
from backplane.store.deployments.tables import deployment_log_lines, deployments

_LINES = deployment_log_lines.c
SLACK_CHARS = LOG_CHARS_KEPT // 16
"""So much more is kept before a look for what is over: that look reads many rows."""


def add_lines(connection: Connection, deployment_id: str, lines: Sequence[PrintedLine]) -> None:
    """The newest LOG_BATCH_LINES of them. Nothing where the deployment is gone."""
    kept, left_out = lines[-LOG_BATCH_LINES:], lines[:-LOG_BATCH_LINES]
    if not kept:
        return
    missed = len(left_out) + sum(line.left_out for line in left_out)
    texts = [shortened(line.text, LOG_LINE_CHARS) for line in kept]
    counted = (
        update(deployments)
        .where(deployments.c.id == deployment_id)
        .values(last_line=deployments.c.last_line + len(kept), log_chars=deployments.c.log_chars + sum(map(len, texts)))
        .returning(deployments.c.last_line, deployments.c.log_chars)
    )
    counts = connection.execute(counted).one_or_none()
    if counts is None:
        return
    number, chars = counts.last_line - len(kept), counts.log_chars - sum(map(len, texts))
    rows = []
    for line, text in zip(kept, texts, strict=True):
        number, chars = number + 1, chars + len(text)
        rows.append(
            {
                "deployment_id": deployment_id,
                "number": number,
                "replica": line.replica[:253],
                "text": text,
                "at": line.at,
                "left_out": line.left_out + missed,
                "end_chars": chars,
            }
        )
        missed = 0
    connection.execute(insert(deployment_log_lines), rows)
    _trim(connection, deployment_id, number, chars)


def lines_after(connection: Connection, deployment_id: str, cursor: int, limit: int) -> LogPage:
    """Raises NotFound."""
    last = connection.scalar(select(deployments.c.last_line).where(deployments.c.id == deployment_id))
    if last is None:
        raise missing(deployment_id)
    of_this = _LINES.deployment_id == deployment_id
    # The oldest comes with the lines, since a line may be removed between two statements.
    oldest = select(func.min(_LINES.number)).where(of_this)
    query = (
        select(*deployment_log_lines.c, oldest.scalar_subquery().label("oldest"))
        .where(of_this, _LINES.number > cursor)
        .order_by(_LINES.number)
        .limit(limit)
    )
    rows = connection.execute(query).all()
    found = rows[0].oldest if rows else connection.scalar(oldest)
    return LogPage(list(map(line_of, rows)), found or 0, max(last, rows[-1].number if rows else 0))


def last_numbers(connection: Connection, deployment_ids: Iterable[str]) -> dict[str, int]:
    """The number of the last line of each that is there."""
    query = select(deployments.c.id, deployments.c.last_line).where(deployments.c.id.in_(list(deployment_ids)))
    return {row.id: row.last_line for row in connection.execute(query)}


def last_times(connection: Connection, deployment_id: str) -> dict[str, tuple[datetime, int]]:
    """When the last line that is kept of each replica was printed, and how many lines have that time: a clock may give
    several lines the same."""
    at = func.max(_LINES.at, type_=_LINES.at.type).label("at")
    of_this = _LINES.deployment_id == deployment_id
    newest = select(_LINES.replica, at).where(of_this).group_by(_LINES.replica).subquery()
    query = (
        select(_LINES.replica, _LINES.at, func.count().label("number"))
        .join(newest, and_(newest.c.replica == _LINES.replica, newest.c.at == _LINES.at))
        .where(of_this)
        .group_by(_LINES.replica, _LINES.at)
    )
    return {row.replica: (row.at, row.number) for row in connection.execute(query)}


def _trim(connection: Connection, deployment_id: str, last: int, chars: int) -> None:
    of_this = _LINES.deployment_id == deployment_id
    connection.execute(delete(deployment_log_lines).where(of_this, _LINES.number <= last - LOG_LINES_KEPT))
    oldest = select(_LINES.end_chars).where(of_this).order_by(_LINES.number).limit(1)
    if chars - (connection.scalar(oldest) or chars) > LOG_CHARS_KEPT + SLACK_CHARS:
        connection.execute(delete(deployment_log_lines).where(of_this, _LINES.end_chars <= chars - LOG_CHARS_KEPT))
