"""The API's own description: complete, with examples that are true, and kept by what the API answers."""

import asyncio
import json
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import TypeAdapter

from app.schemas.execute import ExecuteRequest
from app.schemas.problems import Problem
from app.schemas.runs import EventView
from backplane.domain.plans import parse_plan
from tests.integration.api.live_agents import act, spawn
from tests.integration.api.running import Api, Person, frame_of

SCHEMATHESIS = Path(sysconfig.get_path("scripts")) / "st"

LONGEST_SECONDS = 150.0
"""Alone each takes some 30 seconds at most."""

# A plan, a path and a prompt must meet more than a schema can say, so not every value that fits it is taken.
LEFT_OUT = "positive_data_acceptance"


def operations(described: Any) -> Iterator[tuple[str, Any]]:
    for path, methods in described["paths"].items():
        for method, operation in methods.items():
            yield f"{method} {path}", operation


def test_every_operation_says_what_it_is_for_and_what_it_answers(described: Any) -> None:
    for name, operation in operations(described):
        assert operation["description"], name
        assert all(response["description"] for response in operation["responses"].values()), name


SIGN_IN = "post /console/session"


def test_every_operation_names_its_errors(described: Any) -> None:
    for name, operation in operations(described):
        errors = {status for status in operation["responses"] if int(status) >= 400}
        if "/health/" in name:
            assert "security" not in operation
            continue
        # Whoever posts to a hook signs what is posted, and whoever signs in sends the token in the body.
        assert bool(operation["security"]) == (name not in ("post /api/v1/hooks/{name}", SIGN_IN)), name
        expected = {"401", "503"}
        names_one = "{run_id}" in name or "{agent_id}" in name
        expected |= {"404", "422"} if names_one or name == "post /agent/execute" else set()
        expected |= {"409", "413"} if name.split()[0] in ("post", "put") and name != SIGN_IN else set()
        assert expected <= errors, name


def test_every_error_is_a_problem(described: Any) -> None:
    problem = {"$ref": "#/components/schemas/Problem"}
    for name, operation in operations(described):
        for status, response in operation["responses"].items():
            if int(status) >= 400 and "/health/" not in name:
                assert list(response["content"]) == ["application/problem+json"], f"{name} {status}"
                assert response["content"]["application/problem+json"]["schema"] == problem, f"{name} {status}"
    assert described["components"]["schemas"]["Problem"]["properties"].keys() == Problem.model_fields.keys()


def test_every_parameter_says_what_it_is(described: Any) -> None:
    for name, operation in operations(described):
        for parameter in operation.get("parameters", []):
            described_itself = parameter.get("description") or parameter["schema"].get("description")
            assert described_itself, f"{name} {parameter['name']}"


def test_the_examples_of_requests_are_requests(described: Any) -> None:
    body = described["paths"]["/agent/execute"]["post"]["requestBody"]["content"]["application/json"]
    requests = TypeAdapter[Any](ExecuteRequest)
    actions = set()
    for example in body["examples"].values():
        request = requests.validate_json(json.dumps(example["value"]))
        actions.add(request.action)
        if "plan" in example["value"]:
            parse_plan(example["value"]["plan"])
    assert actions >= {"create", "run", "start", "cancel", "retry", "status"}


def test_the_example_of_an_event_is_an_event(described: Any) -> None:
    stream = described["paths"]["/agent/logs/{run_id}/stream"]["get"]["responses"]["200"]["content"]
    frame = frame_of(stream["text/event-stream"]["example"].removesuffix("\n\n").encode())
    event = EventView.model_validate_json(frame.text)
    assert (event.id, event.type) == (frame.id, frame.event)


@pytest.mark.slow
@pytest.mark.parametrize("phases", ["examples,fuzzing", "coverage"])
async def test_the_api_keeps_its_description_whatever_it_is_sent(
    api: Api, person: Person, tmp_path: Path, phases: str
) -> None:
    await person.make()
    worker = await api.worker()
    await worker.say("one")
    await worker.end()
    await person.http.put(f"/agent/runs/{worker.run_id}/files/a.txt", content=b"x")
    # It takes no message, whose answer a call would wait for.
    agent_id = await spawn(person)
    await act(person, agent_id, "terminate")
    configuration = tmp_path / "schemathesis.toml"
    # What a query has beyond its parameters is passed over, as browsers and proxies add some of their own.
    configuration.write_text(
        f'[generation]\nallow-extra-parameters = false\n[parameters]\nrun_id = "{worker.run_id}"\n'
        f'agent_id = "{agent_id}"\n"path.pool" = "developer_pool"\n'
    )
    options = ["--phases", phases, "--max-examples", "10", "--seed", "1", "--exclude-checks", LEFT_OUT]
    # Their answers have no end.
    options += ["--exclude-path", "/agent/events", "--exclude-path", "/api/v1/events/stream"]
    options += ["--exclude-path", "/api/v1/agents/{agent_id}/stream"]
    process = await asyncio.create_subprocess_exec(
        *(str(SCHEMATHESIS), "--config-file", str(configuration), "run", f"{api.url}/openapi.json", *options),
        *("--header", f"Authorization: Bearer {person.token}", "--request-timeout", "10"),
        cwd=tmp_path,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    try:
        async with asyncio.timeout(LONGEST_SECONDS):
            said, _ = await process.communicate()
    except TimeoutError:
        process.kill()
        await process.wait()
        raise
    assert process.returncode == 0, said.decode()
