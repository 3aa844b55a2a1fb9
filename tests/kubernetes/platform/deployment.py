"""A deployed platform as tests use it: kubectl, the project's own scripts, and users who make runs and watch them.

A cluster for tests may have no kube-proxy, so that a Service leads nowhere; users reach the API's pods by their own
addresses, and find another one when theirs goes.
"""

import asyncio
import json
import os
import subprocess
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from tests.waiting import wait_until

PROJECT = Path(__file__).parents[3]
NAMESPACE, TOOLS_NAMESPACE = "agents", "agents-tools"
PRIORITY_CLASS = "agent-platform"
API, WORKER, CONTROLLER = "agent-api", "agent-worker", "agent-controller"
RUN_SECONDS = 150.0

JsonObject = dict[str, Any]
Completed = subprocess.CompletedProcess[str]


def shell_plan(script: str, *, repeatable: bool = False) -> JsonObject:
    """Writes a file, then runs a script that may read it."""
    return {
        "steps": [
            {"id": "write", "tool": "file_write", "arguments": {"path": "in.txt", "content": "one two three\n"}},
            {
                "id": "shell",
                "tool": "shell",
                "arguments": {"script": script},
                "needs": ["write"],
                "repeatable": repeatable,
            },
        ]
    }


@dataclass(frozen=True)
class Deployment:
    kubectl: str
    overlay: Path
    credentials: Path
    image: str

    def deploy(
        self, *arguments: str, image: str | None = None, credentials: Path | None = None, **environment: str
    ) -> Completed:
        """deploy-phase2b.sh, as an operator would call it."""
        command = [str(PROJECT / "deploy-phase2b.sh"), "--image", image or self.image, "--overlay", str(self.overlay)]
        command += ["--credentials", str(credentials or self.credentials), *arguments]
        return self._run(command, timeout=400, **environment)

    def verify(self, token: str, *arguments: str) -> Completed:
        return self._run([str(PROJECT / "verify-phase2b.sh"), *arguments], timeout=300, AGENT_API_TOKEN=token)

    def _run(self, command: list[str], *, timeout: float, **environment: str) -> Completed:
        outside = {name: os.environ[name] for name in ("PATH", "KUBECONFIG", "HOME") if name in os.environ}
        return subprocess.run(
            command,
            env=outside | {"KUBECTL": self.kubectl} | environment,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )

    def run(self, *arguments: str) -> str:
        """What kubectl answers. Raises AssertionError with its words when it refuses."""
        done = subprocess.run(
            [self.kubectl, *arguments],
            capture_output=True,
            text=True,
            timeout=120,
            stdin=subprocess.DEVNULL,
            check=False,
        )
        assert done.returncode == 0, f"kubectl {' '.join(arguments)}: {done.stderr}"
        return done.stdout

    def apply(self, made: JsonObject, *arguments: str) -> str:
        """One object. Raises AssertionError with kubectl's words when it is refused."""
        done = subprocess.run(
            [self.kubectl, "apply", "-f", "-", *arguments],
            input=json.dumps(made),
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    def get(self, *arguments: str, namespace: str = NAMESPACE) -> JsonObject:
        answer: JsonObject = json.loads(self.run("get", *arguments, "-n", namespace, "-o", "json"))
        return answer

    def pods(self, deployment: str) -> list[JsonObject]:
        """Those of a deployment that were not asked to end."""
        prefix = f"{deployment}-"
        return [
            pod
            for pod in self.get("pods")["items"]
            if pod["metadata"]["name"].startswith(prefix) and "deletionTimestamp" not in pod["metadata"]
        ]

    def ready(self, deployment: str) -> int:
        return int(self.get("deployment", deployment)["status"].get("readyReplicas", 0))

    async def settled(self, deployment: str, seconds: float = 150.0) -> None:
        """Its newest pods run, and no others."""
        command = ("rollout", "status", f"deployment/{deployment}", "-n", NAMESPACE, f"--timeout={seconds:.0f}s")
        await asyncio.to_thread(self.run, *command)

    async def scaled(self, deployment: str, replicas: int) -> None:
        await asyncio.to_thread(
            self.run, "scale", f"deployment/{deployment}", f"--replicas={replicas}", "-n", NAMESPACE
        )

        async def there() -> bool:
            found = await asyncio.to_thread(self.pods, deployment)
            return len(found) == replicas and await asyncio.to_thread(self.ready, deployment) == replicas

        await wait_until(there, 150, f"{deployment} has {replicas} pods")

    def token(self, user: str, tier: str = "admin") -> str:
        """As the deploy script says to make one."""
        command = ["exec", "-n", NAMESPACE, f"deployment/{API}", "--", "python", "-m", "agentctl"]
        return self.run(*command, "token", "create", "--user", user, "--tier", tier).splitlines()[0]


@dataclass
class User:
    """One who talks to any API pod that is ready, and to another one when that goes away."""

    deployment: Deployment
    token: str
    resumed: int = 0
    """How often a stream was cut and went on at another connection."""

    @asynccontextmanager
    async def client(self) -> AsyncIterator[httpx.AsyncClient]:
        """Of one pod, by its address."""

        def addresses() -> list[str]:
            return [
                pod["status"]["podIP"]
                for pod in self.deployment.pods(API)
                if any(
                    condition["type"] == "Ready" and condition["status"] == "True"
                    for condition in pod["status"].get("conditions", [])
                )
            ]

        found: list[str] = await wait_until(lambda: asyncio.to_thread(addresses), 60, "an API pod is ready")
        headers = {"Authorization": f"Bearer {self.token}"}
        async with httpx.AsyncClient(
            base_url=f"http://{found[0]}:8000", headers=headers, timeout=httpx.Timeout(30, connect=3)
        ) as client:
            yield client

    async def ask(self, method: str, path: str, body: JsonObject | None = None, key: str | None = None) -> JsonObject:
        """What the API answers; asked again of another pod while none answers, as the Service would have it."""
        headers = {"Idempotency-Key": key} if key else {}

        async def answer() -> httpx.Response | None:
            with suppress(httpx.TransportError):
                async with self.client() as client:
                    got = await client.request(method, path, json=body, headers=headers)
                    return None if got.status_code == 503 else got
            return None

        got = await wait_until(answer, 90, f"{method} {path} is answered")
        assert got is not None
        assert got.is_success, f"{method} {path}: {got.status_code} {got.text}"
        answered: JsonObject = got.json()
        return answered

    async def start(self, plan: JsonObject, key: str) -> str:
        body = {"action": "run", "prompt": "test", "plan": plan}
        return str((await self.ask("POST", "/agent/execute", body, key))["run_id"])

    async def show(self, run_id: str) -> JsonObject:
        return await self.ask("GET", f"/agent/runs/{run_id}")

    async def follow(self, run_id: str, seen: Callable[[JsonObject], None] = lambda event: None) -> list[JsonObject]:
        """All events to the run's end, over as many connections as it takes."""
        events: list[JsonObject] = []
        async with asyncio.timeout(RUN_SECONDS):
            while not events or events[-1]["type"] != "end":
                cut_short = bool(events)
                with suppress(httpx.TransportError):
                    async with self.client() as client:
                        await self._read(client, run_id, events, seen)
                if cut_short:
                    self.resumed += 1
        return events

    async def _read(
        self, client: httpx.AsyncClient, run_id: str, events: list[JsonObject], seen: Callable[[JsonObject], None]
    ) -> None:
        headers = {"Last-Event-ID": str(events[-1]["id"])} if events else {}
        async with client.stream("GET", f"/agent/logs/{run_id}/stream", headers=headers) as response:
            if response.status_code == 503:
                return
            assert response.status_code == 200, response.status_code
            numbered = False
            async for line in response.aiter_lines():
                if line.startswith("id:"):
                    numbered = True
                elif line.startswith("data:") and numbered:
                    events.append(json.loads(line[5:]))
                    numbered = False
                    seen(events[-1])
                    if events[-1]["type"] == "end":
                        return


@dataclass
class Load:
    """Runs that are made and watched, one after another on each of several lanes, until it is stopped."""

    user: User
    plan: JsonObject
    lanes: int = 4
    finished: dict[str, list[JsonObject]] = field(default_factory=dict)
    """Of each run its events."""
    _stop: asyncio.Event = field(default_factory=asyncio.Event)

    @asynccontextmanager
    async def flowing(self) -> AsyncIterator["Load"]:
        """At its end every run that was accepted is over."""
        async with asyncio.TaskGroup() as tasks:
            for lane in range(self.lanes):
                tasks.create_task(self._lane(lane))
            yield self
            self._stop.set()

    async def _lane(self, lane: int) -> None:
        number = 0
        while not self._stop.is_set():
            run_id = await self.user.start(self.plan, f"{id(self)}-{lane}-{number}")
            self.finished[run_id] = await self.user.follow(run_id)
            number += 1

    async def more(self, runs: int) -> None:
        """Waits until so many further runs are over."""
        enough = len(self.finished) + runs
        await wait_until(lambda: len(self.finished) >= enough, RUN_SECONDS, f"{runs} more runs are over")

    def check(self) -> None:
        """Every run was completed, and its watcher saw each event once and in order."""
        assert self.finished
        for run_id, events in self.finished.items():
            numbers = [event["id"] for event in events]
            assert numbers == list(range(1, len(numbers) + 1)), f"run {run_id}: {numbers}"
            assert events[-1]["data"]["status"] == "completed", f"run {run_id}: {events[-1]}"
