"""What calibration puts on the machine: agents that make tokens at a rate, for a while.

Two kinds. The built-in one makes runs whose step works for each token as long as a small local model does, so it needs
no model and goes the way of every run: queue, worker, sandbox. The other streams from a model server that speaks
OpenAI's API, as Ollama, vLLM and llama.cpp do, at the pace that the platform's own limit would allow.
"""

import asyncio
import json
import math
import time
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass

import httpx

from agentctl.api.client import Client
from agentctl.exit_codes import CommandError, ExitCode

START_SECONDS = 60.0
LOOK_SECONDS = 0.1
PIECE_SECONDS = 2.0

PROGRAM = """\
import sys, time
rate, seconds, cost = (float(word) for word in sys.argv[1:])
begin, made = time.monotonic(), 0
while (spent := time.monotonic() - begin) < seconds:
    if made < spent * rate:
        until = time.process_time() + cost
        while time.process_time() < until:
            pass
        made += 1
    else:
        time.sleep(min(0.01, 0.2 / rate))
print(made / (time.monotonic() - begin))
"""


@dataclass(frozen=True, slots=True)
class Window:
    """While it stands, the load is whole. `reached()` answers, after it, the tokens/s that each agent had."""

    seconds: float
    reached: Callable[[], float]


class Load(ABC):
    what: str

    @abstractmethod
    def running(self, rate: float, agents: int, seconds: float) -> AbstractAsyncContextManager[Window]:
        """A context in which so many agents make `rate` tokens/s each, for at least `seconds`. Raises CommandError."""


class BuiltInLoad(Load):
    """`token_seconds`: CPU that a token takes."""

    def __init__(self, client: Client, token_seconds: float) -> None:
        self._client = client
        self._token_seconds = token_seconds
        self.what = f"runs that work {token_seconds * 1000:g} ms for each token"

    @asynccontextmanager
    async def running(self, rate: float, agents: int, seconds: float) -> AsyncIterator[Window]:
        reached: list[float] = []
        words = [f"{number:.6f}" for number in (rate, seconds * 1.3, self._token_seconds)]
        step = {"id": "tokens", "tool": "python", "arguments": {"code": PROGRAM, "args": words}}
        new_run = {"prompt": "calibrate", "plan": {"steps": [step]}, "max_retries": 0}
        run_ids: list[str] = []
        try:
            for _ in range(agents):
                run_ids.append((await self._client.create(new_run, start=True))["run_id"])
            await self._until_begun(run_ids)
            yield Window(seconds, lambda: sum(reached) / agents)
            for run_id in run_ids:
                reached.append(await self._rate_of(run_id))
        finally:
            if len(reached) < len(run_ids):
                await asyncio.gather(
                    *(self._client.execute("cancel", run_id) for run_id in run_ids), return_exceptions=True
                )

    async def _until_begun(self, run_ids: list[str]) -> None:
        deadline = time.monotonic() + START_SECONDS
        waiting = list(run_ids)
        while waiting:
            views = [await self._client.run(run_id) for run_id in waiting]
            waiting = [view["run_id"] for view in views if all(step["status"] == "pending" for step in view["steps"])]
            if waiting and time.monotonic() > deadline:
                raise CommandError(
                    ExitCode.GAVE_UP,
                    f"{len(waiting)} of {len(run_ids)} runs did not begin within {START_SECONDS:g} s: the worker must "
                    f"have {len(run_ids)} free slots (WORKER_CONCURRENCY, USER_CONCURRENCY_…).",
                )
            await asyncio.sleep(LOOK_SECONDS)

    async def _rate_of(self, run_id: str) -> float:
        view = await self._client.run(run_id)
        while view["status"] in ("queued", "running"):
            await asyncio.sleep(LOOK_SECONDS)
            view = await self._client.run(run_id)
        if view["status"] != "completed":
            error = view["error"] or {"message": view["status"]}
            raise CommandError(ExitCode.RUN_FAILED, f"A run of the load did not complete: {error['message']}")
        return float(view["steps"][0]["result"]["output"])


class ServerLoad(Load):
    """`url` ends before /chat/completions: http://127.0.0.1:11434/v1. What is counted are the pieces that it streams,
    which are tokens for all servers that are known to us."""

    def __init__(self, http: httpx.AsyncClient, url: str, model: str) -> None:
        self._http = http
        self._url = f"{url.rstrip('/')}/chat/completions"
        self._model = model
        self.what = f"{model} at {url}"

    @asynccontextmanager
    async def running(self, rate: float, agents: int, seconds: float) -> AsyncIterator[Window]:
        counts = [0] * agents
        begun = time.monotonic()
        tasks = [asyncio.create_task(self._agent(rate, counts, index)) for index in range(agents)]
        try:
            while not all(counts):
                self._raise_of(tasks)
                if time.monotonic() - begun > START_SECONDS:
                    raise CommandError(ExitCode.UNREACHABLE, f"{self._url} gave no token within {START_SECONDS:g} s.")
                await asyncio.sleep(LOOK_SECONDS)
            before, since = sum(counts), time.monotonic()
            yield Window(seconds, lambda: (sum(counts) - before) / agents / max(time.monotonic() - since, 1e-9))
            self._raise_of(tasks)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    @staticmethod
    def _raise_of(tasks: "list[asyncio.Task[None]]") -> None:
        for task in tasks:
            if task.done():
                task.result()

    async def _agent(self, rate: float, counts: list[int], index: int) -> None:
        begin = time.monotonic()
        while True:
            ahead = counts[index] / rate - (time.monotonic() - begin)
            if ahead > 0:
                await asyncio.sleep(ahead)
            body = {
                "model": self._model,
                "stream": True,
                "max_tokens": max(math.ceil(rate * PIECE_SECONDS), 1),
                "messages": [{"role": "user", "content": "Tell a long story of a lighthouse, without an end."}],
            }
            try:
                async with self._http.stream("POST", self._url, json=body) as response:
                    if not response.is_success:
                        await response.aread()
                        raise CommandError(
                            ExitCode.REFUSED, f"{self._url} answered {response.status_code}: {response.text[:300]}"
                        )
                    async for line in response.aiter_lines():
                        counts[index] += _pieces(line)
            except httpx.TransportError as error:
                raise CommandError(
                    ExitCode.UNREACHABLE, f"{self._url} cannot be reached: {error or type(error).__name__}."
                ) from None


def _pieces(line: str) -> int:
    if not line.startswith("data:") or line.endswith("[DONE]"):
        return 0
    try:
        choices = json.loads(line[5:]).get("choices") or [{}]
        return 1 if (choices[0].get("delta") or {}).get("content") else 0
    except (ValueError, AttributeError, TypeError, IndexError, KeyError):
        return 0
