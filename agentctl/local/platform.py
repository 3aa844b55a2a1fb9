"""The whole platform as processes of this machine: started in order, kept running, stopped in order.

The port and the folder are checked before anything starts; Redis, tables, token; then API, workers and
controller. Back: the API first, so that nothing new comes in; then the workers, which get their grace for the steps
that run, and the controller; Redis last, since API and workers speak with it to their end.
"""

import asyncio
import contextlib
import os
import signal
import socket
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agentctl.api.client import connect
from agentctl.exit_codes import CommandError, ExitCode
from agentctl.local import data_folder
from agentctl.local.configuration import load_settings, masked
from agentctl.local.embedded import EmbeddedRedis, find_redis_server, redis_version
from agentctl.local.redis_cli import url_for_redis_cli
from agentctl.local.sandbox_check import check_sandbox, sandbox_in_words
from backplane.credentials import credentials_withheld_from
from backplane.domain.users import Tier
from backplane.errors import NotFound
from backplane.process.supervisor import (
    ChildProcess,
    Part,
    Report,
    child_environment,
    how_it_ended,
    keep_running,
    python_module,
    stop_together,
)
from backplane.process.tasks import end
from backplane.redis_access import rq_is_possible
from backplane.resources import SQLITE_PATH_BYTES, connect_store, migrate, take_over_redis
from backplane.sealing import new_key
from backplane.settings import Settings

START_SECONDS = 60.0
API_GRACE_SECONDS = 5
WORKER_LAST_WORDS_SECONDS = 10.0
"""Beyond its grace: for handing back what is unfinished and closing its connections."""
FIRST_USER = "local"


@dataclass(frozen=True)
class Locations:
    """Where the platform listens and keeps its data. `workers` is the number of worker processes."""

    host: str
    port: int
    data: Path
    workers: int

    @property
    def url(self) -> str:
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(self.host, self.host)  # noqa: S104 - named, not bound
        return f"http://[{host}]:{self.port}" if ":" in host else f"http://{host}:{self.port}"

    @property
    def token_file(self) -> Path:
        return self.data / "token"


@dataclass
class Platform:
    """What runs. `parts` are for people: the name of a part and what it is. `keepers` run until they are cancelled."""

    place: Locations
    token: str
    parts: dict[str, str]
    seconds: float
    children: list[ChildProcess]
    keepers: list[asyncio.Task[None]]
    redis_socket: Path | None
    """Of the embedded Redis."""

    @property
    def pids(self) -> dict[str, int | None]:
        return {child.name: child.pid for child in self.children}


@contextlib.contextmanager
def ended_by_signals(children: list[ChildProcess], report: Report) -> Iterator[None]:
    """The first SIGINT, SIGTERM or SIGHUP cancels the task that is in this block; a second SIGINT or SIGTERM kills
    `children`. A terminal that is closed may send SIGHUP twice, by the kernel and by its shell."""
    task, loop = asyncio.current_task(), asyncio.get_running_loop()
    if task is None:
        raise RuntimeError("not in a task")
    stopping = asked = False

    def on_signal(number: signal.Signals) -> None:
        nonlocal stopping, asked
        if not stopping:
            stopping = True
            task.cancel()  # before anything is printed, which may fail
            with contextlib.suppress(OSError, SystemExit):
                report("stopping", "Stopping; running steps may still end. A second signal ends everything at once.")
        elif asked and number != signal.SIGHUP:
            for child in children:
                child.kill()
        asked = asked or number != signal.SIGHUP

    signals = [signal.SIGINT, signal.SIGTERM]
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # `nohup` has asked to go on
        signals.append(signal.SIGHUP)
    for number in signals:
        loop.add_signal_handler(number, on_signal, number)
    try:
        yield
    finally:
        for number in signals:
            loop.remove_signal_handler(number)


@contextlib.asynccontextmanager
async def running(
    place: Locations, settings: Settings, report: Report, children: list[ChildProcess], *, embedded_only: bool = False
) -> AsyncIterator[Platform]:
    """Everything up and answering, kept so until the block ends, then stopped in order.

    `embedded_only` leaves aside the parts that the settings name. `children` is filled with the processes as they
    start. Raises CommandError or PlatformError when something is in the way or does not come up; nothing is left
    running then.
    """
    began = time.monotonic()
    check_port(place)
    data_folder.prepare(place.data)
    async with contextlib.AsyncExitStack() as stack:
        stack.enter_context(data_folder.locked(place.data))
        given = frozenset[str]() if embedded_only else frozenset(settings.model_fields_set)
        variables, parts = _embedded_settings(place, settings, given)
        if "secrets_key" not in given:
            variables["SECRETS_KEY"] = data_folder.kept_secret(place.data / "secrets.key", new_key)
        redis = None if "redis_url" in given else await _redis(place, report, stack)
        keepers: list[asyncio.Task[None]] = []
        if redis is not None:
            keepers.append(_keep(stack, redis, "redis", report))
            variables |= {"REDIS_URL": redis.url, "UPSTASH_REDIS_REST_URL": "", "UPSTASH_REDIS_REST_TOKEN": ""}
            version = redis_version(find_redis_server() or Path())
            parts["redis"] = f"{'.'.join(map(str, version or ()))}, embedded, socket {redis.socket.absolute()}"
            data_folder.write_secret(place.data / "redis.password", f"{redis.password}\n")
        redis_url = variables.get("REDIS_URL") or url_for_redis_cli(
            settings.redis_url.get_secret_value(), settings.redis_username, settings.redis_password.get_secret_value()
        )
        data_folder.write_secret(place.data / "redis.url", f"{redis_url}\n")
        settings = load_settings(**_by_field(settings, variables))
        token = await _tables_and_token(place, settings)
        if redis is not None:
            # It is this folder's alone, so a database that was used with it before is not used with it any more.
            await take_over_redis(settings)
        environment = child_environment(variables)
        sandbox = asyncio.create_task(check_sandbox(environment))
        stack.callback(sandbox.cancel)
        children += _children(place, settings, environment)
        stack.push_async_callback(_stop, list(children), settings, report)
        for child in children:
            await child.start()
        await _until_ready(
            place, token, children, lambda child: keepers.append(_keep(stack, child, child.name, report))
        )
        parts["sandbox"] = await sandbox_in_words(sandbox)
        yield Platform(
            place, token, parts, time.monotonic() - began, children, keepers, redis.socket if redis else None
        )


def _keep(stack: contextlib.AsyncExitStack, part: Part, name: str, report: Report) -> asyncio.Task[None]:
    """Restart `part` whenever it ends, from now until `stack` has unwound to here, which is before `part` is stopped
    when what stops it was pushed before."""
    keeper = asyncio.create_task(keep_running(part, name, report))
    stack.push_async_callback(end, keeper)
    return keeper


def check_port(place: Locations) -> None:
    """Raises CommandError when the API could not listen there."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            place.host, place.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except OSError as error:
        raise CommandError(
            ExitCode.RUN_FAILED,
            f"Cannot listen on {place.host} port {place.port}: {error.strerror or error}. "
            "Stop what listens there, or name another with --port.",
        ) from None


def _embedded_settings(
    place: Locations, settings: Settings, given: frozenset[str]
) -> tuple[dict[str, str], dict[str, str]]:
    """The environment variables for what is embedded apart from Redis, and what all parts are, for people."""
    data = place.data.resolve()
    variables: dict[str, str] = {}
    parts = {"redis": masked(settings.redis_url), "database": masked(settings.database_url)}
    if "database_url" not in given:
        if len(os.fsencode(data / "agent.db")) > SQLITE_PATH_BYTES:
            message = f"The path of {place.data} is too long: SQLite takes {SQLITE_PATH_BYTES} bytes."
            raise CommandError(ExitCode.USAGE, f"{message} Name another folder with --data.")
        variables |= {"DATABASE_URL": f"sqlite:///{data / 'agent.db'}", "PGBOUNCER_URL": ""}
        parts["database"] = f"SQLite, {place.data / 'agent.db'}"
    if "s3_bucket" in given and settings.s3_bucket:
        parts["workspaces"] = f"S3, bucket {settings.s3_bucket}"
    elif "workspace_dir" in given:
        parts["workspaces"] = str(settings.workspace_dir)
    else:
        variables |= {"WORKSPACE_DIR": str(data / "workspaces"), "S3_BUCKET": ""}
        parts["workspaces"] = str(place.data / "workspaces")
    if "agent_launcher" not in given:
        variables["AGENT_LAUNCHER"] = "processes"
    for setting in ("memory_dir", "artifacts_dir"):
        if setting not in given:
            variables[setting.upper()] = str(data / setting.removesuffix("_dir"))
    return variables, parts


def environment_of_running(data: Path, settings: Settings) -> dict[str, str]:
    """The environment of a further process of the platform that the environment names, or that `agentctl up` runs with
    this folder. Raises CommandError when there is neither."""
    given, url = frozenset[str](settings.model_fields_set), data / "redis.url"
    if "redis_url" in given and "database_url" in given:
        return child_environment({})
    if not (data / "lock").exists() or not url.exists():
        raise CommandError(
            ExitCode.USAGE,
            f"No platform runs with the folder {data}: start `agentctl up` in another terminal, name its folder with "
            "--data, or set REDIS_URL and DATABASE_URL.",
        )
    variables, _ = _embedded_settings(Locations("127.0.0.1", 0, data, 1), settings, given)
    if "redis_url" not in given:
        variables["REDIS_URL"] = url.read_text().strip()
    if "secrets_key" not in given and (data / "secrets.key").exists():
        variables["SECRETS_KEY"] = (data / "secrets.key").read_text("ascii").strip()
    return child_environment({**variables, "METRICS_PORT": "0"})


def _by_field(settings: Settings, variables: dict[str, str]) -> dict[str, Any]:
    given = {name: getattr(settings, name) for name in settings.model_fields_set}
    return given | {name.lower(): value for name, value in variables.items()}


async def _redis(place: Locations, report: Report, stack: contextlib.AsyncExitStack) -> EmbeddedRedis:
    """The embedded server, with its log where the others are."""
    redis = await stack.enter_async_context(
        EmbeddedRedis(place.data / "redis", lambda sentence: report("moved_aside", sentence))
    )
    log = place.data / "logs" / "redis.log"
    log.unlink(missing_ok=True)
    log.symlink_to("../redis/redis.log")
    return redis


async def _tables_and_token(place: Locations, settings: Settings) -> str:
    await migrate(settings)
    async with connect_store(settings) as store:
        file = place.token_file
        if file.exists():
            file.chmod(0o600)
            token = file.read_text(errors="replace").strip()
            if await store.users.user_of(token) is not None:
                return token
        try:
            tier = (await store.users.find(FIRST_USER)).tier
        except NotFound:
            # Whoever starts the platform runs it: dead letters, budgets and artifacts of all are for administrators.
            tier = Tier.ADMIN
        _, token = await store.users.create_token(FIRST_USER, tier, "agentctl up")
        data_folder.write_secret(file, f"{token}\n")
        return token


def _children(place: Locations, settings: Settings, environment: dict[str, str]) -> list[ChildProcess]:
    """In the order in which they are stopped."""
    logs = place.data / "logs"

    def child(name: str, *module: str, variables: dict[str, str]) -> ChildProcess:
        return ChildProcess(name, python_module(*module), environment=variables, log=logs / f"{name}.log")

    listen = ["--host", place.host, "--port", str(place.port)]
    if settings.single_process:
        return [child("api", "standalone", *listen, "--logs", str(logs), variables=environment)]
    api = ["uvicorn", "app.main:create_app", "--factory", *listen]
    api += ["--timeout-graceful-shutdown", str(API_GRACE_SECONDS)]
    children = [child("api", *api, variables=_for(environment, "api", settings))]
    workers = [(f"worker-{number}", "worker") for number in range(1, place.workers + 1)]
    jobs = [("jobs", "controller.jobs")] if rq_is_possible(settings) else []
    for number, (name, module) in enumerate([*workers, ("controller", "controller"), *jobs]):
        # They share the machine, so each has the port after the one before.
        own = {"METRICS_PORT": str(settings.metrics_port + number)} if settings.metrics_port else {}
        children.append(child(name, module, variables={**_for(environment, module.partition(".")[0], settings), **own}))
    if settings.agent_launcher == "processes":
        # Its children carry out runs, so it has what workers have.
        variables = {**_for(environment, "worker", settings), "METRICS_PORT": "0"}
        children.append(child("pools", "controller.pools", "--logs", str(logs), variables=variables))
    return children


def _for(environment: dict[str, str], process: str, settings: Settings) -> dict[str, str]:
    """Without the credentials that the process does not need. They are empty, not left out: the process reads `.env`
    too, which has a say where the environment has none."""
    return {**environment, **dict.fromkeys(credentials_withheld_from(process, settings), "")}


async def _stop(children: list[ChildProcess], settings: Settings, report: Report) -> None:
    """The API, then the others together."""
    api, *others = children
    grace = max(settings.worker_grace_seconds, settings.webhook_timeout_seconds) + WORKER_LAST_WORDS_SECONDS
    await api.stop(API_GRACE_SECONDS + WORKER_LAST_WORDS_SECONDS if others else API_GRACE_SECONDS + grace)
    await stop_together(others, grace)
    for child in children:
        if child.returncode == -signal.SIGKILL:
            report("killed", f"{child.name} did not end by itself and was killed.")


async def _until_ready(
    place: Locations, token: str, children: list[ChildProcess], keep: Callable[[ChildProcess], None]
) -> None:
    """Until the API says that it is ready and sees the workers. `keep` is called with each child once it has started
    well: the API as soon as it is ready, the others when the workers are seen. Raises CommandError when a child ends
    before that, since it would hardly start better a second time, or when it all takes too long."""
    waiting_for = "the API"
    api, starting = children[0], list(children)
    try:
        async with asyncio.timeout(START_SECONDS), connect(place.url, token, lambda _: None) as client:
            while True:
                if dead := [child for child in starting if child.returncode is not None]:
                    child = dead[0]
                    sentence = f"{child.name} {how_it_ended(child.returncode or 0)} at its start."
                    raise CommandError(ExitCode.RUN_FAILED, f"{sentence}\n{child.last_words()}".rstrip())
                try:
                    readiness = await client.readiness()
                    if readiness["ok"]:
                        waiting_for = "the workers"
                        if api in starting:
                            starting.remove(api)
                            keep(api)
                        # In one process there is no child of this name, and one worker.
                        workers = sum(child.name.startswith("worker") for child in children)
                        if (await client.queue())["workers"] >= max(1, workers):
                            break
                    else:
                        bad = {name: part["error"] for name, part in readiness["parts"].items() if not part["ok"]}
                        waiting_for = "; ".join(f"{name}: {error}" for name, error in bad.items())
                except CommandError as error:
                    if error.exit_code is not ExitCode.UNREACHABLE:
                        raise
                await asyncio.sleep(0.02)
            for child in starting:
                keep(child)
    except TimeoutError:
        sentence = f"Not ready within {START_SECONDS:.0f} s; still waiting for {waiting_for}."
        lines = [sentence, *(child.last_words() for child in children)]
        raise CommandError(ExitCode.RUN_FAILED, "\n".join(filter(None, lines))) from None
