"""What .devcontainer/ promises: it is as the published schema has it, has the whole stack, and is the platform's own.

The schema is that of the Development Container Specification (containers.dev); what of it applies here is written down
below, so that the test needs no network.
"""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import Draft202012Validator
from sqlalchemy.engine import make_url

from backplane.settings import Settings

PROJECT = Path(__file__).parents[2]
FOLDER = PROJECT / ".devcontainer"

Object = dict[str, Any]

TEXT: Object = {"type": "string"}
TEXTS: Object = {"type": "array", "items": TEXT}
TEXTS_BY_NAME: Object = {"type": "object", "additionalProperties": TEXT}
SIZE: Object = {"type": "string", "pattern": r"^\d+([tgmk]b)?$"}
COMMAND: Object = {"type": ["string", "array", "object"]}
PORT_ATTRIBUTES: Object = {
    "type": "object",
    "properties": {
        "label": TEXT,
        "onAutoForward": {"enum": ["notify", "openBrowser", "openBrowserOnce", "openPreview", "silent", "ignore"]},
        "protocol": {"enum": ["http", "https"]},
        "requireLocalPort": {"type": "boolean"},
        "elevateIfNeeded": {"type": "boolean"},
    },
}
COMPOSE_CONTAINER: Object = {
    "type": "object",
    "required": ["dockerComposeFile", "service", "workspaceFolder"],
    "additionalProperties": False,
    "properties": {
        **dict.fromkeys(("$schema", "name", "service", "workspaceFolder", "remoteUser", "containerUser"), TEXT),
        **dict.fromkeys(("initializeCommand", "onCreateCommand", "updateContentCommand"), COMMAND),
        **dict.fromkeys(("postCreateCommand", "postStartCommand", "postAttachCommand"), COMMAND),
        **{name: {"type": "boolean"} for name in ("overrideCommand", "init", "privileged", "updateRemoteUserUID")},
        **dict.fromkeys(("runServices", "capAdd", "securityOpt"), TEXTS),
        **{name: {"type": "object"} for name in ("customizations", "features")},
        "dockerComposeFile": {"type": ["string", "array"], "items": TEXT},
        "shutdownAction": {"enum": ["none", "stopCompose"]},
        "containerEnv": TEXTS_BY_NAME,
        "remoteEnv": {"type": "object", "additionalProperties": {"type": ["string", "null"]}},
        "portsAttributes": {"type": "object", "additionalProperties": PORT_ATTRIBUTES},
        "forwardPorts": {
            "type": "array",
            "items": {
                "oneOf": [
                    {"type": "integer", "minimum": 0, "maximum": 65535},
                    {"type": "string", "pattern": r"^([a-z0-9-]+):(\d{1,5})$"},
                ]
            },
        },
        "hostRequirements": {
            "type": "object",
            "additionalProperties": False,
            "properties": {"cpus": {"type": "integer", "minimum": 1}, "memory": SIZE, "storage": SIZE, "gpu": {}},
        },
    },
}


@pytest.fixture(scope="module")
def container() -> Object:
    loaded: Object = json.loads((FOLDER / "devcontainer.json").read_text())
    return loaded


@pytest.fixture(scope="module")
def compose() -> Object:
    loaded: Object = yaml.safe_load((FOLDER / "docker-compose.yml").read_text())
    return loaded


@pytest.fixture(scope="module")
def platform() -> Object:
    loaded: Object = yaml.safe_load((PROJECT / "docker-compose.yml").read_text())
    return loaded


def test_the_dev_container_is_as_the_schema_has_it(container: Object) -> None:
    assert [error.message for error in Draft202012Validator(COMPOSE_CONTAINER).iter_errors(container)] == []


@pytest.mark.parametrize(
    "wrong", [{"service": None}, {"shutdownAction": "stopContainer"}, {"image": "a"}, {"forwardPorts": ["a b:1"]}]
)
def test_what_the_schema_does_not_have_is_found(container: Object, wrong: Object) -> None:
    assert list(Draft202012Validator(COMPOSE_CONTAINER).iter_errors(container | wrong))


def test_it_has_the_whole_stack_and_opens_in_the_workspace(container: Object, compose: Object) -> None:
    assert set(compose["services"]) == {"workspace", "postgres", "redis", "qdrant"}
    assert container["service"] == "workspace"
    mounted = dict(volume.split(":")[:2] for volume in compose["services"]["workspace"]["volumes"])
    assert mounted[".."] == container["workspaceFolder"]
    for forwarded in container["forwardPorts"][1:]:
        assert forwarded.partition(":")[0] in compose["services"]


def test_the_workspace_waits_for_servers_that_are_healthy(compose: Object) -> None:
    waits = compose["services"]["workspace"]["depends_on"]
    servers = set(compose["services"]) - {"workspace"}
    assert waits == {name: {"condition": "service_healthy"} for name in servers}
    assert all("healthcheck" in compose["services"][name] for name in servers)


def test_its_python_is_the_platforms(compose: Object) -> None:
    [own], [platforms] = (
        re.findall(r"^ARG PYTHON_IMAGE=(\S+)$", (folder / "Dockerfile").read_text(), re.MULTILINE)
        for folder in (FOLDER, PROJECT)
    )
    assert own == platforms
    assert compose["services"]["workspace"]["build"] == {"context": "."}


def test_its_servers_are_those_of_the_platform_and_postgresql_has_pgvector(compose: Object, platform: Object) -> None:
    for name in ("redis", "qdrant"):
        assert compose["services"][name]["image"] == platform["services"][name]["image"]
    for name in ("postgres", "redis", "qdrant"):
        own, others = compose["services"][name], platform["services"][name]
        assert (own["mem_limit"], own["cpus"]) == (others["mem_limit"], others["cpus"])
    [major] = re.findall(r"postgres:(\d+)\.", platform["services"]["postgres"]["image"])
    assert re.fullmatch(rf".*/pgvector:[\d.]+-pg{major}", compose["services"]["postgres"]["image"])
    assert "CREATE EXTENSION IF NOT EXISTS vector;" in (FOLDER / "pgvector.sql").read_text()


def test_its_settings_are_settings_and_lead_to_its_servers(compose: Object) -> None:
    environment = compose["services"]["workspace"]["environment"]
    settings = Settings(_env_file=None, **{name.lower(): value for name, value in environment.items()})
    assert {name.lower() for name in environment} <= set(Settings.model_fields)
    assert make_url(environment["DATABASE_URL"]).host == "postgres"
    assert "@redis:6379" in settings.redis_url.get_secret_value()
    assert environment["QDRANT_API_KEY"] == compose["services"]["qdrant"]["environment"]["QDRANT__SERVICE__API_KEY"]


def test_nothing_of_it_is_published(compose: Object) -> None:
    assert not any("ports" in service for service in compose["services"].values())
