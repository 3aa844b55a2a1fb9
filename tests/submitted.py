"""Runs as tests make them: a row, and plans short enough to be read where they are used."""

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from backplane.domain.runs import Priority, Run, RunStatus, new_run_id
from backplane.domain.users import User
from backplane.store.run_transaction import RunTransaction


def new_run(user: User, **values: Any) -> Run:
    """A run that is not stored yet; `values` are fields of Run."""
    settled = {
        "id": new_run_id(),
        "user_id": user.id,
        "status": RunStatus.CREATED,
        "priority": Priority.NORMAL,
        "prompt": "```sh\ntrue\n```",
        "created_at": datetime.now(UTC),
        "timeout_seconds": 60,
        "max_retries": 0,
    }
    return Run(**{**settled, **values})


def plan(*steps: dict[str, Any]) -> dict[str, Any]:
    return {"steps": list(steps)}


def shell(id: str, script: str, **more: Any) -> dict[str, Any]:
    return {"id": id, "tool": "shell", "arguments": {"script": script}, **more}


def write(id: str, path: str, content: str = "", **more: Any) -> dict[str, Any]:
    return {"id": id, "tool": "file_write", "arguments": {"path": path, "content": content}, **more}


def together(*writes: Callable[[RunTransaction], None]) -> Callable[[RunTransaction], None]:
    """Several writes of a running run as one."""

    def write(transaction: RunTransaction) -> None:
        for one in writes:
            one(transaction)

    return write
