"""Deployments whose replicas are servers of the test, and answers that come in pieces."""

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

from backplane.domain.deployments import Deployment, DeploymentStatus, Rollout
from backplane.domain.users import User
from backplane.store import Store
from tests.deployments import new_deployment
from tests.integration.tools.site import Answer

IDEMPOTENT: dict[str, Any] = {"spec__deployment__idempotent": True}


async def deployed(store: Store, user: User, *urls: str, agent_id: str = "writer", **values: Any) -> Deployment:
    """A deployment of the user that runs at these addresses. `values`: its namespace, and changes of its manifest."""
    namespace = values.pop("namespace", f"of-{user.name}")
    made, _ = await store.deployments.create(user, new_deployment(agent_id, namespace, **values), most=10)
    rollout = Rollout(revision=1, replicas=len(urls), ready_replicas=len(urls), is_complete=True, urls=urls)
    assert await store.deployments.write_rollout(made, rollout, DeploymentStatus.RUNNING, "")
    return made


def in_pieces(pieces: Callable[[], AsyncIterator[bytes]], type: str, *, ends: bool = True) -> Answer:
    """Each piece is sent when it is there. `ends` False: the connection is cut after the last one."""

    async def answer(writer: asyncio.StreamWriter) -> None:
        head = f"HTTP/1.1 200 OK\r\nContent-Type: {type}\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n"
        writer.write(head.encode())
        async for piece in pieces():
            writer.write(f"{len(piece):x}\r\n".encode() + piece + b"\r\n")
            await writer.drain()
        if ends:
            writer.write(b"0\r\n\r\n")

    return answer


def all_at_once(*pieces: bytes) -> Callable[[], AsyncIterator[bytes]]:
    async def each() -> AsyncIterator[bytes]:
        for piece in pieces:
            yield piece

    return each


def in_turn(*answers: Answer) -> Answer:
    """The first call has the first answer, and so on; further ones have the last."""
    left = list(answers)

    async def answer(writer: asyncio.StreamWriter) -> None:
        await (left.pop(0) if len(left) > 1 else left[0])(writer)

    return answer
