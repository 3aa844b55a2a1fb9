"""What reaches outside happens once.

A real server on loopback counts what arrives. It fails in every way in which servers fail, while each layer that could
send the request again has leave to do so: the step's `retry`, the run's `max_retries`, the worker that takes a lost
run over, a planner, an agent. What may have happened is never done again unless a person says so.
"""

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from backplane.domain.decisions import Decision, DecisionStatus
from backplane.domain.plans import parse_plan
from backplane.domain.runs import RunError, RunStatus
from backplane.domain.steps import StepStatus, pending_steps
from backplane.errors import Conflict, InvalidInput
from backplane.store.run_transaction import RunTransaction
from tests.attack.outside import (
    RETRY,
    begins,
    cuts,
    ended,
    hangs,
    is_uncertain,
    moved,
    outside,
    post,
    posts,
    record,
    status,
)
from tests.integration.agent.conftest import StartWithModels, asks_for, plan_of, says
from tests.integration.tools.site import Answer, Site
from tests.integration.worker.conftest import StartPlatform
from tests.platform.workers import Platform, WorkerProcess, worker
from tests.scripted_models import ScriptedModels
from tests.submitted import shell
from tests.waiting import wait_until

StartProcess = Callable[..., Awaitable[WorkerProcess]]
# --- what may have happened: asked about, by whatever layer could have done it again ---

MAY_HAVE_HAPPENED: dict[str, Answer] = {
    "500": status("500 Internal Server Error"),
    "502": status("502 Bad Gateway"),
    "503": status("503 Service Unavailable"),
    "504": status("504 Gateway Timeout"),
    "408": status("408 Request Timeout"),
    "cut connection": cuts,
    "what is no HTTP": begins(b"hello\r\n\r\n", then=cuts),
    "200, and cut in the head": begins(b"HTTP/1.1 200 OK\r\nContent-", then=cuts),
    "200, and cut in the body": begins(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nx", then=cuts),
    "303 to where nothing is": moved("303 See Other", "/nowhere"),
    "302 to a forbidden host": moved("302 Found", "http://forbidden.example/"),
    "307 to a page that fails": moved("307 Temporary Redirect", "/fails"),
}


HANGS: dict[str, Answer] = {
    "timeout after the body": hangs,
    "200, and no end of the body": begins(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nx", then=hangs),
}


@pytest.mark.parametrize(("answers", "seconds"), [(MAY_HAVE_HAPPENED, 20.0), (HANGS, 2.0)], ids=["answers", "hangs"])
async def test_a_request_that_may_have_happened_is_not_sent_again(
    start_platform: StartPlatform, site: Site, answers: dict[str, Answer], seconds: float
) -> None:
    """Each with the run's retries alone, and with the step's too."""
    site.pages["/fails"] = status("500 Internal Server Error")
    cases = [(how, policy) for how in answers for policy in ({}, {"retry": RETRY})]
    platform = await start_platform(
        **outside(site, worker_concurrency=24, queue_max_waiting=100, outside_timeout_seconds=seconds)
    )
    async with worker(platform.settings):
        run_ids = []
        for number, (how, policy) in enumerate(cases):
            site.pages[f"/{number}"] = answers[how]
            run_ids.append(await platform.submit(post(site, f"/{number}", **policy), max_retries=3))
        runs = [await ended(platform, run_id) for run_id in run_ids]
    sent = Counter(asked.target for asked in site.asked if asked.method == "POST")
    found = [
        (how, sent[f"/{number}"], is_uncertain(run))
        for number, ((how, _), run) in enumerate(zip(cases, runs, strict=True))
    ]
    assert found == [(how, 1, True) for how, _ in cases]
    assert sent["/fails"] == (2 if answers is MAY_HAVE_HAPPENED else 0)  # where a 307 led to it
    for run_id in run_ids:
        assert (await record(platform, run_id)).status is StepStatus.UNCERTAIN


@pytest.mark.slow
async def test_what_has_happened_is_reported_so_where_only_its_answer_could_not_be_kept(
    start_platform: StartPlatform, site: Site
) -> None:
    site.says("/pay", b"x" * 1000, status="201 Created")
    platform = await start_platform(**outside(site, workspace_max_bytes=100))
    async with worker(platform.settings):
        run_id = await platform.submit(post(site, arguments={"save_as": "answer.txt"}, retry=RETRY), max_retries=3)
        run = await ended(platform, run_id)
    assert (posts(site), is_uncertain(run)) == (1, True)
    assert run.error is not None
    assert "happened, and then failed: " in run.error.message
    result = (await record(platform, run_id)).result
    assert result is not None
    assert result["output"].startswith("201 Created")


# --- what did not happen: tried again as its policies say, without a question ---


async def test_a_request_that_the_server_did_not_take_is_sent_again(start_platform: StartPlatform, site: Site) -> None:
    def third_time(path: str, words: str) -> Answer:
        async def answer(writer: asyncio.StreamWriter) -> None:
            await status(words if sum(asked.target == path for asked in site.asked) < 3 else "200 OK")(writer)

        return answer

    cases = [
        (words, policy, max_retries)
        for words in ("429 Too Many Requests", "425 Too Early")
        for policy, max_retries in (({"retry": RETRY}, 0), ({}, 3))
    ]
    platform = await start_platform(**outside(site))
    async with worker(platform.settings):
        run_ids = []
        for number, (words, policy, max_retries) in enumerate(cases):
            site.pages[f"/{number}"] = third_time(f"/{number}", words)
            run_ids.append(await platform.submit(post(site, f"/{number}", **policy), max_retries=max_retries))
        for run_id in run_ids:
            await platform.completed(run_id)
    assert posts(site) == 3 * len(cases)


@pytest.mark.slow
async def test_a_request_that_is_refused_fails_its_run_without_a_question(
    start_platform: StartPlatform, site: Site
) -> None:
    refusals = ["501 Not Implemented", "400 Bad Request", "409 Conflict", "422 Unprocessable Content"]
    platform = await start_platform(**outside(site))
    async with worker(platform.settings):
        run_ids = []
        for words in refusals:
            site.pages[f"/{words[:3]}"] = status(words)
            run_ids.append(await platform.submit(post(site, f"/{words[:3]}"), max_retries=3))
        runs = [await ended(platform, run_id) for run_id in run_ids]
    assert [(run.status, run.attempt) for run in runs] == [(RunStatus.FAILED, 1)] * len(refusals)
    assert posts(site) == len(refusals)


@pytest.mark.slow
async def test_a_connection_that_is_refused_is_no_effect_and_is_tried_again(
    start_platform: StartPlatform, site: Site
) -> None:
    platform = await start_platform(**outside(site))
    async with worker(platform.settings):
        run_id = await platform.submit(
            post(site, arguments={"url": "http://127.0.0.1:9/"}, retry={**RETRY, "max_attempts": 2}), max_retries=1
        )
        run = await ended(platform, run_id)
    assert (run.status, run.attempt) == (RunStatus.FAILED, 2)
    assert (await record(platform, run_id)).tries == 4


# --- a worker is lost ---


@pytest.mark.slow
@pytest.mark.parametrize("loss", ["kill", "leave"])
async def test_a_worker_that_is_gone_while_the_server_has_the_request_leaves_it_to_a_person(
    start_platform: StartPlatform, start_process: StartProcess, site: Site, loss: str
) -> None:
    site.pages["/pay"] = hangs
    platform = await start_platform(**outside(site))
    first = await start_process(platform)
    run_id = await platform.submit(post(site, retry=RETRY), max_retries=3)
    await wait_until(lambda: posts(site) == 1, what="the server has the request")
    if loss == "kill":
        await first.kill()
    else:
        assert first.process is not None
        first.process.terminate()
        await first.ended()
    site.pages["/pay"] = status("200 OK")
    async with worker(platform.settings):
        run = await ended(platform, run_id)
    assert (posts(site), is_uncertain(run)) == (1, True)


async def test_a_worker_that_is_killed_before_the_request_left_costs_no_question(
    start_platform: StartPlatform, start_process: StartProcess, site: Site
) -> None:
    """The journal has the step as begun, and not yet as on its way."""
    site.pages["/pay"] = status("200 OK")
    platform = await start_platform(**outside(site))
    run_id = await _cut_off(platform, post(site), changing=False)
    async with worker(platform.settings):
        await platform.completed(run_id)
    assert posts(site) == 1


# --- an idempotency key makes it repeatable ---


async def test_the_key_is_the_same_at_each_try_and_attempt_and_another_for_another_step(
    start_platform: StartPlatform, site: Site
) -> None:
    async def answer(writer: asyncio.StreamWriter) -> None:
        await (cuts if posts(site) < 4 else status("200 OK"))(writer)

    site.pages["/pay"] = answer
    keyed = {"idempotency_header": "Idempotency-Key"}
    platform = await start_platform(**outside(site))
    async with worker(platform.settings):
        run_id = await platform.submit(
            post(site, arguments=keyed, retry={**RETRY, "max_attempts": 2}),
            {**post(site, arguments=keyed), "id": "pay-again"},
            max_retries=1,
        )
        run = await platform.completed(run_id)
    keys = [asked.headers["idempotency-key"] for asked in site.asked]
    assert run.attempt == 2
    assert len(keys) == 5
    assert len(set(keys[:4])) == 1
    assert keys[4] != keys[0]
    assert run_id not in keys[0]


@pytest.mark.slow
async def test_a_worker_that_is_killed_with_a_key_out_has_the_request_sent_again_with_it(
    start_platform: StartPlatform, start_process: StartProcess, site: Site
) -> None:
    site.pages["/pay"] = hangs
    platform = await start_platform(**outside(site))
    first = await start_process(platform)
    run_id = await platform.submit(post(site, arguments={"idempotency_header": "Idempotency-Key"}))
    await wait_until(lambda: posts(site) == 1, what="the server has the request")
    await first.kill()
    site.pages["/pay"] = status("200 OK")
    async with worker(platform.settings):
        await platform.completed(run_id)
    assert posts(site) == 2
    assert len({asked.headers["idempotency-key"] for asked in site.asked}) == 1


# --- a person decides, and says it ---


async def test_a_person_says_whether_it_is_sent_again(start_platform: StartPlatform, site: Site) -> None:
    platform = await start_platform(**outside(site))
    async with worker(platform.settings):
        for is_done, path in ((True, "/done"), (False, "/repeat")):
            site.pages[path] = status("500 Internal Server Error")
            run_id = await platform.submit(post(site, path), max_retries=3)
            assert is_uncertain(await ended(platform, run_id))
            site.pages[path] = status("200 OK")
            await platform.submission.retry(platform.user, run_id, uncertain_step_is_done=is_done)
            await platform.completed(run_id)
    assert Counter(asked.target for asked in site.asked) == {"/done": 1, "/repeat": 2}


@pytest.mark.slow
async def test_a_retry_from_a_step_sends_it_again_only_when_a_person_says_so(
    start_platform: StartPlatform, site: Site
) -> None:
    site.pages["/pay"] = status("500 Internal Server Error")
    platform = await start_platform(**outside(site))
    submission, user = platform.submission, platform.user
    refused = [("look", None, Conflict), ("look", True, InvalidInput), ("pay", True, InvalidInput)]
    async with worker(platform.settings):
        run_id = await platform.submit(shell("look", "true"), post(site))
        assert is_uncertain(await ended(platform, run_id))
        for step, is_done, refusal in refused:
            with pytest.raises(refusal, match="'pay'"):
                await submission.retry_from(user, run_id, step, uncertain_step_is_done=is_done)
        assert (posts(site), is_uncertain(await platform.run(run_id))) == (1, True)
        site.pages["/pay"] = status("200 OK")
        await submission.retry_from(user, run_id, "look", uncertain_step_is_done=False)
        await platform.completed(run_id)
    assert posts(site) == 2


@pytest.mark.slow
async def test_a_retry_that_does_not_say_what_becomes_of_it_is_refused(
    start_platform: StartPlatform, site: Site
) -> None:
    site.pages["/pay"] = status("500 Internal Server Error")
    platform = await start_platform(**outside(site))
    async with worker(platform.settings):
        run_id = await platform.submit(shell("look", "true"), post(site))
        await ended(platform, run_id)
        with pytest.raises(Conflict, match=r"step 'pay'.*uncertain_step"):
            await platform.submission.retry(platform.user, run_id, uncertain_step_is_done=None)
        assert is_uncertain(await platform.run(run_id))
    assert posts(site) == 1


@pytest.mark.parametrize("order", [pytest.param(("pay", "broken"), marks=pytest.mark.slow), ("broken", "pay")])
async def test_a_step_in_doubt_is_asked_about_before_a_failed_one_is_planned_around(
    start_with_models: StartWithModels, models: ScriptedModels, site: Site, order: tuple[str, str]
) -> None:
    """The worker was lost with one step failed and the request of the other on its way."""
    steps = {
        "pay": {**post(site), "needs": []},
        "broken": {"id": "broken", "tool": "file_read", "arguments": {"path": "none"}, "needs": []},
    }
    models.script(plan_of({**post(site), "id": "pay2"}), says("Paid."))
    site.pages["/pay"] = status("200 OK")
    platform: Platform = await start_with_models(working=False, **outside(site))
    run_id = await _cut_off(platform, *(steps[name] for name in order), changing=True, failed="broken", planner="model")
    async with worker(platform.settings):
        run = await ended(platform, run_id)
    assert (posts(site), is_uncertain(run)) == (0, True)
    assert models.asked == []


async def test_a_plan_of_a_model_is_not_made_anew_around_what_may_have_happened(
    start_with_models: StartWithModels, models: ScriptedModels, site: Site
) -> None:
    site.pages["/pay"] = status("500 Internal Server Error")
    models.script(plan_of(post(site)), plan_of({**post(site), "id": "pay2"}))
    platform: Platform = await start_with_models(**outside(site))
    run = await ended(platform, await platform.submit(prompt="Pay 10.", max_retries=3))
    assert (posts(site), is_uncertain(run), len(models.asked)) == (1, True, 1)


# --- agents ---


def agent(**more: Any) -> dict[str, Any]:
    return {"id": "agent", "tool": "agent", "arguments": {"goal": "Pay 10.", "tools": ["http_request"]}, **more}


async def test_an_agent_does_not_see_what_may_have_happened_before_a_person_has_looked(
    start_with_models: StartWithModels, models: ScriptedModels, site: Site
) -> None:
    site.pages["/pay"] = status("500 Internal Server Error")
    request = asks_for(("http_request", post(site)["arguments"]))
    models.script(request, request, request, says("Paid."))
    platform: Platform = await start_with_models(**outside(site))
    run_id = await platform.submit(agent(retry=RETRY), max_retries=3)
    run = await ended(platform, run_id)
    assert (posts(site), is_uncertain(run), len(models.asked)) == (1, True, 1)
    models.script(says("Paid."))
    await platform.submission.retry(platform.user, run_id, uncertain_step_is_done=True)
    await platform.completed(run_id)
    assert posts(site) == 1


@pytest.mark.parametrize(
    ("policy", "keyed"),
    [
        ({}, {}),
        pytest.param({"retry": RETRY}, {}, marks=pytest.mark.slow),
        pytest.param({}, {"idempotency_header": "Idempotency-Key"}, marks=pytest.mark.slow),
    ],
    ids=["run's retries", "step's retries", "with a key"],
)
async def test_an_agent_that_fails_after_it_has_reached_outside_does_not_begin_anew_by_itself(
    start_with_models: StartWithModels,
    models: ScriptedModels,
    site: Site,
    policy: dict[str, Any],
    keyed: dict[str, Any],
) -> None:
    """Another try would have the model decide anew, in steps of other ids: nothing would know of the first request."""
    site.pages["/pay"] = status("200 OK")
    models.answer(lambda asked: asks_for(("http_request", {**post(site)["arguments"], **keyed})))
    platform: Platform = await start_with_models(agent_max_turns=1, **outside(site))
    run_id = await platform.submit(agent(**policy), max_retries=3)
    run = await ended(platform, run_id)
    assert (posts(site), run.status) == (1, RunStatus.FAILED)
    assert run.error is not None
    assert run.error.code == "agent_turn_limit"


@pytest.mark.slow
async def test_no_model_plans_around_an_agent_that_fails_after_it_has_reached_outside(
    start_with_models: StartWithModels, models: ScriptedModels, site: Site
) -> None:
    """A planner is not shown what was done below a step."""
    site.pages["/pay"] = status("200 OK")
    pay = asks_for(("http_request", post(site)["arguments"]))
    models.script(plan_of(agent()), pay, plan_of({**agent(), "id": "agent2"}), pay, says("Paid."))
    platform: Platform = await start_with_models(agent_max_turns=1, **outside(site))
    run_id = await platform.submit(prompt="Pay 10.", max_retries=3)
    run = await ended(platform, run_id)
    assert (posts(site), run.status, len(models.asked)) == (1, RunStatus.FAILED, 2)
    assert any("is not planned anew" in line for line in await platform.lines(run_id))


@pytest.mark.slow
async def test_an_agent_that_fails_before_it_has_reached_outside_is_tried_again(
    start_with_models: StartWithModels, models: ScriptedModels, site: Site
) -> None:
    site.pages["/pay"] = status("429 Too Many Requests")
    models.answer(lambda asked: asks_for(("http_request", post(site)["arguments"])))
    platform: Platform = await start_with_models(agent_max_turns=1, **outside(site))
    run = await ended(platform, await platform.submit(agent(retry=RETRY)))
    assert (posts(site), run.status) == (3, RunStatus.FAILED)


async def _cut_off(
    platform: Platform, *steps: dict[str, Any], changing: bool, failed: str | None = None, planner: str = "given"
) -> str:
    """A run whose worker was lost in its step `pay`."""
    run_id = await platform.submit(*steps)
    plan = parse_plan({"steps": list(steps)}).model_copy(update={"planner": planner})
    claim = await platform.claimed()
    await platform.taken(claim)

    def write(transaction: RunTransaction) -> None:
        transaction.save_plan(plan, pending_steps(plan))
        transaction.begin_step("pay", 1)
        if changing:
            transaction.step_is_changing("pay")
        if failed:
            error = RunError("not_found", "there is no such file", step=failed)
            transaction.begin_step(failed, 1)
            transaction.end_step(failed, StepStatus.FAILED, {"error": error.as_dict()}, None, 1)

    await platform.resources.store.running_runs.write(run_id, claim.generation, write)
    return run_id


async def test_an_approved_request_that_a_person_repeats_is_approved_anew_with_its_exact_arguments(
    start_platform: StartPlatform, site: Site
) -> None:
    site.pages["/pay"] = status("500 Internal Server Error")
    platform = await start_platform(**outside(site))
    async with worker(platform.settings):
        run_id = await platform.submit(post(site, approval=True))
        [first] = await _asked(platform, run_id, 1)
        await platform.submission.decide(platform.user, run_id, first.id, DecisionStatus.APPROVED, {})
        await wait_until(lambda: _is_uncertain(platform, run_id), what="the step is uncertain")
        site.pages["/pay"] = status("200 OK")
        await platform.submission.retry(platform.user, run_id, uncertain_step_is_done=False)
        _, anew = await _asked(platform, run_id, 2)
        assert posts(site) == 1
        assert (await platform.until(run_id, RunStatus.WAITING)).error.code == "approval_required"  # type: ignore[union-attr]
        assert anew.asked["arguments"] == first.asked["arguments"]
        assert "the run was retried" in anew.asked["reason"]
        await platform.submission.decide(platform.user, run_id, anew.id, DecisionStatus.APPROVED, {})
        await platform.completed(run_id)
    assert posts(site) == 2


async def _asked(platform: Platform, run_id: str, number: int) -> list[Decision]:
    async def asked() -> list[Decision] | None:
        found = await platform.resources.store.decisions.of_run(run_id)
        return found if len(found) == number else None

    found = await wait_until(asked, what=f"{number} decisions of {run_id}")
    assert found is not None
    return found


async def _is_uncertain(platform: Platform, run_id: str) -> bool:
    return is_uncertain(await platform.run(run_id))
