"""Agents as values, for tests that need no database."""

from datetime import UTC, datetime
from typing import Any

from backplane.domain.agents import Agent
from backplane.domain.runs import Priority, Run, RunStatus

AT = datetime(2026, 1, 2, tzinfo=UTC)
AGENT_ID = "01900000-0000-7000-8000-000000000001"


def agent_at_turn(**values: Any) -> tuple[Agent, Run]:
    """An agent, and its first message, running. `values`: of the run."""
    agent = Agent(AGENT_ID, "user", "helper_pool", "ada", 1, AT, AT, turns=1)
    settled = {"prompt": "hello", "status": RunStatus.RUNNING, "priority": Priority.NORMAL, "created_at": AT}
    settled |= {"timeout_seconds": 60, "max_retries": 0, "agent_id": AGENT_ID, "turn": 1}
    return agent, Run(id="run", user_id="user", **{**settled, **values})
