"""The loop of deployments with a target that does not come to an end: whom it keeps waiting."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any, cast

import pytest
from prometheus_client import CollectorRegistry

from backplane.domain.deployments import Rollout
from backplane.process.tasks import end
from controller.deployments import loop
from controller.deployments.loop import DeploymentsLoop
from controller.deployments.metrics import DeploymentMetrics
from controller.deployments.target import SeenDeployment
from tests.deployed_agents import NOW, deployment_of


class Hanging:
    """A target, a store and a lease. What it applies for eve never ends."""

    is_certain = False

    def __init__(self) -> None:
        self.rows = [replace(deployment_of(), id=f"{number}", user_id="eve") for number in range(loop.AT_ONCE)]
        self.applied, self.gone_ids = list[str](), list[str]()

    async def leads(self) -> bool:
        return True

    async def keys_of_all(self) -> Any:
        return {row.id: (row.version, 0, NOW) for row in self.rows}

    async def of_ids(self, ids: Any) -> Any:
        return [row for row in self.rows if row.id in ids]

    async def look(self, _: Any) -> None: ...

    def seen(self, _: Any) -> SeenDeployment:
        return SeenDeployment(Rollout(), False)

    async def apply(self, deployment: Any) -> None:
        if deployment.user_id == "eve":
            await asyncio.Event().wait()
        self.applied.append(deployment.id)

    async def remove(self, _: Any) -> str:
        return ""

    def left(self) -> Any:
        return []

    async def write_rollout(self, *_: Any) -> bool:
        return False

    async def gone(self, deployment: Any) -> None:
        self.gone_ids.append(deployment.id)


@pytest.fixture
async def hanging(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[tuple[Hanging, DeploymentsLoop]]:
    monkeypatch.setattr(loop, "PASS_SECONDS", 0.05)
    there = cast(Any, Hanging())
    made = DeploymentsLoop(there, there, there, DeploymentMetrics(CollectorRegistry()))
    yield there, made
    await end(*made._at_work.values())


async def test_what_hangs_for_one_user_keeps_no_other_waiting(hanging: tuple[Hanging, DeploymentsLoop]) -> None:
    there, made = hanging
    there.rows.append(replace(deployment_of(), id="other", user_id="ada"))
    await made.work()
    assert there.applied == ["other"]


async def test_what_hangs_is_given_up_when_something_else_is_wanted(hanging: tuple[Hanging, DeploymentsLoop]) -> None:
    there, made = hanging
    await made.work()
    there.rows = [replace(there.rows[0], version=2, deleted_at=NOW)]
    await made.work()
    assert there.gone_ids == ["0"]
