"""Circles of agents that wait for one another.

An agent that asks another one waits for it until the question is over, and carries out nothing else meanwhile. So
where the other one waits for the first, by way of any number of agents, no answer can ever come. The question that
would close such a circle is refused.

Questions of one user are sent one after another (`lock_questions`): of two that close a circle together, the second
sees the first.
"""

from sqlalchemy import Connection, bindparam, select

from backplane.domain.runs import Run
from backplane.errors import AskCircle
from backplane.store.agents.tables import agents
from backplane.store.tables import runs, users

_USER = select(users.c.id).where(users.c.id == bindparam("of_user")).with_for_update(key_share=True)
_WAITS_FOR = (
    select(agents.c.id, runs.c.agent_id)
    .join(runs, runs.c.parent_id == agents.c.open_run_id)
    .where(
        agents.c.id.in_(bindparam("askers", expanding=True)),
        runs.c.agent_id.is_not(None),
        runs.c.finished_at.is_(None),
    )
)


def lock_questions(connection: Connection, user_id: str) -> None:
    """Let no other question of the user's be sent until the transaction ends. It comes before all other locks."""
    connection.execute(_USER, {"of_user": user_id})


def refuse_circle(connection: Connection, question: Run, asker_id: str) -> None:
    """Raises AskCircle where the agent that is asked waits for the asker. The questions are locked already."""
    asked_id = question.agent_id or ""
    asked_by: dict[str, str | None] = {asked_id: None}
    found = [asked_id]
    while found and asker_id not in asked_by:
        rows = connection.execute(_WAITS_FOR, {"askers": found}).all()
        found = []
        for asker, asked in rows:
            if asked not in asked_by:
                asked_by[asked] = asker
                found.append(asked)
    if asker_id not in asked_by:
        return
    path = list[str]()
    at: str | None = asker_id
    while at is not None:
        path.append(at)
        at = asked_by[at]
    named = connection.execute(select(agents.c.id, agents.c.name).where(agents.c.id.in_(path)))
    names = {row.id: row.name for row in named}
    if len(path) == 1:
        raise AskCircle(f"agent {names.get(asker_id)} asks itself, and can give no answer while it waits for one")
    shown = " waits for ".join(names.get(one, one) for one in reversed(path))
    raise AskCircle(
        f"the agents would wait for one another for ever: {shown}, which asks {names.get(asked_id)}. Answer without "
        "it, or send a message in place of a question"
    )
