"""Controllers that are killed between any two of their writes, two at once, and logs that go on after a loss."""

from collections import Counter
from typing import Any

import pytest

from backplane.domain.deployments import Deployment, DeploymentStatus
from backplane.kubernetes.api import ApiServer
from controller.deployments.target import DeployTarget, Removal
from tests.deployed_agents import agent_manifest
from tests.kubernetes.deployments.conftest import Deploying, serving
from tests.waiting import wait_until

RUNNING = DeploymentStatus.RUNNING
COUNTING = """
import http.server, threading, time
class Answer(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
    def log_message(self, *words):
        pass
threading.Thread(target=http.server.HTTPServer(("", 3000), Answer).serve_forever, daemon=True).start()
number = 0
while True:
    print(number, flush=True)
    number += 1
    time.sleep(0.02)
"""


class Killed(BaseException):
    """As if the process had gone, with its request sent."""


class Writes:
    """Counts the writes to the cluster, and kills after number `last`; None: never."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.done = 0
        self.last: int | None = None
        call, apply = ApiServer.call, ApiServer.apply

        async def counted_call(api: ApiServer, method: str, *rest: Any, **options: Any) -> Any:
            answer = await call(api, method, *rest, **options)
            if method != "GET":
                self._count()
            return answer

        async def counted_apply(api: ApiServer, *rest: Any, **options: Any) -> Any:
            answer = await apply(api, *rest, **options)
            self._count()
            return answer

        monkeypatch.setattr(ApiServer, "call", counted_call)
        monkeypatch.setattr(ApiServer, "apply", counted_apply)

    def _count(self) -> None:
        self.done += 1
        if self.done == self.last:
            raise Killed


async def apply(target: DeployTarget, deployment: Deployment) -> bool:
    """Whether it is as declared afterwards."""
    try:
        await target.look([deployment])
        if not target.seen(deployment).is_as_declared:
            await target.apply(deployment)
        await target.look([deployment])
        return target.seen(deployment).is_as_declared
    finally:
        await target.close()


async def remove(target: DeployTarget, deployment: Deployment) -> str:
    try:
        return await target.remove(Removal(deployment.id, deployment.namespace, deployment.delete_grace_seconds))
    finally:
        await target.close()


async def test_a_controller_that_is_killed_after_any_of_its_writes_makes_nothing_twice_and_forgets_nothing(
    deploying: Deploying, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = await deploying.deploy(serving(scaling={"min_replicas": 2}))
    await deploying.store.deployments.delete(made.id, deploying.user, 0)
    gone = await deploying.get(made)
    writes = Writes(monkeypatch)
    is_whole, number = False, 0
    while not is_whole:
        number += 1
        writes.done, writes.last = 0, number
        try:
            is_whole = await apply(deploying.target(), made)
        except Killed:
            writes.last = None
            assert await apply(deploying.target(), made)
            kinds = Counter(name.split("/")[0] for name in await deploying.objects(made))
            assert {kinds[kind] for kind in ("deployments", "services", "networkpolicies")} == {1}
            assert kinds["pods"] <= 2

            async def is_away() -> bool:
                return not await remove(deploying.target(), gone)

            await wait_until(is_away, 60)
    # Account, policy, service, budget and Deployment; the first round began with the namespace.
    assert number == 6
    last, left = 0, "all"
    while left:
        last += 1
        writes.done, writes.last = 0, last
        try:
            left = await remove(deploying.target(), gone)
        except Killed:
            continue
    writes.last = None
    assert await deploying.objects(made) == []


async def test_two_controllers_at_once_make_one_of_each(deploying: Deploying) -> None:
    made = [await deploying.deploy() for _ in range(2)]
    async with deploying.controller(lease_seconds=1.0) as one, deploying.controller(lease_seconds=1.0) as other:
        for loop in (one, other):
            loop._leader.leads = _always  # type: ignore[method-assign]
        for each in made:
            await deploying.until(each, lambda it: it.status is RUNNING)
            kinds = Counter(name.split("/")[0] for name in await deploying.objects(each))
            assert (kinds["deployments"], kinds["services"], kinds["pods"]) == (1, 1, 1)
            await deploying.store.deployments.delete(each.id, deploying.user, 0)
        for each in made:
            await deploying.until_gone(each)
            assert await deploying.objects(each) == []


async def _always() -> bool:
    return True


async def test_a_line_is_stored_once_however_often_controllers_are_lost(deploying: Deploying) -> None:
    made = await deploying.deploy(agent_manifest(command=["python", "-c", COUNTING]))

    async def numbers() -> list[int]:
        lines, cursor = [], 0
        while page := (await deploying.store.deployments.logs_after(made.id, cursor, 1000)).lines:
            lines += [int(line.text) for line in page]
            cursor = page[-1].number
        return lines

    async def has(count: int) -> bool:
        return len(await numbers()) >= count

    for count in (50, 150, 250):
        async with deploying.controller():
            await wait_until(lambda count=count: has(count), 90)  # type: ignore[misc]
    stored = await numbers()
    assert stored == list(range(len(stored)))
    await deploying.store.deployments.delete(made.id, deploying.user, 0)
    async with deploying.controller():
        await deploying.until_gone(made)
