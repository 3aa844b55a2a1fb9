"""Attacks of a user with a valid token on the others: everything that is shared and has a limit is filled by one user,
and the others, and an administrator, go on as before."""

from backplane.dead_letters import DeadReason
from backplane.runs import RunError, RunStatus
from backplane.users import Tier
from tests.integration.api.running import Person, StartApi

# --- the queue ---


async def test_runs_that_a_users_own_cap_holds_back_leave_the_queue_open_to_others(start_api: StartApi) -> None:
    api = await start_api()
    hostile, other, admin = await api.person(Tier.FREE), await api.person(), await api.person(Tier.ADMIN)
    answers = [(await hostile.act("run", prompt="mine")).status_code for _ in range(25)]
    assert answers.count(201) == 20
    assert [(await person.act("run", prompt="mine")).status_code for person in (other, admin)] == [201, 201]


async def test_one_user_cannot_fill_the_queue_of_all(start_api: StartApi) -> None:
    api = await start_api(queue_max_waiting=0, queue_max_waiting_all=10, user_concurrency_standard=0)
    hostile, other, admin = await api.person(), await api.person(), await api.person(Tier.ADMIN)
    answers = [(await hostile.act("run", prompt="mine")) for _ in range(12)]
    assert [answer.status_code for answer in answers].count(201) == 5
    assert "QUEUE_MAX_WAITING_ALL" in answers[-1].json()["detail"]
    assert [(await person.act("run", prompt="mine")).status_code for person in (other, admin)] == [201, 201]


async def test_a_users_full_queue_keeps_nobody_elses_dead_letters_from_being_redriven(start_api: StartApi) -> None:
    api = await start_api(queue_max_waiting=1)
    hostile, other, admin = await api.person(), await api.person(), await api.person(Tier.ADMIN)

    async def dies(person: Person) -> None:
        run_id, worker = await person.make(), await api.worker()
        await api.resources.store.held.write(
            run_id, worker.claim.generation, lambda held: held.dead_letter(DeadReason.INTERNAL_ERROR)
        )
        await worker.end(RunStatus.FAILED, RunError("internal_error", "a fault of the platform"))

    for person in (hostile, hostile, other):
        await dies(person)
    await hostile.make()
    assert (await admin.http.post("/agent/dead-letters/redrive")).json() == {"redriven": 1, "left": 2}
