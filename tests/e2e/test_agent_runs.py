"""An agent's runs as a user meets them: real processes, a model at the other end of a real wire, streams that are read
as `curl -N` reads them; and all of it again when the model is gone."""

import asyncio
import contextlib
import json
import os
import re
import urllib.request
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from agentctl.local.embedded import find_redis_server, free_port
from tests.e2e.test_agentctl_up import LONG_SECONDS, agentctl, up
from tests.model_server import KEY, MODEL, ModelHttpServer
from tests.scripted_models import Asked, Reply, said, scripted_models
from tests.servers import Missing

pytestmark = pytest.mark.skipif(
    find_redis_server() is None and not os.environ.get("CI"), reason="needs redis-server ≥ 6.2"
)

LETTERS = re.compile("[a-z]")
THINK = {"goal": "Say what comes to mind.", "tools": ["file_read"], "max_turns": 3}
SAID = {"path": "said.txt", "content": "${steps.think.output}"}
PLAN = {
    "steps": [
        {"id": "think", "tool": "agent", "arguments": THINK},
        {"id": "keep", "tool": "file_write", "arguments": SAID},
    ]
}


def environment(port: int, url: str, model: str, **more: Any) -> dict[str, str]:
    server = {"kind": "openai", "url": url, "api_key_env": "LOCAL_KEY"}
    unlimited = {"agent_tokens_per_second": 0, "user_tokens_per_second": 0}
    prices = {model: {"input": 1.0, "output": 2.0}}
    settings = {"model_servers": {"local": server}, "model_prices": prices, **unlimited, **more}
    return {
        "AGENT_URL": f"http://127.0.0.1:{port}",
        "MODEL": model,
        "LOCAL_KEY": KEY,
        **{name.upper(): json.dumps(value) for name, value in settings.items()},
    }


class User:
    """Who uses agentctl in a folder where `agentctl up` runs, and curl."""

    def __init__(self, folder: Path, environment: dict[str, str]) -> None:
        self._folder = folder
        self._environment = environment
        self._token = (folder / ".data" / "token").read_text().strip()

    def get(self, path: str) -> Any:
        """A JSON document of the API."""
        with self._open(path) as answer:
            return json.load(answer)

    def streamed(self, run_id: str) -> list[tuple[str, dict[str, Any]]]:
        """Type and data of each event, in the order in which they come, up to the end of the stream."""
        found, kind = [], ""
        with self._open(f"/agent/logs/{run_id}/stream") as answer:
            for line in answer:
                name, _, value = line.decode().rstrip("\n").partition(": ")
                if name == "event":
                    kind = value
                elif name == "data":
                    found.append((kind, json.loads(value)["data"]))
        return found

    def _open(self, path: str) -> Any:
        headers = {"authorization": f"Bearer {self._token}"}
        request = urllib.request.Request(f"{self._environment['AGENT_URL']}{path}", headers=headers)
        return contextlib.closing(urllib.request.urlopen(request, timeout=LONG_SECONDS))

    def text(self, *arguments: str, code: int = 0) -> str:
        done = agentctl(*arguments, folder=self._folder, **self._environment)
        assert done.returncode == code, done.stdout + done.stderr
        return done.stdout + done.stderr

    def json(self, *arguments: str, code: int = 0) -> Any:
        done = agentctl(*arguments, "--json", folder=self._folder, **self._environment)
        assert done.returncode == code, done.stdout + done.stderr
        return json.loads(done.stdout)


@pytest.fixture
def own_model_server(tmp_path: Path) -> Iterator[ModelHttpServer]:
    """One that may be stopped."""
    try:
        server = ModelHttpServer(tmp_path / "models")
        server.start()
    except Missing as missing:
        if os.environ.get("CI"):
            raise
        pytest.skip(str(missing))
    yield server
    server.stop()


@pytest.mark.slow
def test_runs_of_a_real_model_are_replayed_when_it_is_gone(tmp_path: Path, own_model_server: ModelHttpServer) -> None:
    port = free_port()
    (tmp_path / "plan.json").write_text(json.dumps(PLAN))
    settings = environment(
        port, own_model_server.url, f"local/{MODEL}", model_max_output_tokens=60, plan_repairs=1, run_max_retries=0
    )
    with up(tmp_path, port, **settings):
        user = User(tmp_path, settings)

        # It has learnt nothing, so its plan is none; that is said, and paid for.
        planned = user.json("run", "Sort the files by size.", "--no-follow")["run_id"]
        events = user.streamed(planned)
        ended = user.get(f"/agent/runs/{planned}")
        assert (events[-1][0], events[-1][1]["status"], ended["status"]) == ("end", "failed", "failed")
        assert ended["error"]["code"] == "invalid_plan"
        assert [data["purpose"] for kind, data in events if kind == "model"] == ["plan", "repair"]

        # What it says to an agent's goal is as good as anything.
        thought = user.json("run", "--plan", "plan.json", "--no-follow")["run_id"]
        events = user.streamed(thought)
        assert (events[-1][0], events[-1][1]["status"]) == ("end", "completed")
        calls = user.get(f"/agent/runs/{thought}/model-calls")["calls"]
        tokens = [(call["input_tokens"], call["output_tokens"]) for call in calls]
        received = [data for kind, data in events if kind == "model"]
        assert [(data["input_tokens"], data["output_tokens"]) for data in received] == tokens
        assert all(0 < output <= 60 < prompt for prompt, output in tokens)
        run = user.get(f"/agent/runs/{thought}")
        expected = sum(prompt + 2 * output for prompt, output in tokens) / 1e6
        assert run["result"]["cost"]["usd"] == pytest.approx(expected)
        # Its words are among the published lines; what stands between them is not known.
        lines = [data["line"] for kind, data in events if kind == "log" and not data.get("level")]
        [step] = [step for step in run["steps"] if step["id"] == "think"]
        assert LETTERS.findall(step["result"]["output"])
        assert "".join(LETTERS.findall(step["result"]["output"])) in "".join(LETTERS.findall("".join(lines)))

        own_model_server.stop()
        for run_id in (planned, thought):
            replayed = user.json("replay", run_id)
            assert (replayed["equal"], replayed["differences"]) == (True, [])
            assert replayed["replays"] == run_id
            assert user.get(f"/agent/runs/{replayed['run_id']}")["result"]["cost"]["usd"] in (0.0, 0)


PUBLISH = {"id": "publish", "tool": "shell", "arguments": {"script": "cp hello.txt published.txt"}, "needs": ["work"]}
WORK = {"id": "work", "tool": "agent", "arguments": {"goal": "Write hello.txt and count its bytes."}}


def sensible(asked: Asked) -> Reply:
    turn = sum(message["role"] == "assistant" for message in asked.body["messages"])
    if "response_format" in asked.body:
        return said("openai", json.dumps({"steps": [WORK, {**PUBLISH, "approval": True}]}))
    if "tools" not in asked.body:
        return said("openai", "hello.txt was written", " and published.")
    turns = (
        said("openai", calls=[("file_write", {"path": "hello.txt", "content": "hello\n"})]),
        said("openai", calls=[("shell", {"script": "wc -c < hello.txt"})]),
    )
    return turns[turn] if turn < len(turns) else said("openai", "hello.txt has 6 bytes.")


@pytest.fixture
async def scripted(tmp_path: Path) -> AsyncIterator[tuple[dict[str, str], list[Asked]]]:
    """The environment of an `agentctl up` whose model says what is sensible, and what that was asked."""
    async with scripted_models() as models:
        models.answer(sensible)
        yield environment(free_port(), models.url, "local/m"), models.asked


@pytest.mark.slow
async def test_an_agent_is_planned_approved_and_replayed(
    tmp_path: Path, scripted: tuple[dict[str, str], list[Asked]]
) -> None:
    settings, asked = scripted

    def as_a_user() -> None:
        with up(tmp_path, port_of(settings), **settings):
            user = User(tmp_path, settings)
            run_id = published(user)
            events = user.streamed(run_id)
            assert (events[-1][0], events[-1][1]["status"]) == ("end", "completed")
            purposes = [data["purpose"] for kind, data in events if kind == "model"]
            assert purposes == ["plan", *["turn"] * 3, "summary"]
            shown = user.text("show", run_id)
            assert "hello.txt was written and published." in shown
            assert "files made  hello.txt, published.txt" in shown
            assert "5 model calls" in shown

            # By the records: no call more is made, and nobody is asked again.
            before = len(asked)
            assert "all is equal" in user.text("replay", run_id)
            assert len(asked) == before

    await asyncio.to_thread(as_a_user)


@pytest.mark.slow
async def test_an_agents_run_is_taken_up_again_from_a_step(
    tmp_path: Path, scripted: tuple[dict[str, str], list[Asked]]
) -> None:
    settings, _ = scripted

    def as_a_user() -> None:
        with up(tmp_path, port_of(settings), SINGLE_PROCESS="true", **settings):
            user = User(tmp_path, settings)
            run_id = published(user)

            # A fork takes over what is before, with its files, and asks anew for the approval.
            forked = user.json("fork", run_id, "--step", "work", "--no-follow")["run_id"]
            assert "The run waits for you" in user.text("logs", "-f", forked, code=6)
            assert [file["path"] for file in user.get(f"/agent/runs/{forked}/files")["files"]] == ["hello.txt"]
            user.text("reject", forked, "--reason", "not today")
            assert "not today" in user.text("logs", "-f", forked, code=1)

            user.text("retry", run_id, "--from-step", "publish")
            assert "The run waits for you" in user.text("logs", "-f", run_id, code=6)
            user.text("approve", run_id)
            assert "● completed" in user.text("logs", "-f", run_id)

    await asyncio.to_thread(as_a_user)


def port_of(settings: dict[str, str]) -> int:
    return int(settings["AGENT_URL"].rpartition(":")[2])


def published(user: User) -> str:
    """The id of a run that asked for an approval and got it."""
    # However the lines are broken.
    received = " ".join(user.text("run", "Write hello and publish it.", code=6).split())
    run_id: str = user.get("/agent/runs")["runs"][0]["run_id"]
    assert "step publish is to be approved: use shell" in received
    assert f"approve {run_id}" in received
    # Whoever approves sees what it is, whole.
    assert "cp hello.txt published.txt" in user.text("decisions")
    user.text("approve", run_id)
    assert "● completed" in user.text("logs", "-f", run_id)
    return run_id
