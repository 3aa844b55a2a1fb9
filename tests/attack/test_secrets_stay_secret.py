"""Against what an agent runs, and against accidents: a value that a run was given stands in nothing that is kept,
shown, logged, or sent to a model, through all claims of the run and in all runs that are made from it.

The database is searched as a file, so that no table is forgotten.
"""

import base64
import html
import json
import random
import re
import shlex
import subprocess
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any
from urllib.parse import quote, quote_plus

import pytest
from pydantic import SecretStr
from sqlalchemy import Connection, select, text

from app.schemas.execute import ForkRun, NewRun
from backplane.domain.decisions import Decision, DecisionKind, DecisionStatus
from backplane.domain.runs import Run, RunError, RunStatus
from backplane.domain.secrets import Secret
from backplane.process import log as process_log
from backplane.sealing import Seal, new_key
from backplane.store.tables import webhook_deliveries
from tests.databases import downgrade
from tests.integration.agent.conftest import StartWithModels, models, plan_of, says, start_with_models
from tests.integration.worker.conftest import StartPlatform
from tests.integration.worker.tools import Scripted, equip
from tests.platform.workers import Platform, worker
from tests.scripted_models import ScriptedModels
from tests.submitted import shell
from tests.waiting import wait_until
from worker.run.redaction import LINES_MAX, Redactor
from worker.run.secrets import ToolSecrets
from worker.tools.base import NeedsPerson, ToolContext, ToolResult

__all__ = ["models", "start_with_models"]

VALUE = "s3cr3t-Value_of-the-user-0815"
OTHER = "an0ther-Value_of-the-user-4711"
WITH_ALL = "pa ss'w\"ord\\with/all+of=them&<x>$!\u00e9"
KEY = "-----BEGIN KEY-----\nMIIEowIBAAKCAQEA1234567890\nqqqqqqqqqqqqqqqqqqqq\n-----END KEY-----\n"


# --- the forms in which programs write a value ---


def printed_by(*command: str) -> Callable[[str], str]:
    """What a real program prints of it, on its output or its errors. It is the last argument, and $0 of a shell."""

    def write(value: str) -> str:
        done = subprocess.run([*command, value], capture_output=True, check=True, env={"PATH": "/usr/bin:/bin"})
        return (done.stdout + done.stderr).decode()

    return write


def in_base64(before: str, columns: int = 0) -> Callable[[str], str]:
    def write(value: str) -> str:
        text = base64.b64encode(f"{before}{value}{before}".encode()).decode()
        return "\n".join(text[at : at + columns] for at in range(0, len(text), columns)) if columns else text

    return write


def hexed(separator: str) -> Callable[[str], str]:
    return lambda value: separator.join(f"{byte:02x}" for byte in value.encode())


FORMS: dict[str, Callable[[str], str]] = {
    "as it is": str,
    "base64, first": in_base64(""),
    "base64, after 1": in_base64("x"),
    "base64, after 2": in_base64("xy"),
    "base64, after 5": in_base64("user:"),
    "base64 in lines of 76": in_base64("x" * 60, 76),
    "base64 in lines of 19": in_base64("user:", 19),
    "base64 of URLs": lambda value: base64.urlsafe_b64encode(b"abc" + value.encode()).decode(),
    "hex": lambda value: value.encode().hex(),
    "hex in capitals": lambda value: value.encode().hex().upper(),
    "hex in lines": lambda value: "\n".join(value.encode().hex()[at : at + 30] for at in range(0, 400, 30)).strip(),
    "hex with blanks": hexed(" "),
    "hex with colons": hexed(":"),
    "hex as escapes": lambda value: "\\x" + hexed("\\x")(value),
    "hex as an array": lambda value: "0x" + hexed(", 0x")(value),
    "bytes as numbers": lambda value: str(list(value.encode())),
    "percent-encoded": lambda value: quote(value, safe=""),
    "percent-encoded in small letters": lambda value: re.sub(
        "%..", lambda code: code[0].lower(), quote(value, safe="")
    ),
    "percent-encoded but for slashes": quote,
    "of a form": quote_plus,
    "percent-encoded twice": lambda value: quote(quote(value, safe=""), safe=""),
    "percent-encoded all": lambda value: "%" + hexed("%")(value),
    "JSON": lambda value: json.dumps({"key": value}),
    "JSON in UTF-8": lambda value: json.dumps([value], ensure_ascii=False),
    "JSON in JSON": lambda value: json.dumps(json.dumps(json.dumps(value))),
    "Python": repr,
    "Python, ASCII": ascii,
    "Python bytes": lambda value: repr(value.encode()),
    "HTML": html.escape,
    "a shell's quotes": shlex.quote,
    "doubled quotes": lambda value: value.replace("'", "''").replace('"', '""'),
    "set -x": printed_by("bash", "-xc", 'true "$0"'),
    "set -x of an assignment": printed_by("bash", "-xc", 'KEY="$0"; export KEY'),
    "set -x of sh": printed_by("sh", "-xc", 'true "$0"'),
    "printf %q": printed_by("bash", "-c", 'printf %q "$0"'),
    "declare": printed_by("bash", "-c", 'K="$0"; declare -p K'),
    "env": printed_by("bash", "-c", 'env -i K="$0" /usr/bin/env'),
    "od": printed_by("bash", "-c", 'printf %s "$0" | od -An -v -tx1 -w4096'),
    "fold": printed_by("bash", "-c", 'printf %s "$0" | fold -w 12'),
    "in capitals": str.upper,
    "in two lines": lambda value: f"{value[:9]}\n{value[9:]}",
    "in two lines of Windows": lambda value: f"{value[:12]}\r\n{value[12:]}",
    "coloured": lambda value: f"\x1b[1;31m\x1b[K{value[:6]}\x1b[m\x1b[K{value[6:]}",
    "UTF-16": lambda value: value.encode("utf-16-le").decode("latin-1"),
}


@pytest.mark.parametrize("value", [VALUE, WITH_ALL], ids=["a token", "a password"])
@pytest.mark.parametrize("form", FORMS)
def test_a_value_is_found_in_every_form_that_programs_write_it_in(form: str, value: str) -> None:
    redactor = Redactor()
    redactor.learn("TOKEN", value)
    written = FORMS[form](value)
    text = redactor.text(f"before {written} after")
    assert "[secret TOKEN]" in text
    for part in (written, value, value[4:-4], written[len(written) // 4 : -len(written) // 4]):
        assert part not in text
    assert text.startswith("before ")
    assert text.endswith(" after")


@pytest.mark.parametrize("form", FORMS)
def test_a_value_is_found_wherever_what_a_program_writes_is_cut_in_two(form: str) -> None:
    redactor = Redactor()
    redactor.learn("TOKEN", VALUE)
    written = FORMS[form](VALUE).encode("latin-1" if form == "UTF-16" else "utf-8")
    for at in range(1, len(written)):
        parts: list[bytes] = []
        stream = redactor.stream(parts.append)
        stream.write(b"before " + written[:at])
        stream.write(written[at:] + b" after")
        stream.close()
        text = b"".join(parts)
        assert b"[secret TOKEN]" in text, at
        assert written[len(written) * 3 // 8 : len(written) * 5 // 8] not in text, at


@pytest.mark.parametrize("line", [line for line in KEY.splitlines() if "-----" not in line])
def test_each_line_of_a_key_file_counts_as_the_secret(line: str) -> None:
    redactor = Redactor()
    redactor.learn("KEY", KEY)
    assert redactor.text(f"    {line}") == "    [secret KEY]"
    assert redactor.text(base64.b64encode(f"x{line}".encode()).decode()).count("[secret KEY]") == 1


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("abc123", "[secret PIN]"),
        ("xabc123y", "x[secret PIN]y"),
        ("ABC123 abc 123 abc\n123 bc123", "ABC123 abc 123 abc\n123 bc123"),
        (base64.b64encode(b"u:abc123").decode(), "dTphYm[secret PIN]M="),
    ],
)
def test_a_short_value_is_found_as_it_is_and_nothing_like_it(text: str, expected: str) -> None:
    redactor = Redactor()
    redactor.learn("PIN", "abc123")
    redacted = redactor.text(text)
    assert redacted == expected or (text.startswith("d") and "[secret PIN]" in redacted)


def test_of_values_that_hold_or_overlap_each_other_nothing_is_left() -> None:
    redactor = Redactor()
    for name, value in {"A": "inner-value-1", "B": "the-inner-value-1-outer", "C": "outer-and-more-of-it"}.items():
        redactor.learn(name, value)
    assert redactor.text("x the-inner-value-1-outer-and-more-of-it y inner-value-1 z") == "x [secret B] y [secret A] z"


def test_a_number_that_is_a_secret_is_found_where_people_and_models_write_numbers() -> None:
    redactor = Redactor()
    redactor.learn("PIN", "48291337")
    event = {"duration_ms": 48291337, "asked": {"arguments": {"pin": 48291337, "n": 3, "is": True}}, "line": "48291337"}
    assert redactor.value(event) == {
        "duration_ms": 48291337,
        "asked": {"arguments": {"pin": "[secret PIN]", "n": 3, "is": True}},
        "line": "[secret PIN]",
    }


def test_words_of_the_platform_stay_though_somebody_made_a_secret_of_them() -> None:
    redactor = Redactor()
    redactor.learn("WORD", "completed")
    redactor.learn("KEY", "status")
    event = {"status": "completed", "error": {"code": "completed"}, "asked": {"arguments": {"status": "completed"}}}
    assert redactor.value({**event, "line": "it is completed"}) == {
        "status": "completed",
        "error": {"code": "completed"},
        "asked": {"arguments": {"[secret KEY]": "[secret WORD]"}},
        "line": "it is [secret WORD]",
    }


def test_what_was_put_in_for_a_secret_is_not_redacted_again() -> None:
    redactor = Redactor()
    redactor.learn("PASSWORD", "PASSWORD")
    redactor.learn("OTHER", "secret PASSWORD")
    once = redactor.text("it is PASSWORD")
    assert (once, redactor.text(once)) == ("it is [secret PASSWORD]",) * 2


URL = "postgres://app:s3cr3t-Pw@db.example.org/app"


async def test_titles_and_lines_that_end_as_a_secret_begins_stay_and_a_killed_commands_output_is_redacted(
    working: Platform,
) -> None:
    await keep(working, "URL", URL)
    step = using("use", "echo use postgres; echo postgres://", "URL", title="Move to postgres")
    cut = using("cut", 'printf %s "$KEY" | head -c 20; kill -9 $$', "URL", needs=["use"])
    run_id = await working.submit(step, cut)
    await working.until(run_id, RunStatus.FAILED)
    assert await working.lines(run_id) == ["use postgres", "postgres://", "[secret URL]"]
    assert (await working.resources.store.journal.steps(run_id))[0].title == "Move to postgres"


def test_so_many_lines_of_a_runs_secrets_are_found_by_themselves_and_no_more() -> None:
    redactor = Redactor()
    redactor.learn("KEY", "\n".join(f"line-{number:09}" for number in range(LINES_MAX + 1)))
    assert redactor.text(f"a line-{LINES_MAX - 1:09} b") == "a [secret KEY] b"
    assert redactor.text(f"a line-{LINES_MAX:09} b") == f"a line-{LINES_MAX:09} b"


def test_ordinary_text_stays_as_it_is_however_many_secrets_there_are() -> None:
    redactor, choice = Redactor(), random.Random(3)
    for number in range(50):
        redactor.learn(f"S{number}", "".join(choice.choices("abcdefghijklmnop0123456789-_/+", k=6 + number)))
    text = Path(__file__).read_text()
    assert redactor.text(text) == text


def test_a_program_cannot_have_output_held_back_without_end() -> None:
    redactor = Redactor()
    redactor.learn("AS", "a" * 12)
    redactor.learn("MORE", "a" * 13)
    redactor.learn("TOKEN", VALUE)
    parts: list[bytes] = []
    stream = redactor.stream(parts.append)
    for piece in (b"a" * 1000, VALUE[:10].encode() + b"\n" * 100_000, b'\\"' * 100_000):
        before = sum(map(len, parts))
        for _ in range(10):
            stream.write(piece)
        assert sum(map(len, parts)) > before
        assert len(stream._pending) < 10_000


HARD = {
    "what was put in, again and again": ("abcdef123456xyz", "[secret TOKEN]abcdef123456xyz"),
    "one letter": ("a" * 20, "a"),
    "beginnings of a long value": ("abcdefgh" * 4000 + "!", "abcdefgh"),
    "quotes": ("a'b'c'd'e'f'g'h'i'j'k'l", "a'"),
    "lines": ("\n".join(f"line-{number:09}" for number in range(2000)), "line-000000001\n"),
}


@pytest.mark.parametrize("hard", HARD)
def test_no_output_makes_redaction_take_long(hard: str) -> None:
    value, unit = HARD[hard]
    redactor = Redactor()
    redactor.learn("TOKEN", value)
    chunk = (unit * 70_000)[:65_536].encode()
    began = time.process_time()
    stream = redactor.stream(lambda _: None)
    for _ in range(4):
        stream.write(chunk)
    stream.close()
    # Processor time for a quarter of a megabyte: 0.2 s on an idle machine, and minutes where it grows with the square.
    assert time.process_time() - began < 10.0


# --- whole runs ---


async def keep(platform: Platform, name: str, value: str, *, seal: Seal | None = None) -> None:
    seal = seal or platform.resources.seal
    assert seal is not None
    sealed = seal.seal(value, user_id=platform.user.id, name=name)
    secret = Secret(name, sealed, ("shell", "scripted", "http_fetch"), ())
    await platform.resources.store.secrets.put(platform.user.id, secret, most=10)


def database_of(platform: Platform) -> bytes:
    path = Path(platform.settings.database_url.get_secret_value().removeprefix("sqlite:///"))
    return b"".join(file.read_bytes() for file in path.parent.glob(f"{path.name}*"))


async def shows_nothing_of(platform: Platform, run_id: str, *values: str) -> None:
    live = repr(await platform.resources.event_log.after(run_id, 0, 100_000))
    kept = database_of(platform)
    for value in values:
        assert value.encode() not in kept
        assert value not in live


def using(id: str, script: str, name: str = "TOKEN", **more: Any) -> dict[str, Any]:
    step = shell(id, script, **more)
    step["arguments"]["environment"] = {"KEY": f"${{secrets.{name}}}"}
    return step


SAVE = using("save", 'printf "%s\n" "$KEY" > token.txt')
SHOW = shell("show", "cat token.txt; base64 -w0 token.txt; od -An -tx1 -v token.txt | tr -d ' \\n'", needs=["save"])


@pytest.fixture
async def platform(start_platform: StartPlatform) -> Platform:
    platform = await start_platform(secrets_key=new_key())
    await keep(platform, "TOKEN", VALUE)
    return platform


@pytest.fixture
async def working(platform: Platform) -> AsyncIterator[Platform]:
    async with worker(platform.settings):
        yield platform


async def open_question(platform: Platform, run_id: str) -> Decision:
    async def found() -> Decision | None:
        decisions = await platform.resources.store.decisions.of_run(run_id)
        return next((one for one in decisions if one.status is DecisionStatus.PENDING), None)

    decision = await wait_until(found)
    assert decision is not None
    return decision


async def decide(platform: Platform, run_id: str, **answer: Any) -> None:
    decision = await open_question(platform, run_id)
    await platform.submission.decide(platform.user, run_id, decision.id, DecisionStatus.APPROVED, answer)


def redacted_lines(lines: list[str]) -> int:
    return sum(line.count("[secret TOKEN]") for line in lines)


async def test_a_file_that_is_printed_after_an_approval_is_redacted(working: Platform) -> None:
    run_id = await working.submit(SAVE, {**SHOW, "approval": True})
    await decide(working, run_id)
    await working.completed(run_id)
    assert redacted_lines(await working.lines(run_id)) == 3
    await shows_nothing_of(working, run_id, VALUE, VALUE.encode().hex(), base64.b64encode(VALUE.encode()).decode()[:36])


async def test_an_approval_of_arguments_that_hold_a_secret_counts_and_is_not_asked_for_again(working: Platform) -> None:
    await keep(working, "PIN", "48291337")
    step = using("s", "true # 48291337", "PIN", approval=True)
    step["arguments"]["environment"] |= {"status": "48291337", "KEY": "${secrets.PIN}"}
    run_id = await working.submit(step)
    await decide(working, run_id)
    await working.completed(run_id)
    [decision] = await working.resources.store.decisions.of_run(run_id)
    assert decision.asked["arguments"]["environment"]["status"] == "[secret PIN]"


@pytest.mark.parametrize("gone", ["changed", "deleted"])
async def test_a_value_that_was_changed_or_deleted_since_is_redacted_when_the_run_is_retried(
    platform: Platform, gone: str
) -> None:
    secrets = platform.resources.store.secrets
    failing = shell("fail", "cat token.txt; exit 1", needs=["save"])
    async with worker(platform.settings):
        run_id = await platform.submit(SAVE, failing)
        await platform.until(run_id, RunStatus.FAILED)
        if gone == "changed":
            await keep(platform, "TOKEN", OTHER)
        else:
            await secrets.delete(platform.user.id, "TOKEN")
        await platform.submission.retry(platform.user, run_id, uncertain_step_is_done=False)
        await wait_until(lambda: failed_twice(platform, run_id))
    assert (await platform.lines(run_id)).count("[secret TOKEN]") == 2
    await shows_nothing_of(platform, run_id, VALUE)


async def test_a_run_that_an_older_release_gave_a_value_is_redacted_after_an_upgrade_and_a_change(
    platform: Platform,
) -> None:
    store = platform.resources.store
    async with worker(platform.settings):
        run_id = await platform.submit(SAVE, {**SHOW, "approval": True})
        await open_question(platform, run_id)

    def as_an_older_release_leaves_it(connection: Connection) -> None:
        connection.execute(text("DELETE FROM run_secrets"))
        downgrade(connection, "0008")

    await store.database.write(as_an_older_release_leaves_it)
    await store.migrate()
    await keep(platform, "TOKEN", OTHER)
    async with worker(platform.settings):
        await decide(platform, run_id)
        await platform.completed(run_id)
    assert redacted_lines(await platform.lines(run_id)) == 3
    await shows_nothing_of(platform, run_id, VALUE)


async def failed_twice(platform: Platform, run_id: str) -> bool:
    run = await platform.run(run_id)
    return run.status is RunStatus.FAILED and run.generation == 2


@pytest.mark.slow
async def test_the_next_attempt_of_a_run_redacts_what_the_one_before_was_given(working: Platform) -> None:
    failing = shell("fail", "cat token.txt; exit 1", needs=["save"])
    run_id = await working.submit(SAVE, failing, shell("x", "true", needs=["save"]))
    await working.until(run_id, RunStatus.FAILED)
    await working.submission.retry_from(working.user, run_id, "fail")
    await wait_until(lambda: failed_twice(working, run_id))
    await shows_nothing_of(working, run_id, VALUE)


@pytest.mark.parametrize("kind", ["fork", "replay", pytest.param("fork of a fork", marks=pytest.mark.slow)])
async def test_a_run_that_is_made_from_a_run_redacts_what_that_one_was_given(platform: Platform, kind: str) -> None:
    async with worker(platform.settings):
        source = await platform.completed(await platform.submit(SAVE, SHOW))
        await keep(platform, "TOKEN", OTHER)
        made = await derived(platform, source, kind)
        await platform.completed(made.id)
    assert redacted_lines(await platform.lines(made.id)) == (3 if kind == "replay" else 4)
    await shows_nothing_of(platform, made.id, VALUE, OTHER)


async def derived(platform: Platform, source: Run, kind: str) -> Run:
    if kind == "replay":
        return await platform.submission.replay(platform.user, source.id, None)
    if kind == "fork of a fork":
        source = await platform.completed((await derived(platform, source, "fork")).id)
    # Nothing in it names the secret any more.
    plan = {"steps": [SAVE, shell("other", "cat token.txt", needs=["save"]), SHOW]}
    return await platform.submission.fork(
        platform.user, ForkRun(action="fork", run_id=source.id, step="save", plan=plan), None
    )


async def test_a_file_that_is_named_after_a_secret_is_not_named_in_the_result(working: Platform) -> None:
    run_id = await working.submit(using("name", 'echo x > "file-$KEY.txt"; ls; echo "$KEY" > out'))
    run = await working.completed(run_id)
    assert run.result is not None
    assert "file-[secret TOKEN].txt" in run.result["files"]
    shown = repr((run, await working.history(run_id), [record.result for record in await working.journal(run_id)]))
    assert VALUE not in shown


async def test_a_value_that_a_file_holds_before_a_step_has_used_it_is_redacted(platform: Platform) -> None:
    new = NewRun(prompt="a test", plan={"steps": [shell("first", "cat .env"), using("then", "true", needs=["first"])]})
    run = await platform.submission.create(platform.user, new, None, start=False)
    await platform.write(run.id, ".env", f"export TOKEN={VALUE}\n".encode())
    await platform.submission.start(platform.user, run.id)
    async with worker(platform.settings):
        await platform.completed(run.id)
    assert await platform.lines(run.id) == ["export TOKEN=[secret TOKEN]"]
    await shows_nothing_of(platform, run.id, VALUE)


@pytest.mark.slow
async def test_a_secret_that_a_person_named_when_they_approved_is_redacted_in_later_claims(working: Platform) -> None:
    await keep(working, "EDITED", OTHER)
    run_id = await working.submit(
        {**SAVE, "approval": True}, {**SHOW, "approval": True}, shell("last", "cat token.txt", needs=["show"])
    )
    edited = using("save", 'printf "%s\n" "$KEY" > token.txt', "EDITED")["arguments"]
    await decide(working, run_id, arguments=edited)
    await working.until(run_id, RunStatus.WAITING)
    await decide(working, run_id)
    await working.completed(run_id)
    assert (await working.lines(run_id))[-1] == "[secret EDITED]"
    await shows_nothing_of(working, run_id, OTHER)


async def test_errors_tracebacks_dead_letters_and_the_workers_log_are_redacted(
    platform: Platform, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    async def act(call: int, context: ToolContext) -> ToolResult:
        assert isinstance(context.secrets, ToolSecrets)
        value = await context.secrets.run.value_of("TOKEN", "scripted", None)
        context.notice(f"asking with {value}")
        raise RuntimeError(f"{value} was refused by {quote(value)}")

    equip(monkeypatch, Scripted(act))
    process_log.configure(format="json", level="info", process="worker")
    run_id = await run_with(platform, "scripted", RunStatus.FAILED)
    failures = await platform.resources.store.dead_letters.failures(run_id)
    assert "RuntimeError: [secret TOKEN] was refused" in failures[-1].traceback
    await shows_nothing_of(platform, run_id, VALUE)
    logged = capfd.readouterr().err
    assert "[secret TOKEN] was refused by" in logged
    assert VALUE not in logged


async def run_with(platform: Platform, tool: str, *until: RunStatus, **values: Any) -> str:
    """A run of one step, whose prompt names the secret."""
    async with worker(platform.settings):
        run_id = await platform.submit(
            {"id": "s", "tool": tool, "arguments": {}}, prompt="With ${secrets.TOKEN}.", **values
        )
        await platform.until(run_id, *until)
    return run_id


async def test_what_a_tool_asks_a_person_is_redacted_before_it_is_cut(
    platform: Platform, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def act(call: int, context: ToolContext) -> ToolResult:
        # The event shows a thousand characters of each text: the cut is in the middle of the value.
        raise NeedsPerson(DecisionKind.QUESTION, {"question": "x" * 980 + VALUE, "arguments": {"token": [VALUE]}})

    equip(monkeypatch, Scripted(act))
    run_id = await run_with(platform, "scripted", RunStatus.WAITING)
    decision = await open_question(platform, run_id)
    assert decision.asked["arguments"] == {"token": ["[secret TOKEN]"]}
    await shows_nothing_of(platform, run_id, VALUE, VALUE[:12])


async def test_a_models_plan_prompts_answers_and_summary_are_redacted(
    start_with_models: StartWithModels, models: ScriptedModels
) -> None:
    platform: Platform = await start_with_models(secrets_key=new_key(), working=False)
    await keep(platform, "TOKEN", VALUE)
    steps = [{**shell("s", f"echo {VALUE}"), "title": f"Say {VALUE}"}]
    models.script(plan_of(*steps), says(f"It said {VALUE}."))
    async with worker(platform.settings):
        run_id = await platform.submit(prompt="Say what ${secrets.TOKEN} is.")
        run = await platform.completed(run_id)
    assert run.result is not None
    assert run.result["summary"] == "It said [secret TOKEN]."
    assert VALUE not in repr([asked.body for asked in models.asked])
    await shows_nothing_of(platform, run_id, VALUE)


async def test_a_webhook_does_not_contain_a_secret(platform: Platform, monkeypatch: pytest.MonkeyPatch) -> None:
    async def act(call: int, context: ToolContext) -> ToolResult:
        return ToolResult(1, error=RunError("refused", f"they refused {VALUE}"))

    equip(monkeypatch, Scripted(act))
    run_id = await run_with(platform, "scripted", RunStatus.FAILED, webhook_url="https://hooks.example/x")
    query = select(webhook_deliveries.c.body).where(webhook_deliveries.c.run_id == run_id)
    [body] = await platform.resources.store.database.read(lambda connection: connection.scalars(query).all())
    assert "they refused [secret TOKEN]" in body
    await shows_nothing_of(platform, run_id, VALUE)


async def test_a_run_whose_secrets_cannot_be_opened_any_more_fails_and_prints_nothing(
    platform: Platform,
) -> None:
    async with worker(platform.settings):
        run_id = await platform.submit(SAVE, shell("fail", "exit 1", needs=["save"]))
        await platform.until(run_id, RunStatus.FAILED)
    await platform.submission.retry(platform.user, run_id, uncertain_step_is_done=False)
    with_another_key = platform.settings.model_copy(update={"secrets_key": SecretStr(new_key())})
    async with worker(with_another_key):
        await wait_until(lambda: failed_twice(platform, run_id))
    run = await platform.run(run_id)
    assert run.error is not None
    assert run.error.code == "secrets_not_kept"
    assert "put the key that SECRETS_KEY had then back" in run.error.message
