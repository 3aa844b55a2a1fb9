"""Accounts, as an admin works with them, and the budget that everybody sees of himself."""

from typing import Any
from uuid import uuid4

import httpx
import pytest
import pytest_asyncio

from backplane.domain.users import Tier
from tests.integration.api.running import Api, Person

pytestmark = pytest.mark.asyncio(loop_scope="module")

NOBODY = "00000000-0000-7000-8000-000000000000"


@pytest_asyncio.fixture(loop_scope="module")
async def admin(api: Api) -> Person:
    return await api.person(Tier.ADMIN)


async def owner_of(person: Person) -> str:
    """user:NAME, new for each test."""
    return f"user:{(await person.http.get('/agent/me')).json()['name']}"


async def top_up(admin: Person, account: str, amount: str, **fields: Any) -> httpx.Response:
    return await admin.http.post(f"/agent/accounts/{account}/top-up", json={"amount": amount, **fields})


def refusal(answer: httpx.Response) -> tuple[int, str, str | None]:
    problem = answer.json()
    return answer.status_code, problem["code"], problem.get("field")


@pytest.mark.parametrize("tier", [tier for tier in Tier if tier is not Tier.ADMIN])
async def test_accounts_are_for_admins(api: Api, tier: Tier) -> None:
    person = await api.person(tier)
    account = f"/agent/accounts/{await owner_of(person)}:tokens"
    movement = {"amount": "1"}
    for method, path, body in (
        ("GET", "/agent/accounts", None),
        ("GET", account, None),
        ("POST", f"{account}/top-up", movement),
        ("POST", f"{account}/withdraw", movement),
        ("POST", "/agent/accounts/transfer", {**movement, "source": "tier:free:tokens", "target": "tier:beta:tokens"}),
        ("DELETE", account, None),
        ("GET", "/agent/ledger/audit", None),
    ):
        answer = await person.http.request(method, path, json=body)
        assert (answer.status_code, answer.json()["code"]) == (403, "forbidden"), (method, path)
    assert (await person.http.get("/agent/budget")).json()["accounts"] == []


async def test_a_top_up_makes_an_account_that_is_shown_with_its_entries(
    api: Api, person: Person, admin: Person
) -> None:
    me = (await person.http.get("/agent/me")).json()
    booked = (await top_up(admin, f"user:{me['name']}:micro_usd", "12.50", note="November")).json()
    account_id = f"user:{me['user_id']}:micro_usd"
    account = (await admin.http.get(f"/agent/accounts/{account_id}")).json()
    assert (account["account_id"], account["owner"], account["owner_name"]) == (
        account_id,
        f"user:{me['user_id']}",
        me["name"],
    )
    assert (account["balance"], account["reserved"], account["spent"]) == ("12.5", "0", "0")
    assert account["entries"] == booked["entries"]
    [entry] = account["entries"]
    assert (entry["kind"], entry["balance_change"], entry["balance_after"]) == ("deposit", "12.5", "12.5")
    assert (entry["note"], entry["transfer_id"]) == ("November", booked["transfer_id"])
    mine = (await person.http.get("/agent/budget")).json()
    assert [(one["account_id"], one["balance"]) for one in mine["accounts"]] == [(account_id, "12.5")]


async def test_a_movement_that_is_sent_twice_happens_once(api: Api, person: Person, admin: Person) -> None:
    account, other = f"{await owner_of(person)}:tokens", f"{await owner_of(await api.person())}:tokens"
    one, two, three = (str(uuid4()) for _ in range(3))
    for _ in range(2):
        first = await top_up(admin, account, "100", transfer_id=one)
        await top_up(admin, other, "1", transfer_id=two)
        transfer = {"amount": "30", "source": account, "target": other, "transfer_id": three}
        moved = await admin.http.post("/agent/accounts/transfer", json=transfer)
    assert (await top_up(admin, account, "100", transfer_id=one)).json() == first.json()
    assert [entry["balance_after"] for entry in moved.json()["entries"]] == ["70", "31"]
    assert refusal(await top_up(admin, account, "101", transfer_id=one)) == (409, "idempotency_key_reused", None)


async def test_what_is_not_there_cannot_be_taken(api: Api, person: Person, admin: Person) -> None:
    account, other = f"{await owner_of(person)}:steps", f"{await owner_of(admin)}:steps"
    await top_up(admin, account, "10")
    await top_up(admin, other, "1")
    taken = await admin.http.post(f"/agent/accounts/{account}/withdraw", json={"amount": "11"})
    moved = await admin.http.post("/agent/accounts/transfer", json={"amount": "11", "source": account, "target": other})
    assert refusal(taken) == refusal(moved) == (409, "budget_exhausted", None)
    assert "10 steps left and 11 steps are needed" in taken.json()["detail"]
    taken = await admin.http.post(f"/agent/accounts/{account}/withdraw", json={"amount": "10"})
    assert taken.json()["entries"][0]["balance_after"] == "0"


@pytest.mark.parametrize(
    ("resource", "amount"),
    [
        ("tokens", "0"),
        ("tokens", "1.5"),
        ("tokens", "-1"),
        ("tokens", "1000000000000001"),
        ("micro_usd", "0.0000001"),
        ("micro_usd", "1000000000.000001"),
        ("micro_usd", "1e3"),
        ("micro_usd", ""),
        ("micro_usd", 5),
    ],
)
async def test_an_amount_that_cannot_be_is_refused(person: Person, admin: Person, resource: str, amount: Any) -> None:
    answer = await top_up(admin, f"{await owner_of(person)}:{resource}", amount)
    assert refusal(answer) == (422, "invalid_input", "amount")


async def test_the_largest_and_the_smallest_amounts_are_taken(person: Person, admin: Person) -> None:
    owner = await owner_of(person)
    assert (await top_up(admin, f"{owner}:micro_usd", "999999999.999999")).status_code == 200
    booked = (await top_up(admin, f"{owner}:micro_usd", "0.000001")).json()
    assert booked["entries"][0]["balance_after"] == "1000000000"


@pytest.mark.parametrize("fields", [{"transfer_id": "a:b"}, {"transfer_id": ""}, {"note": "x" * 401}, {"amuont": "1"}])
async def test_a_movement_has_no_other_fields_than_its_own(
    person: Person, admin: Person, fields: dict[str, str]
) -> None:
    answer = await top_up(admin, f"{await owner_of(person)}:tokens", "1", **fields)
    assert refusal(answer) == (422, "invalid_input", next(iter(fields)))


@pytest.mark.parametrize("owner", ["user:nobody", f"run:{NOBODY}", "tier:none"])
async def test_who_is_not_there_gets_no_account(admin: Person, owner: str) -> None:
    assert refusal(await top_up(admin, f"{owner}:tokens", "1")) == (404, "not_found", None)
    assert refusal(await admin.http.get("/agent/accounts", params={"owner": owner})) == (404, "not_found", None)


async def test_a_closed_account_limits_nobody_and_can_be_opened_again(api: Api, person: Person, admin: Person) -> None:
    account = f"{await owner_of(person)}:tokens"
    await top_up(admin, account, "5")
    closed = (await admin.http.delete(f"/agent/accounts/{account}")).json()
    assert (closed["balance"], closed["closed_at"] is None) == ("0", False)
    assert (await person.http.get("/agent/budget")).json()["accounts"] == []
    await top_up(admin, account, "7")
    assert [one["balance"] for one in (await person.http.get("/agent/budget")).json()["accounts"]] == ["7"]
    assert refusal(await admin.http.delete(f"/agent/accounts/user:{NOBODY}:tokens"))[0] == 404


async def test_accounts_and_entries_come_page_by_page(person: Person, admin: Person) -> None:
    owner = await owner_of(person)
    for resource in ("tokens", "steps", "seconds", "micro_usd"):
        await top_up(admin, f"{owner}:{resource}", "1")
    await top_up(admin, f"{owner}:tokens", "1")

    async def every(path: str, items: str, **params: Any) -> list[Any]:
        found: list[Any] = []
        while True:
            page = (await admin.http.get(path, params={"limit": 3, **params})).json()
            found += page[items]
            if page["next_cursor"] is None:
                return found
            params["cursor"] = page["next_cursor"]

    accounts = await every("/agent/accounts", "accounts", owner=owner)
    assert [account["resource"] for account in accounts] == ["micro_usd", "seconds", "steps", "tokens"]
    assert len(await every("/agent/accounts", "accounts", owner=owner, resource="tokens")) == 1
    entries = await every(f"/agent/accounts/{owner}:tokens", "entries", limit=1)
    assert [entry["balance_after"] for entry in entries] == ["2", "1"]


async def test_the_tiers_account_is_part_of_ones_budget(api: Api, admin: Person) -> None:
    person = await api.person(Tier.BETA)
    await top_up(admin, "tier:beta:seconds", "60")
    accounts = (await person.http.get("/agent/budget")).json()["accounts"]
    assert [(account["owner"], account["owner_name"], account["balance"]) for account in accounts] == [
        ("tier:beta", None, "60")
    ]


async def test_the_budget_says_what_ones_runs_took(api: Api, person: Person) -> None:
    await person.make()
    worker = await api.worker()
    await worker.end()
    spent = (await person.http.get("/agent/budget")).json()["spent"]
    assert spent == {"tokens": 0, "usd": "0", "steps": 0}


async def test_the_books_are_right_after_all_that(admin: Person) -> None:
    audit = (await admin.http.get("/agent/ledger/audit")).json()
    assert audit["differences"] == []
