"""Whether live workers have the role of a pool, as who makes or changes the pool is answered."""

from typing import Any

import pytest

from backplane.domain.users import Tier
from backplane.tool_catalogue.base import ToolSet
from tests.integration.api.live_agents import AGENTS
from tests.integration.api.running import Api

pytestmark = pytest.mark.asyncio(loop_scope="module")

POOLS = f"{AGENTS}/pools"


async def workers_have(api: Api, *roles: tuple[str, ...] | None) -> None:
    """One worker each."""
    for number, of_one in enumerate(roles):
        tools = ToolSet((), False, roles=of_one)
        await api.resources.tool_catalogue.publish(tools, worker_id=f"worker-{number}", seconds=60)


async def made(api: Api, name: str, role: str) -> Any:
    admin = await api.person(Tier.ADMIN)
    answer = await admin.http.post(POOLS, json={"name": name, "role": role})
    assert answer.status_code == 201, answer.text
    return answer.json()


async def test_a_pool_whose_role_no_live_worker_has_is_made_with_a_warning_that_names_those_there_are(api: Api) -> None:
    await workers_have(api, ("developer", "tester"), ("developer", "writer"))
    warning = (await made(api, "typo_pool", "writr"))["warning"]
    assert "no live worker has a role 'writr'; did you mean 'writer'? (there are developer, tester, writer)" in warning
    assert "role_unknown" in warning


async def test_a_pool_whose_role_a_live_worker_has_is_made_without_a_warning(api: Api) -> None:
    await workers_have(api, ("developer",), ("writer",))
    assert (await made(api, "writer_pool", "writer"))["warning"] is None


@pytest.mark.parametrize(("role", "is_warned"), [("writer", False), ("nobody", True), (None, False)])
async def test_a_pool_that_gets_another_role_is_answered_so_too(api: Api, role: str | None, is_warned: bool) -> None:
    await workers_have(api, ("writer",))
    await made(api, f"pool_of_{role}".lower(), "writer")
    admin = await api.person(Tier.ADMIN)
    change = {"max_processes": 2} if role is None else {"role": role}
    changed = (await admin.http.patch(f"{POOLS}/pool_of_{role}".lower(), json=change)).json()
    assert (changed["warning"] is not None) is is_warned


@pytest.mark.parametrize("roles", [(), (("developer",), None)])
async def test_where_not_every_workers_roles_are_known_nobody_is_warned(
    api: Api, roles: tuple[tuple[str, ...] | None, ...]
) -> None:
    await workers_have(api, *roles)
    assert (await made(api, f"unknown_pool_{len(roles)}", "nobody"))["warning"] is None
