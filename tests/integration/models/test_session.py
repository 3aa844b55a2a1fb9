"""What a run's calls of models leave behind, and what they cost, whatever comes in between."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import pytest

from backplane.domain.budgets import MICRO
from backplane.domain.events import EventType
from backplane.domain.model_calls import CallKey, CallStatus
from backplane.domain.users import User
from backplane.errors import BudgetExhausted, InvalidInput, ModelError, Superseded
from backplane.process.tasks import end
from backplane.resources import Resources
from backplane.settings import fixed
from tests.integration.models.conftest import asking as request_of
from tests.integration.models.runs import Asking, RunModelsInTest, asking
from tests.scripted_models import TYPES, Asked, Reply, Said, ScriptedModels, pieces_of, refusal, said
from tests.waiting import wait_until
from worker.llm import waiting
from worker.llm.base import (
    Message,
    ModelContextTooLong,
    ModelRateLimited,
    ModelRefused,
    ModelUnavailable,
)
from worker.llm.replay import ReplayDiverged
from worker.run.interruption import Cause, Interrupted

PLAN = CallKey("", "plan", 1)
OPENAI = {"content-type": TYPES["openai"]}


def servers(scripted: ScriptedModels, **more: Any) -> dict[str, Any]:
    return {
        "model": "one/m",
        "model_servers": {
            "one": {"kind": "openai", "url": scripted.url, "slots": 0},
            "two": {"kind": "ollama", "url": scripted.url, "slots": 0},
        },
        "model_prices": {"one/m": {"input": 1, "output": 10}},
        **more,
    }


@pytest.fixture
async def world(resources: Resources, user: User, scripted: ScriptedModels) -> AsyncIterator[Asking]:
    async with asking(resources, user, **servers(scripted)) as world:
        yield world


async def test_an_answer_is_written_down_with_its_question_and_its_cost(
    world: Asking, scripted: ScriptedModels
) -> None:
    scripted.script(said("openai", "Hel", "lo"))
    running = await world.running()
    received: list[str] = []
    response = await running.models.ask(request_of("Say hello."), PLAN, on_text=received.append)
    assert (response.text, response.model, response.micro_usd, received) == ("Hello", "one/m", 81, ["Hel", "lo"])
    [call] = await running.calls()
    assert (call.status, call.server, call.model, call.totals.micro_usd) == (CallStatus.COMPLETED, "one", "m", 81)
    assert call.request is not None
    assert [message["content"] for message in call.request["messages"]] == ["Be brief.", "Say hello."]
    assert call.response is not None
    assert call.response["text"] == "Hello"
    [event] = await running.event_data()
    assert event | {"duration_ms": 0} == {
        "step": "",
        "purpose": "plan",
        "number": 1,
        "model": "one/m",
        "status": "completed",
        "duration_ms": 0,
        "input_tokens": 11,
        "output_tokens": 7,
        "usd": 0.000081,
    }
    labels = {"server": "one", "model": "m"}
    assert world.sample("agent_model_cost_dollars_total", **labels) == pytest.approx(0.000081)
    assert world.sample("agent_model_tokens_total", **labels, direction="output") == 7
    assert world.sample("agent_model_seconds_count", **labels) == 1


async def test_what_was_answered_is_not_asked_again(world: Asking, scripted: ScriptedModels) -> None:
    scripted.script(said("openai", "Yes.", calls=[("look_up", {"word": "ox"})]))
    first = await world.running()
    answered = await first.models.ask(request_of(), PLAN)
    later = await world.running(first.run, generation=2)
    assert await later.models.ask(request_of(), PLAN) == answered
    assert len(scripted.asked) == 1
    assert later.models.spent() == first.models.spent()


async def test_another_question_in_its_place_is_asked(world: Asking, scripted: ScriptedModels) -> None:
    scripted.script(said("openai", "First."), said("openai", "Second."))
    running = await world.running()
    await running.models.ask(request_of("One?"), PLAN)
    assert (await running.models.ask(request_of("Two?"), PLAN)).text == "Second."
    spent = running.models.spent()
    assert (spent.calls, spent.output_tokens) == (1, 14)  # paid for is paid for


async def test_what_was_lost_in_the_middle_is_asked_again_and_counted_as_spent(
    world: Asking, scripted: ScriptedModels
) -> None:
    scripted.script(Reply(pieces_of("openai", Said(["Hel"]))[:2], headers=OPENAI, ending="hang"))
    lost = await world.running(budget={"tokens": 10_000})
    call = asyncio.create_task(lost.models.ask(request_of(), PLAN))
    await wait_until(lambda: scripted.running_calls == 1)
    # Another worker takes the run over, and the first never learns of it.
    scripted.script(said("openai", "Hello"))
    running = await world.running(lost.run, generation=2)
    assert (await running.models.ask(request_of(), PLAN)).text == "Hello"
    await end(call)
    balance, reserved, spent = (await running.balances())["run:tokens"]
    assert (balance + spent, reserved) == (10_000, 0)
    event = running.models.spent()
    assert event.input_tokens + event.output_tokens == spent
    assert event.output_tokens == 50 + 7  # as many as it may have had, and what the second had


async def test_an_error_that_may_pass_is_tried_again(world: Asking, scripted: ScriptedModels) -> None:
    scripted.script(refusal("openai", 500, "out of order"), said("openai", "Hello"))
    running = await world.running()
    assert (await running.models.ask(request_of(), PLAN)).text == "Hello"
    assert [event["status"] for event in await running.event_data()] == ["retrying", "completed"]
    [line] = [event["line"] for event in await running.event_data(EventType.LOG)]
    assert "out of order; trying again in" in line
    assert world.sample("agent_model_retries_total", server="one", reason="model_unavailable") == 1


async def test_a_server_that_is_always_too_busy_is_given_up(world: Asking, scripted: ScriptedModels) -> None:
    scripted.script(refusal("openai", 429, "later", retry_after="0"))
    running = await world.running()
    with pytest.raises(ModelRateLimited, match=r"later \(tried: one/m 4×\)"):
        await running.models.ask(request_of(), PLAN)
    assert len(scripted.asked) == 4
    [call] = await running.calls()
    assert call.status is CallStatus.FAILED
    assert call.error is not None
    assert call.error.code == "model_rate_limited"
    assert call.totals.micro_usd == 0


async def test_a_call_that_failed_may_be_made_again(world: Asking, scripted: ScriptedModels) -> None:
    scripted.script(refusal("openai", 400, "no"), said("openai", "Yes"))
    running = await world.running()
    with pytest.raises(ModelRefused):
        await running.models.ask(request_of(), PLAN)
    assert (await running.models.ask(request_of(), PLAN)).text == "Yes"


async def test_the_next_model_answers_where_one_refuses(
    resources: Resources, user: User, scripted: ScriptedModels
) -> None:
    scripted.script(refusal("openai", 404, "no such model"), said("ollama", "Here."))
    async with asking(resources, user, **servers(scripted, model_fallbacks=["two/n"])) as world:
        running = await world.running()
        response = await running.models.ask(request_of(), PLAN)
    assert (response.text, response.model, response.micro_usd) == ("Here.", "two/n", 0)
    [call] = await running.calls()
    assert (call.server, call.model) == ("two", "n")


async def test_when_all_models_have_failed_the_error_says_what_was_tried(
    resources: Resources, user: User, scripted: ScriptedModels
) -> None:
    scripted.script(refusal("openai", 400, "maximum context length is 8"), refusal("ollama", 404, "not found"))
    async with asking(resources, user, **servers(scripted, model_fallbacks=["two/n"])) as world:
        running = await world.running()
        # Of the two errors, the one that the caller can do something about.
        with pytest.raises(ModelContextTooLong, match=r"tried: one/m 1×, two/n 1×"):
            await running.models.ask(request_of(), PLAN)


async def test_a_model_that_was_named_has_no_fallbacks(
    resources: Resources, user: User, scripted: ScriptedModels
) -> None:
    scripted.script(refusal("ollama", 404, "no such model"), refusal("ollama", 404, "no such model"))
    async with asking(resources, user, **servers(scripted, model_fallbacks=["one/m"])) as world:
        of_the_run = await world.running(model="two/n")
        with pytest.raises(ModelRefused):
            await of_the_run.models.ask(request_of(), PLAN)
        of_the_call = await world.running()
        with pytest.raises(ModelRefused):
            await of_the_call.models.ask(request_of(), PLAN, model="two/n")
    assert [asked.path for asked in scripted.asked] == ["/api/chat", "/api/chat"]


async def test_a_run_may_name_its_model(world: Asking, scripted: ScriptedModels) -> None:
    scripted.script(said("ollama", "Hello"))
    running = await world.running(model="two/other")
    assert (await running.models.ask(request_of(), PLAN)).model == "two/other"
    assert world.sample("agent_model_calls_total", server="two", model="other", status="completed") == 1
    with pytest.raises(ModelRefused, match="there are: one, two"):
        await running.models.ask(request_of(), PLAN._replace(ordinal=2), model="three/x")


async def test_a_model_without_a_price_is_not_asked_within_a_budget_of_dollars(
    resources: Resources, user: User, scripted: ScriptedModels
) -> None:
    async with asking(resources, user, **servers(scripted, model_prices={})) as world:
        running = await world.running(budget={"usd": 1})
        with pytest.raises(ModelRefused, match="MODEL_PRICES"):
            await running.models.ask(request_of(), PLAN)
    assert scripted.asked == []


async def test_a_model_without_a_price_says_so_where_nobody_counts(
    resources: Resources, user: User, scripted: ScriptedModels
) -> None:
    scripted.script(said("openai", "Hello"))
    async with asking(resources, user, **servers(scripted, model_prices={})) as world:
        running = await world.running()
        assert (await running.models.ask(request_of(), PLAN)).micro_usd is None
        assert running.models.estimate_micro_usd(1, 1) is None
    [event] = await running.event_data()
    assert event["usd"] is None
    assert running.models.spent().micro_usd is None


async def test_a_call_that_cannot_be_paid_is_not_made(world: Asking, scripted: ScriptedModels) -> None:
    running = await world.running(budget={"tokens": 40})
    with pytest.raises(BudgetExhausted):
        await running.models.ask(request_of(), PLAN)
    assert scripted.asked == []
    assert await running.calls() == []
    assert (await running.balances())["run:tokens"] == (40, 0, 0)


async def test_what_a_call_took_is_settled_to_the_token(world: Asking, scripted: ScriptedModels) -> None:
    scripted.script(said("openai", "Hello"))
    running = await world.running(budget={"tokens": 1000, "usd": 1})
    await running.models.ask(request_of(), PLAN)
    assert await running.balances() == {
        "run:tokens": (1000 - 18, 0, 18),
        "run:micro_usd": (MICRO - 81, 0, 81),
    }


async def test_what_broke_off_is_paid_as_far_as_it_came(world: Asking, scripted: ScriptedModels) -> None:
    broken = Reply(pieces_of("openai", Said(["w" * 60]))[:2], headers=OPENAI, ending="cut")
    scripted.script(broken, refusal("openai", 503, "away"), said("openai", "Hello"))
    running = await world.running(budget={"tokens": 1000})
    await running.models.ask(request_of(), PLAN)
    spent = running.models.spent()
    assert spent.output_tokens == 20 + 0 + 7
    assert (await running.balances())["run:tokens"] == (
        1000 - spent.input_tokens - spent.output_tokens,
        0,
        spent.input_tokens + spent.output_tokens,
    )


async def test_a_cancelled_call_is_settled_with_the_runs_next_write(world: Asking, scripted: ScriptedModels) -> None:
    scripted.script(Reply(pieces_of("openai", Said(["w" * 60]))[:2], headers=OPENAI, ending="hang"))
    running = await world.running(budget={"tokens": 1000})
    received: list[str] = []
    call = asyncio.create_task(
        running.interruption.guard(running.models.ask(request_of(), PLAN, on_text=received.append))
    )
    await wait_until(lambda: received)
    running.interruption.set(Cause.CANCELLED)
    with pytest.raises(Interrupted):
        await call
    await wait_until(lambda: scripted.left == 1)
    assert [event["status"] for event in await running.event_data()] == ["cancelled"]
    balance, reserved, spent = (await running.balances())["run:tokens"]
    assert (balance + spent, reserved) == (1000, 0)
    assert spent > 20
    # This worker has ended the call, so no other one counts it as lost later.
    later = await world.running(running.run, generation=2)
    await later.models.load()
    event = later.models.spent()
    assert event.input_tokens + event.output_tokens == spent


async def test_secrets_are_neither_sent_nor_kept(world: Asking, scripted: ScriptedModels) -> None:
    scripted.script(said("openai", "It is hunter2.", calls=[("look_up", {"word": "hunter2"})]))
    running = await world.running(redact=lambda text: text.replace("hunter2", "[secret PASSWORD]"))
    response = await running.models.ask(request_of("What about hunter2?"), PLAN)
    assert "hunter2" not in str(scripted.asked[0].body)
    assert "hunter2" not in str(await running.calls())
    assert "hunter2" not in str(response)


async def test_a_long_prompt_is_cut_where_it_is_kept_but_not_where_it_is_known_by(
    resources: Resources, user: User, scripted: ScriptedModels, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fixed, "MODEL_RECORD_MAX_BYTES", 1000)
    scripted.script(said("openai", "a" * 9000), said("openai", "other"))
    async with asking(resources, user, **servers(scripted)) as world:
        running = await world.running()
        long = "x" * 50_000
        answered = await running.models.ask(request_of(f"{long}1{long}"), PLAN)
        assert (await running.models.ask(request_of(f"{long}1{long}"), PLAN)).text == answered.text == "a" * 9000
        assert (await running.models.ask(request_of(f"{long}2{long}"), PLAN)).text == "other"
    [call] = await running.calls()
    assert len(str(call.request)) < 2000
    assert "were not kept" in str(call.request)


async def test_a_prompt_over_the_limit_is_not_sent(resources: Resources, user: User, scripted: ScriptedModels) -> None:
    async with asking(resources, user, **servers(scripted, model_max_input_bytes=100)) as world:
        running = await world.running()
        with pytest.raises(ModelContextTooLong, match="MODEL_MAX_INPUT_BYTES allows 100"):
            await running.models.ask(request_of("x" * 92), PLAN)
        scripted.script(said("openai", "Hello"))
        await running.models.ask(request_of("x" * 91), PLAN)


async def test_a_worker_that_lost_the_run_asks_nobody(world: Asking, scripted: ScriptedModels) -> None:
    running = await world.running()
    await world.running(running.run, generation=2)
    with pytest.raises(Superseded):
        await running.models.ask(request_of(), PLAN)
    assert scripted.asked == []


async def test_what_a_step_spent_is_the_sum_of_all_its_rounds(world: Asking, scripted: ScriptedModels) -> None:
    scripted.script(said("openai", "Hello"))
    running = await world.running()
    for step, round in (("", 0), ("a", 0), ("a", 1), ("ab", 0)):
        await running.models.ask(request_of(), CallKey(step, "turn", 1, round))
    assert running.models.spent("a").calls == 2
    assert running.models.spent().calls == 4


async def test_a_wait_for_a_turn_is_published_and_ends_when_the_worker_drains(
    resources: Resources, user: User, scripted: ScriptedModels, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(waiting, "MOMENT_SECONDS", 0.0)
    scripted.script(Reply(status=0, ending="hang"))
    one = {"one": {"kind": "openai", "url": scripted.url, "slots": 1}}
    slots = asyncio.create_task(resources.slots.run())
    async with asking(resources, user, **servers(scripted, model_servers=one)) as world:
        first, second = await world.running(), await world.running()
        calls = [asyncio.create_task(first.models.ask(request_of(), PLAN))]
        await wait_until(lambda: scripted.running_calls == 1)
        calls.append(asyncio.create_task(second.models.ask(request_of(), PLAN)))

        async def event() -> bool:
            return any("1 in line" in event["line"] for event in await second.event_data(EventType.LOG))

        await wait_until(event)
        second.interruption.request_drain()
        with pytest.raises(Interrupted, match="drained"):
            await calls[1]
        await end(*calls)
    await end(slots)
    assert scripted.most_at_once == 1
    assert world.sample("agent_model_wait_seconds_count", **{"server": "one", "for": "slot"}) == 1  # the first's
    assert await second.calls() == []


async def test_token_buckets_are_charged_for_what_was_generated(
    resources: Resources, user: User, scripted: ScriptedModels
) -> None:
    scripted.script(said("openai", "Hello", output_tokens=40))
    rates = {"user_tokens_per_second": 0.001, "user_tokens_burst": 100.0}
    async with asking(resources, user, **servers(scripted, **rates)) as world:
        running = await world.running()
        await running.models.ask(request_of(), PLAN)
        spec = world.gateway.models.candidates(None)[0].spec
        [bucket] = world.gateway.limits.rates.buckets(user.id, "default", spec)
        assert await resources.buckets.level(bucket) == pytest.approx(60, abs=1)


DEFAULTS: dict[str, Any] = {"agent_tokens_per_second": None, "user_tokens_per_second": None}


async def test_the_first_wait_for_tokens_of_a_run_names_the_settings(
    resources: Resources, user: User, scripted: ScriptedModels, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(waiting, "MOMENT_SECONDS", 0.0)
    scripted.script(said("openai", "Hello", output_tokens=200))
    async with asking(resources, user, **servers(scripted, **DEFAULTS)) as world:
        running = await world.running()
        await running.models.ask(request_of(), PLAN)
        lines = list[str]()
        for number in (2, 3):
            call = asyncio.create_task(running.models.ask(request_of(), PLAN._replace(ordinal=number)))

            async def event(number: int = number) -> bool:
                lines[:] = [event["line"] for event in await running.event_data(EventType.LOG)]
                return len(lines) == number - 1

            await wait_until(event)
            await end(call)
    assert lines[0].startswith("waiting for model tokens, for ")
    assert "the limit is 10 a second for an agent (AGENT_TOKENS_PER_SECOND)" in lines[0]
    assert "(USER_TOKENS_PER_SECOND), by default, as the model server one seems to share" in lines[0]
    assert "TOKENS_PER_SECOND" not in lines[1]
    assert len(scripted.asked) == 1


async def test_a_model_server_elsewhere_has_no_limit_of_tokens_by_default(
    resources: Resources, user: User, scripted: ScriptedModels
) -> None:
    scripted.script(said("openai", "Hello", output_tokens=200))
    elsewhere = {"one": {"kind": "openai", "url": scripted.url, "local": False}}
    async with asking(resources, user, **servers(scripted, model_servers=elsewhere, **DEFAULTS)) as world:
        running = await world.running()
        for number in range(1, 6):
            await running.models.ask(request_of(), PLAN._replace(ordinal=number))
    assert len(scripted.asked) == 5


# --- replay ---


async def replayed(world: Asking, original: RunModelsInTest) -> RunModelsInTest:
    return await world.running(origin={"kind": "replay", "run_id": original.run.id})


async def test_a_replay_has_the_same_answers_without_a_server(world: Asking, scripted: ScriptedModels) -> None:
    scripted.script(said("openai", "One."), said("openai", "Two."))
    original = await world.running()
    first = await original.models.ask(request_of(), PLAN)
    second = await original.models.ask(request_of("And then?"), PLAN._replace(ordinal=2))
    replay = await replayed(world, original)
    assert await replay.models.ask(request_of(), PLAN) == first
    assert await replay.models.ask(request_of("And then?"), PLAN._replace(ordinal=2)) == second
    assert len(scripted.asked) == 2
    assert replay.models.spent().micro_usd == 0
    assert [event["replayed"] for event in await replay.event_data()] == [True, True]


async def test_a_replay_that_asks_something_else_says_where_they_part(world: Asking, scripted: ScriptedModels) -> None:
    scripted.script(said("openai", "One."))
    original = await world.running()
    await original.models.ask(request_of("How many files are there?"), PLAN)
    replay = await replayed(world, original)
    with pytest.raises(ReplayDiverged, match=r"plan 1: message 2 \(user\) was ….*files.*now is ….*lines"):
        await replay.models.ask(request_of("How many lines are there?"), PLAN)
    with pytest.raises(ReplayDiverged, match="it asks a model for plan 2"):
        await replay.models.ask(request_of("How many files are there?"), PLAN._replace(ordinal=2))


async def test_a_replay_fails_where_the_run_failed(world: Asking, scripted: ScriptedModels) -> None:
    scripted.script(refusal("openai", 400, "not today"))
    original = await world.running()
    with pytest.raises(ModelRefused):
        await original.models.ask(request_of(), PLAN)
    replay = await replayed(world, original)
    with pytest.raises(ModelError, match="not today"):
        await replay.models.ask(request_of(), PLAN)
    assert len(scripted.asked) == 1


async def test_a_replay_learns_again_that_a_prompt_was_too_long(world: Asking, scripted: ScriptedModels) -> None:
    scripted.script(refusal("openai", 400, "maximum context length is 8"))
    original = await world.running()
    replay = await replayed(world, original)
    for running in (original, replay):
        with pytest.raises(ModelContextTooLong, match="maximum context length"):
            await running.models.ask(request_of(), PLAN)


async def test_a_last_model_that_may_not_be_asked_ends_the_call(
    resources: Resources, user: User, scripted: ScriptedModels
) -> None:
    scripted.script(refusal("openai", 404, "no such model"))
    settings = servers(scripted, model_fallbacks=["one/dear"])
    async with asking(resources, user, **settings) as world:
        running = await world.running(budget={"usd": 1})
        with pytest.raises(ModelRefused, match="MODEL_PRICES"):
            await running.models.ask(request_of(), PLAN)
    [call] = await running.calls()
    assert (call.status, call.model) == (CallStatus.FAILED, "m")
    assert call.error is not None
    assert "MODEL_PRICES" in call.error.message


async def test_a_model_that_nobody_has_set_is_reported(resources: Resources, user: User) -> None:
    async with asking(resources, user) as world:
        running = await world.running()
        assert not world.gateway.models.is_set
        with pytest.raises(ModelRefused, match="set MODEL"):
            await running.models.ask(request_of(), PLAN)


@pytest.mark.parametrize(
    ("setting", "value"), [("model", "gone/m"), ("model_fallbacks", ["gone/m"]), ("embedding_model", "gone/m")]
)
async def test_a_setting_that_names_no_server_is_reported_before_any_run(
    resources: Resources, user: User, setting: str, value: Any
) -> None:
    with pytest.raises(InvalidInput, match=f"{setting.upper()}: there is no model server 'gone'"):
        async with asking(resources, user, **{setting: value}):
            pass


async def test_calls_of_steps_that_run_at_once_are_kept_apart(world: Asking, scripted: ScriptedModels) -> None:
    def echo(asked: Asked) -> Reply:
        return said("openai", asked.body["messages"][-1]["content"])

    scripted.answer(echo)
    running = await world.running(budget={"tokens": 100_000})
    asked = [running.models.ask(request_of(f"n{number}"), CallKey(f"s{number}", "turn", 1)) for number in range(8)]
    assert [answer.text for answer in await asyncio.gather(*asked)] == [f"n{number}" for number in range(8)]
    assert {call.key.step: (call.response or {})["text"] for call in await running.calls()} == {
        f"s{number}": f"n{number}" for number in range(8)
    }
    assert (await running.balances())["run:tokens"] == (100_000 - 8 * 18, 0, 8 * 18)


async def test_a_server_that_is_gone_is_unavailable_to_the_run(
    resources: Resources, user: User, scripted: ScriptedModels
) -> None:
    gone = {"one": {"kind": "openai", "url": "http://127.0.0.1:9", "slots": 0}}
    async with asking(resources, user, **servers(scripted, model_servers=gone, model_retries=1)) as world:
        running = await world.running()
        with pytest.raises(ModelUnavailable, match="cannot be reached"):
            await running.models.ask(replace(request_of(), messages=[Message("user", "?")]), PLAN)
