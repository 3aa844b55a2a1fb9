"""Keep with each run of an older release the secrets that it may have been given, as they are now.

Since 0007 a worker keeps a value with the run before it hands the value out. A run that began before that has nothing
kept, so the value would be shown once the secret is changed or deleted. Such a run may have been given what is named by
its prompt, its plans, its edited arguments, or the run that it was made from; and through MCP servers each secret that
allows the tool `mcp`. Runs that are over count too: they can be retried, forked and replayed, and their files may hold
a value.

Sealed values are copied as they are: no key is needed. A value that was changed before this migration is not known.
"""

import json
import re
from collections import defaultdict
from collections.abc import Iterator
from hashlib import sha256
from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None

# As they were at this revision: a migration must not change with the code.
REFERENCE = re.compile(r"(?<!\$)\$\{secrets\.([A-Z][A-Z0-9_]{0,63})\}")
LIKE_REFERENCE = "%${secrets.%"
PAGE_ROWS = 200

KEEP = sa.text(
    "INSERT INTO run_secrets (run_id, name, version, sealed) VALUES (:run_id, :name, :version, :sealed) "
    "ON CONFLICT DO NOTHING"
)


def upgrade() -> None:
    secrets = _secrets_by_user()
    if not secrets:
        return
    users: dict[str, str] = {}
    names: defaultdict[str, set[str]] = defaultdict(set)
    for table, key, column in (
        ("runs", "id", "prompt"),
        ("runs", "id", "given_plan"),
        ("runs", "id", "plan"),
        ("plan_versions", "run_id", "plan"),
        ("decisions", "run_id", "answer"),
    ):
        for run_id, written in _rows(
            f"SELECT {key}, {column} FROM {table} WHERE {column} LIKE :reference",  # noqa: S608 - names from above
            reference=LIKE_REFERENCE,
        ):
            names[run_id].update(REFERENCE.findall(written))
    for run_id, user_id, servers, origin in _rows("SELECT id, user_id, mcp_servers, origin FROM runs ORDER BY id"):
        users[run_id] = user_id
        # Ids of runs begin with their time: the one that a run was made from comes before it.
        if origin is not None and (known := names.get(json.loads(origin).get("run_id"))):
            names[run_id] |= known
        if servers is not None and json.loads(servers):
            names[run_id].update(name for name, (_, tools) in secrets.get(user_id, {}).items() if "mcp" in tools)
    kept = [
        {"run_id": run_id, "name": name, "version": sha256(sealed.encode()).hexdigest(), "sealed": sealed}
        for run_id, named in names.items()
        for name, (sealed, _) in secrets.get(users[run_id], {}).items()
        if name in named
    ]
    if kept:
        op.get_bind().execute(KEEP, kept)


def _secrets_by_user() -> dict[str, dict[str, tuple[str, list[str]]]]:
    """Each user's secrets by name: the sealed value and the tools that it allows."""
    found: defaultdict[str, dict[str, tuple[str, list[str]]]] = defaultdict(dict)
    for user_id, name, sealed, tools in _rows("SELECT user_id, name, sealed, tools FROM secrets"):
        found[user_id][name] = (sealed, json.loads(tools))
    return found


def _rows(statement: str, **values: str) -> Iterator[Any]:
    """A page at a time: the texts of a run may be large."""
    query = sa.text(statement).execution_options(yield_per=PAGE_ROWS)
    yield from op.get_bind().execute(query, values)


def downgrade() -> None:
    """What is kept stays: it is what 0007 is for."""
