"""/agent/artifacts over the wire."""

from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import pytest_asyncio

from backplane.artifacts.base import AgentId, Author
from backplane.domain.users import Tier
from tests.integration.api.running import Api, Person, StartApi

pytestmark = pytest.mark.asyncio(loop_scope="module")

Write = Callable[..., Awaitable[AgentId]]


@pytest_asyncio.fixture(loop_scope="module")
async def write(api: Api) -> Write:
    """What a run of this person's agent would write."""

    async def write(person: Person, path: str, data: bytes, *, agent: str = "default") -> AgentId:
        user = await api.resources.store.users.user_of(person.token)
        assert user is not None
        assert api.resources.artifacts is not None
        written = AgentId(user.id, agent)
        await api.resources.artifacts.write(written, path, data, Author(run_id="run-1", step_id="s1"))
        return written

    return write


async def changes(admin: Person, agent: AgentId, **params: Any) -> Any:
    answer = await admin.http.get(f"/agent/artifacts/{agent.user_id}/{agent.name}/log", params=params)
    assert answer.status_code == 200, answer.text
    return answer.json()


async def test_a_user_sees_the_present_files_of_an_agent(person: Person, write: Write) -> None:
    await write(person, "notes/a.md", b"old")
    await write(person, "notes/a.md", b"\xff\x00new")
    listed = await person.http.get("/agent/artifacts/default")
    assert listed.json() == {"artifacts": [{"path": "notes/a.md", "size": 5}]}
    content = await person.http.get("/agent/artifacts/default/content", params={"path": "notes/a.md"})
    assert (content.status_code, content.content) == (200, b"\xff\x00new")
    assert content.headers["x-content-type-options"] == "nosniff"
    assert content.headers["content-disposition"] == "attachment"


async def test_another_users_artifacts_are_not_there(api: Api, person: Person, write: Write) -> None:
    await write(person, "a", b"mine", agent="writer")
    other = await api.person()
    assert (await other.http.get("/agent/artifacts/writer")).json() == {"artifacts": []}
    content = await other.http.get("/agent/artifacts/writer/content", params={"path": "a"})
    assert (content.status_code, content.json()["code"]) == (404, "not_found")


@pytest.mark.parametrize("path", ["../x", "/etc/passwd", "a//b", ""])
async def test_a_path_that_cannot_be_is_refused(person: Person, write: Write, path: str) -> None:
    await write(person, "a", b"x")
    answer = await person.http.get("/agent/artifacts/default/content", params={"path": path})
    assert (answer.status_code, answer.json()["field"]) == (422, "path")


@pytest.mark.parametrize("agent", ["..", "%2e%2e", "a%2Fb", "a%00", ".git", "x" * 65])
async def test_a_name_that_no_agent_has_is_refused(person: Person, agent: str) -> None:
    answer = await person.http.get(f"/agent/artifacts/{agent}")
    assert answer.status_code in (404, 422)


async def test_the_history_is_for_admins_alone(person: Person, write: Write) -> None:
    agent = await write(person, "a", b"x")
    url = f"/agent/artifacts/{agent.user_id}/default"
    commit = {"commit": "a" * 40}
    answers = [
        await person.http.get(f"{url}/log"),
        await person.http.get(f"{url}/files", params=commit),
        await person.http.get(f"{url}/show", params={**commit, "path": "a"}),
        await person.http.post(f"{url}/rollback", json=commit),
    ]
    assert [answer.status_code for answer in answers] == [403] * 4


async def test_an_admin_reads_the_past_and_brings_it_back_for_all_runs(api: Api, person: Person, write: Write) -> None:
    admin = await api.person(Tier.ADMIN)
    agent = await write(person, "a", b"good")
    await write(person, "a", b"bad")
    _, good = (await changes(admin, agent))["changes"]
    assert (good["summary"], good["run_id"], good["step_id"], good["administrator"]) == ("write a", "run-1", "s1", None)

    url, commit = f"/agent/artifacts/{agent.user_id}/default", {"commit": good["commit"]}
    assert (await admin.http.get(f"{url}/files", params=commit)).json() == {"artifacts": [{"path": "a", "size": 4}]}
    assert (await admin.http.get(f"{url}/show", params={**commit, "path": "a"})).content == b"good"
    rolled_back = await admin.http.post(f"{url}/rollback", json=commit)
    assert rolled_back.status_code == 200

    assert api.resources.artifacts is not None
    assert await api.resources.artifacts.read(agent, "a") == b"good"
    newest = (await changes(admin, agent))["changes"][0]
    assert (newest["commit"], newest["run_id"]) == (rolled_back.json()["commit"], None)
    assert newest["administrator"].startswith("user-")
    assert (await admin.http.post(f"{url}/rollback", json=commit)).json() == {"commit": None}


async def test_a_user_is_named_by_name_too(api: Api, person: Person, write: Write) -> None:
    admin = await api.person(Tier.ADMIN)
    agent = await write(person, "a", b"x")
    name = (await api.resources.store.users.find(agent.user_id)).name
    assert len((await changes(admin, AgentId(name, "default")))["changes"]) == 1
    for user in ("nobody", "..", agent.user_id[:-1]):
        assert (await admin.http.get(f"/agent/artifacts/{user}/default/log")).status_code == 404


async def test_the_log_comes_in_pages(api: Api, person: Person, write: Write) -> None:
    admin = await api.person(Tier.ADMIN)
    for number in range(3):
        agent = await write(person, "a", str(number).encode())
    whole = await changes(admin, agent)
    first = await changes(admin, agent, limit=2)
    rest = await changes(admin, agent, limit=2, cursor=first["next_cursor"])
    assert first["changes"] + rest["changes"] == whole["changes"]
    assert (whole["next_cursor"], rest["next_cursor"]) == (None, None)


@pytest.mark.parametrize("commit", ["0" * 40, "HEAD", "main", "", "0" * 41])
async def test_a_commit_that_is_not_there_changes_nothing(api: Api, person: Person, write: Write, commit: str) -> None:
    admin = await api.person(Tier.ADMIN)
    agent = await write(person, "a", b"x")
    answer = await admin.http.post(f"/agent/artifacts/{agent.user_id}/default/rollback", json={"commit": commit})
    assert answer.status_code == (404 if commit == "0" * 40 else 422)
    assert len((await changes(admin, agent))["changes"]) == 1


async def test_without_a_folder_there_are_no_artifacts_and_it_is_said_why(start_api: StartApi) -> None:
    api = await start_api(artifacts_dir="")
    answer = await (await api.person()).http.get("/agent/artifacts/default")
    assert (answer.status_code, "ARTIFACTS_DIR" in answer.json()["detail"]) == (404, True)
