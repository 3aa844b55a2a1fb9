"""A controller that is killed at any of its writes, and two at once: nothing is made twice, and nothing forgotten."""

import asyncio

from backplane.domain.deployments import DeploymentStatus
from tests.deployed_agents import agent_manifest
from tests.integration.deployments.conftest import Beside
from tests.waiting import wait_until

RUNNING = DeploymentStatus.RUNNING
ONE_OF_EACH = {
    **dict.fromkeys(("deployments", "services", "networkpolicies", "poddisruptionbudgets"), 1),
    "pods": 2,
}


async def killed_at(beside: Beside, number: int) -> bool:
    """A controller works until its write with this number is done, and does nothing more. False: it came to rest
    before."""
    beside.cluster.writes, beside.cluster.hangs_after = 0, number
    async with beside.controller(alone=False):
        try:
            async with asyncio.timeout(1.5):
                await beside.cluster.hanging.wait()
            was_killed = True
        except TimeoutError:
            was_killed = False
    beside.cluster.let_go()
    return was_killed


async def test_a_controller_that_is_killed_at_any_write_makes_nothing_twice(beside: Beside) -> None:
    number, was_killed = 0, True
    while was_killed:
        number += 1
        made = await beside.deploy(agent_manifest(scaling={"min_replicas": 2}), f"agent-{number}")
        was_killed = await killed_at(beside, number)
        async with beside.controller():
            await beside.until(made, lambda it: it.status is RUNNING and it.rollout.is_complete)
            assert beside.kinds() == ONE_OF_EACH
            await beside.store.deployments.delete(made.id, beside.user, 0)
            await beside.until_gone(made)
        beside.cluster.take_away_namespace(made.namespace)
        assert beside.kinds() == {}
    # Namespace, account, policy, service, budget and Deployment.
    assert number == 7


async def test_a_controller_that_is_killed_at_any_write_forgets_nothing_that_is_to_go(beside: Beside) -> None:
    number, was_killed = 0, True
    while was_killed:
        number += 1
        made = await beside.deploy(agent_manifest(scaling={"min_replicas": 2}), f"agent-{number}")
        async with beside.controller():
            await beside.until(made, lambda it: it.status is RUNNING and it.rollout.is_complete)
        await beside.store.deployments.delete(made.id, beside.user, 0)
        was_killed = await killed_at(beside, number)
        async with beside.controller():
            await beside.until_gone(made)
        assert beside.kinds() == {}
    assert number > 5


async def test_a_controller_that_is_killed_at_any_write_of_a_rollout_comes_to_the_newest_revision(
    beside: Beside,
) -> None:
    made = await beside.deploy(agent_manifest(scaling={"min_replicas": 2}))
    async with beside.controller():
        await beside.until(made, lambda it: it.status is RUNNING and it.rollout.is_complete)
    number, was_killed = 0, True
    while was_killed:
        number += 1
        changed = await beside.store.deployments.revise(made.id, beside.user, image=f"image:{number + 1}")
        was_killed = await killed_at(beside, number)
        async with beside.controller():
            revision = changed.current.number
            await beside.until(made, lambda it, n=revision: it.rollout.revision == n and it.rollout.is_complete)  # type: ignore[misc]
        assert beside.kinds() == ONE_OF_EACH
        [live] = beside.cluster.of("deployments")
        assert live["spec"]["template"]["spec"]["containers"][0]["image"] == f"image:{number + 1}"


async def test_two_controllers_at_once_make_one_of_each(beside: Beside) -> None:
    made = [await beside.deploy(agent_id=f"agent-{number}") for number in range(5)]
    async with beside.controller(alone=False), beside.controller(alone=False):
        for one in made:
            await beside.until(one, lambda it: it.status is RUNNING and it.rollout.is_complete)
        assert beside.kinds() == dict.fromkeys(("deployments", "services", "networkpolicies", "pods"), 5)
        for one in made:
            await beside.store.deployments.delete(one.id, beside.user, 0)
        for one in made:
            await beside.until_gone(one)

    async def is_empty() -> bool:
        return beside.kinds() == {}

    await wait_until(is_empty, 10)
