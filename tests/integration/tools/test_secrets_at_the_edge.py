"""From the sealed row to the command's environment, and out of all that it says again."""

import asyncio
import re
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import pytest

from backplane.domain.runs import Run
from backplane.domain.secrets import Secret
from backplane.domain.users import Tier
from backplane.errors import Forbidden, InvalidInput, InvalidPlan, NotFound, Unavailable
from backplane.sealing import Seal, SecretsNotKept, new_key
from backplane.store import Store
from backplane.store.database import Database
from backplane.store.secrets import SecretStore
from tests.submitted import new_run
from tests.tool_bench import Bench
from worker.run.interruption import Interruption
from worker.run.redaction import Redactor
from worker.run.secrets import RunSecrets
from worker.steps.output import OutputLimits, StepOutput, TokenBucket

VALUE = "s3cr3t with $pecial 'quotes' \"and\" ünicode"
LIMITS = OutputLimits(
    events=10_000, result=10_000, line=200, file=1_000_000, file_seconds=30.0, lines_per_second=0, lines_burst=1
)


class Keeper:
    """A user with secrets, and a run."""

    def __init__(self, store: Store, run: Run) -> None:
        self.store = store
        self.run_id = run.id
        self.user_id = run.user_id
        self.seal = Seal(new_key())
        self.redactor = Redactor()

    async def keep(
        self, name: str, value: str = VALUE, tools: tuple[str, ...] = ("shell", "python"), hosts: tuple[str, ...] = ()
    ) -> None:
        sealed = self.seal.seal(value, user_id=self.user_id, name=name)
        await self.store.secrets.put(self.user_id, Secret(name, sealed, tools, hosts), most=10)

    def of(self, tool: str, written: Any = None) -> Any:
        return self.run_secrets(self.seal).of_tool(tool, written)

    def run_secrets(self, seal: Seal | None) -> RunSecrets:
        return RunSecrets(self.store.secrets, seal, self.run_id, self.user_id, self.redactor)


@pytest.fixture
async def keeper(sqlite_database: str) -> AsyncIterator[Keeper]:
    store = Store(Database(sqlite_database))
    token, _ = await store.users.create_token("ada", Tier.STANDARD)
    yield Keeper(store, await store.runs.create(new_run(token.user)))
    await store.database.close()


@pytest.fixture
async def shell(bench: Bench, keeper: Keeper) -> Bench:
    bench.context = replace(bench.context, secrets=keeper.of("shell"))
    return bench


async def test_a_command_gets_the_value_as_it_is(shell: Bench, keeper: Keeper) -> None:
    await keeper.keep("TOKEN")
    await shell.step("shell", script='printf "%s" "$KEY"', environment={"KEY": "<${secrets.TOKEN}> $${secrets.TOKEN}"})
    assert shell.said.decode() == f"<{VALUE}> ${{secrets.TOKEN}}"


async def test_what_a_program_prints_of_it_in_pieces_is_neither_in_events_nor_result_nor_file(
    shell: Bench, keeper: Keeper
) -> None:
    await keeper.keep("TOKEN", "abcdefghijklmnop")
    said: list[Any] = []
    output = StepOutput("step", replace(LIMITS, events=300), TokenBucket(0, 1, 0.0), lambda _, data: said.append(data))
    stream = keeper.redactor.stream(output.write)
    shell.context = replace(shell.context, output=stream.write)
    code = (
        "import os, sys, time, base64\n"
        "for letter in os.environ['KEY'] * 3:\n"
        "    sys.stdout.write(letter); sys.stdout.flush(); time.sleep(0.002)\n"
        "print()\nprint(base64.b64encode(('user:' + os.environ['KEY']).encode()).decode())\nprint('x' * 2000)\n"
        "print(os.environ['KEY'])"
    )
    shell.context = replace(shell.context, secrets=keeper.of("python"))
    await shell.step("python", code=code, environment={"KEY": "${secrets.TOKEN}"})
    stream.close()
    result = output.finish()
    assert output.is_incomplete
    await output.store(shell.context.workspace, shell.context.quota, Interruption())
    file = (await shell.files())[".output/step.log"].decode()
    for text in (str(said), result, file):
        assert "abcdefghijklmnop" not in text
        assert "YWJjZGVmZ2hpamtsbW5vc" not in text
        assert "abcdefgh" not in text
        assert text.count("[secret TOKEN]") >= 3
    assert file == "[secret TOKEN]" * 3 + "\ndXNlcjp[secret TOKEN]\n" + "x" * 2000 + "\n[secret TOKEN]\n"
    output.discard()


async def test_a_tool_or_host_that_it_is_not_for_does_not_get_it(keeper: Keeper) -> None:
    await keeper.keep("TOKEN", tools=("http_fetch",), hosts=("api.example.org", "*.example.com:8443"))
    fetch = keeper.of("http_fetch")
    for host in ("api.example.org", "a.example.com:8443"):
        assert await fetch.fill("${secrets.TOKEN}", host=host) == VALUE
    for host in ("example.org", "api.example.org:8080", "a.example.com", "api.example.org.evil.example", "", "a b"):
        with pytest.raises(Forbidden, match="`hosts`"):
            await fetch.fill("${secrets.TOKEN}", host=host)
    with pytest.raises(Forbidden, match="`tools`"):
        await keeper.of("shell").fill("${secrets.TOKEN}")


async def test_one_that_is_not_there_is_said_and_a_text_without_any_costs_nothing(keeper: Keeper) -> None:
    with pytest.raises(NotFound, match="OTHER"):
        await keeper.of("shell").fill("${secrets.OTHER}")
    without_key = keeper.run_secrets(None).of_tool("shell")
    assert await without_key.fill("${HOME} $${secrets.TOKEN} ${secrets.lower}") == (
        "${HOME} ${secrets.TOKEN} ${secrets.lower}"
    )
    with pytest.raises(SecretsNotKept, match="SECRETS_KEY"):
        await without_key.fill("${secrets.TOKEN}")


async def test_a_secret_that_only_what_was_read_names_is_not_filled_in(keeper: Keeper) -> None:
    await keeper.keep("TOKEN")
    await keeper.keep("OTHER", "other-value")
    secrets = keeper.of("shell", [{"environment": {"A": "${secrets.OTHER}", "B": "${steps.read.output}"}}, None])
    assert await secrets.fill("${secrets.TOKEN} ${secrets.OTHER}") == "${secrets.TOKEN} other-value"


async def test_a_value_is_given_out_only_once_it_is_kept_with_the_run(
    keeper: Keeper, monkeypatch: pytest.MonkeyPatch
) -> None:
    await keeper.keep("TOKEN")
    secrets, keep = keeper.of("shell"), SecretStore.keep_with_run
    answers: list[Exception | None] = [Unavailable("away", part="database"), None]

    async def first_away(self: SecretStore, *given: Any) -> None:
        if error := answers.pop(0):
            raise error
        await keep(self, *given)

    monkeypatch.setattr(SecretStore, "keep_with_run", first_away)
    with pytest.raises(Unavailable):
        await secrets.fill("${secrets.TOKEN}")
    assert await secrets.fill("${secrets.TOKEN}") == VALUE
    assert [value.name for value in await keeper.store.secrets.kept_with_run(keeper.run_id)] == ["TOKEN"]
    # Nothing is asked any more once it is kept.
    assert await secrets.fill("${secrets.TOKEN}") == VALUE


async def test_of_two_steps_that_ask_at_once_neither_gets_the_value_before_it_is_kept(
    keeper: Keeper, monkeypatch: pytest.MonkeyPatch
) -> None:
    await keeper.keep("TOKEN")
    secrets, keep, get = keeper.of("shell"), SecretStore.keep_with_run, SecretStore.get
    asked, may_keep, read = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def slowly(self: SecretStore, *given: Any) -> None:
        asked.set()
        await may_keep.wait()
        await keep(self, *given)

    async def noted(self: SecretStore, *given: Any) -> Secret:
        found = await get(self, *given)
        if asked.is_set():
            read.set()
        return found

    monkeypatch.setattr(SecretStore, "keep_with_run", slowly)
    monkeypatch.setattr(SecretStore, "get", noted)
    first = asyncio.create_task(secrets.fill("${secrets.TOKEN}"))
    await asked.wait()
    second = asyncio.create_task(secrets.fill("${secrets.TOKEN}"))
    await read.wait()
    await asyncio.sleep(0)
    assert not second.done()
    may_keep.set()
    assert list(await asyncio.gather(first, second)) == [VALUE, VALUE]


async def test_one_that_was_changed_holds_from_the_next_use_on(keeper: Keeper) -> None:
    secrets = keeper.of("shell")
    await keeper.keep("TOKEN", "first-value")
    assert await secrets.fill("${secrets.TOKEN}") == "first-value"
    await keeper.keep("TOKEN", "second-value")
    assert await secrets.fill("${secrets.TOKEN}") == "second-value"
    assert keeper.redactor.text("first-value second-value") == "[secret TOKEN] [secret TOKEN]"


@pytest.mark.parametrize("tool", ["shell", "mcp"])
async def test_every_value_that_was_filled_in_is_kept_with_the_run_for_whoever_takes_it_over(
    keeper: Keeper, tool: str
) -> None:
    for value in ("first-value", "second-value"):
        await keeper.keep("TOKEN", value, tools=(tool,))
        await keeper.of(tool).fill("${secrets.TOKEN} ${secrets.TOKEN}")
    await keeper.store.secrets.delete(keeper.user_id, "TOKEN")
    keeper.redactor = Redactor()
    await keeper.run_secrets(keeper.seal).learn([], was_given_some=True)
    assert keeper.redactor.text("first-value second-value") == "[secret TOKEN] [secret TOKEN]"


async def test_what_is_named_and_cannot_be_opened_is_left_to_the_step_that_uses_it(keeper: Keeper) -> None:
    await keeper.keep("TOKEN")
    keeper.seal = Seal(new_key())
    await keeper.run_secrets(keeper.seal).learn(["TOKEN", "NONE"], was_given_some=False)
    assert await keeper.store.secrets.kept_with_run(keeper.run_id) == frozenset()
    with pytest.raises(SecretsNotKept, match="set the secret anew"):
        await keeper.of("shell").fill("${secrets.TOKEN}")


async def test_more_than_an_environment_holds_is_refused_without_showing_it(shell: Bench, keeper: Keeper) -> None:
    await keeper.keep("BIG", "x" * 32_000)
    with pytest.raises(InvalidInput, match="environment") as raised:
        await shell.step("shell", script=":", environment={"A": "${secrets.BIG}" * 5})
    assert "xxx" not in str(raised.value)


@pytest.mark.parametrize(
    ("tool", "arguments"),
    [
        ("shell", {"script": "echo ${secrets.TOKEN}"}),
        ("python", {"code": "print('${secrets.TOKEN}')"}),
        ("python", {"code": "1", "args": ["${secrets.TOKEN}"]}),
        ("shell", {"script": ":", "environment": {"A": "${secrets.token}"}}),
        ("shell", {"script": ":", "environment": {"A": "${secrets.TOKEN"}}),
    ],
)
async def test_where_it_cannot_be_put_in_it_is_refused_with_the_plan(
    bench: Bench, tool: str, arguments: dict[str, Any]
) -> None:
    with pytest.raises(InvalidPlan, match=re.escape("secret")):
        await bench.step(tool, **arguments)


async def test_what_looks_like_one_can_be_written_in_a_program(bench: Bench) -> None:
    await bench.step("python", code="print('$${secrets.TOKEN} ${{ secrets.TOKEN }}')")
    assert bench.said.decode() == "${secrets.TOKEN} ${{ secrets.TOKEN }}\n"


async def test_elsewhere_it_stays_as_it_is(bench: Bench) -> None:
    await bench.step("file_write", path="a", content="${secrets.TOKEN}")
    assert await bench.files() == {"a": b"${secrets.TOKEN}"}
