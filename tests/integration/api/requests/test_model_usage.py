"""What models took, as users and administrators see it."""

import uuid
from typing import Any

import pytest
import pytest_asyncio

from backplane.domain.model_calls import BeginningCall, CallKey, CallStatus, CallTotals
from backplane.domain.users import Tier
from backplane.store import RunTransaction
from tests.integration.api.running import Api, Person

pytestmark = pytest.mark.asyncio(loop_scope="module")

URL = "/agent/usage"


@pytest_asyncio.fixture(loop_scope="module")
async def admin(api: Api) -> Person:
    return await api.person(Tier.ADMIN)


async def spend(api: Api, person: Person, micro_usd: int | None, model: str = "m", agent: str = "default") -> None:
    """One call of a model in a run of this person."""
    run_id = await person.make(agent=agent)
    store = api.resources.store
    assert await store.running_runs.take(run_id, 1)
    key = CallKey("a", "turn", 1)

    def write(transaction: RunTransaction) -> None:
        transaction.begin_model_call(BeginningCall(key, str(uuid.uuid4()), "s", model, {}, "d"))
        transaction.end_model_call(key, CallStatus.COMPLETED, CallTotals(100, 10, micro_usd))

    await store.running_runs.write(run_id, 1, write)


async def ask(person: Person, **parameters: Any) -> Any:
    answer = await person.http.get(URL, params=parameters)
    assert answer.status_code == 200, answer.text
    return answer.json()


async def test_a_user_sees_dollars_by_model_and_day_of_their_own(api: Api, person: Person) -> None:
    other = await api.person()
    await spend(api, other, 999, "large")
    for price, model in ((1_234_500, "large"), (7, "small")):
        await spend(api, person, price, model)
    found = await ask(person, by=["model", "day"])
    assert [(group["model"], group["usd"]) for group in found["groups"]] == [
        ("s/large", "1.2345"),
        ("s/small", "0.000007"),
    ]
    assert len({group["day"] for group in found["groups"]}) == 1
    totals = {"calls": 2, "unpriced": 0, "input_tokens": 200, "output_tokens": 20, "usd": "1.234507"}
    assert (found["totals"], found["next_cursor"]) == (totals, None)


async def test_without_by_the_answer_is_what_is_stored(person: Person) -> None:
    assert set(await ask(person)) == {"runs", "events", "bytes", "rows_counted_at", "files_counted_at"}


async def test_an_administrator_sees_everybody_and_one_user_by_name_or_id(
    api: Api, person: Person, admin: Person
) -> None:
    await spend(api, person, 50, agent="bob")
    me = (await person.http.get("/agent/me")).json()
    everybody = await ask(admin, by="user", limit=200)
    assert {"user_id": me["user_id"], "user": me["name"]}.items() <= next(
        group.items() for group in everybody["groups"] if group["user_id"] == me["user_id"]
    )
    for named in (me["user_id"], me["name"]):
        [group] = (await ask(admin, by="agent", user=named))["groups"]
        assert (group["agent"], group["usd"]) == ("bob", "0.00005")


async def test_a_user_may_name_themselves_and_nobody_else(api: Api, person: Person, admin: Person) -> None:
    other = (await (await api.person()).http.get("/agent/me")).json()
    me = (await person.http.get("/agent/me")).json()
    assert (await ask(person, by="model", user=me["name"]))["groups"] == []
    for named in (other["name"], other["user_id"], "nobody"):
        answer = await person.http.get(URL, params={"by": "model", "user": named})
        assert (answer.status_code, answer.json()["detail"]) == (404, f"there is no user {named}")
    assert (await admin.http.get(URL, params={"by": "model", "user": "nobody"})).status_code == 404


async def test_pages_follow_one_another(api: Api, person: Person) -> None:
    for number in range(1, 4):
        await spend(api, person, number, f"m{number}")
    first = await ask(person, by="model", limit=2)
    rest = await ask(person, by="model", limit=2, cursor=first["next_cursor"])
    assert [group["model"] for page in (first, rest) for group in page["groups"]] == ["s/m3", "s/m2", "s/m1"]
    assert (first["totals"], rest["next_cursor"]) == (rest["totals"], None)


async def test_days_without_a_call_have_nothing(api: Api, person: Person) -> None:
    await spend(api, person, 5)
    assert (await ask(person, by="day", **{"from": "2001-01-01", "to": "2001-12-31"}))["totals"]["usd"] == "0"


@pytest.mark.parametrize(
    ("parameters", "field"),
    [
        ({"by": "colour"}, "by"),
        ({"by": "day", "from": "1"}, "from"),
        ({"by": "day", "to": "2026-13-01"}, "to"),
        ({"by": "day", "from": "2026-11-02", "to": "2026-11-01"}, "from"),
        ({"by": "day", "limit": 201}, "limit"),
        ({"by": "day", "cursor": 0}, "cursor"),
        ({"from": "2026-11-02"}, "from"),
        ({"by": ["day"] * 7}, "by"),
    ],
)
async def test_bad_questions_are_refused(person: Person, parameters: dict[str, Any], field: str) -> None:
    answer = await person.http.get(URL, params=parameters)
    assert (answer.status_code, answer.json()["code"]) == (422, "invalid_input")
    assert field in answer.text
