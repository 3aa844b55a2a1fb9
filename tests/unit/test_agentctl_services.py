"""`agentctl services` and `agentctl ingress` as scripts rely on them."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from agentctl.services.compose import compose_of
from agentctl.services.declared import read_services
from app.schemas.services import NewService
from tests.scripted_api import answer, problem, raw
from tests.unit.conftest import Agentctl, Script

EXAMPLE = Path(__file__).parents[2] / "examples" / "services.yaml"
KNOWN = {
    **{"webhook-server": 3001, "agent-mesh": 3005, "object-store": 9000, "postgresql": 5432, "redis": 6379},
    **{"tunnel": 20241, "compliance-api": 3010, "agent-router": 4000, "vector-store": 6333, "workflow-engine": 3015},
    **{"doc-engine": 3011, "tracer": 3008},
}
CHECK = {"kind": "tcp", "path": "/", "interval_seconds": 30.0, "timeout_seconds": 5.0}


def view(name: str, **more: Any) -> dict[str, Any]:
    return {
        **{"id": "i", "name": name, "host": "127.0.0.1", "port": 80, "status": "up", "flapping": False, "reason": ""},
        **{"since": None, "explanation": "It answers.", "check": CHECK, "latency_ms": 1.5, "container": None},
        **{"public_endpoint": None, "public_path": None, "webhook_url": None, "revision": 1, "deleting": False},
        **more,
    }


def file_of(folder: Path, *services: Any) -> str:
    file = folder / "services.yaml"
    file.write_text(yaml.safe_dump({"services": list(services)}))
    return str(file)


def test_the_example_has_the_known_services_and_the_api_takes_each() -> None:
    services = read_services(EXAMPLE)
    assert {service["name"]: service["port"] for service in services} == KNOWN
    for service in services:
        NewService.model_validate_json(json.dumps(service))


def test_apply_declares_each_and_says_what_that_changed(script: Script, agentctl: Agentctl, tmp_path: Path) -> None:
    file = file_of(tmp_path, *({"name": name, "port": 80} for name in ("a", "b", "c")))
    api = script(
        answer(200, {"services": [view("a"), view("b")]}),
        answer(200, view("a")),
        answer(200, view("b", revision=2)),
        answer(201, view("c")),
    )
    code, printed, _ = agentctl("services", "apply", file)
    assert (code, printed.split()) == (0, ["a", "unchanged", "b", "changed", "c", "made"])
    assert [(each.method, each.path) for each in api.requests[1:]] == [
        ("PUT", f"/api/nas/services/{name}") for name in "abc"
    ]
    assert json.loads(api.requests[1].body) == {"port": 80}


def test_apply_stops_at_a_service_that_is_refused_and_names_it(
    script: Script, agentctl: Agentctl, tmp_path: Path
) -> None:
    file = file_of(tmp_path, {"name": "a", "port": 80}, {"name": "b", "port": 0}, {"name": "c", "port": 1})
    api = script(
        answer(200, {"services": []}), answer(201, view("a")), problem(422, "invalid_input", "port: from 1 to 65535")
    )
    code, _, error = agentctl("services", "apply", file)
    assert code == 4
    assert "b: port: from 1 to 65535" in error
    assert "Done before it: a." in error
    assert len(api.requests) == 3


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("services: {}", "a list"),
        ("[]", "an object"),
        ("services: []\nother: 1", "nothing but"),
        ("services: [{port: 1}]", "services.0 has no name"),
        ("services: [{name: a}, {name: a}]", "a service a before it"),
        ("services: [{name: a, name: b}]", "stands there twice"),
        ("services: [", "neither JSON nor YAML"),
    ],
)
def test_a_file_that_cannot_be_is_refused_before_anything_is_sent(
    agentctl: Agentctl, tmp_path: Path, text: str, why: str
) -> None:
    file = tmp_path / "services.yaml"
    file.write_text(text)
    code, _, error = agentctl("services", "apply", str(file))
    assert (code, why in error) == (2, True), error


def test_list_shows_where_each_is_and_how(script: Script, agentctl: Agentctl) -> None:
    services = [
        view("redis", container={"state": "running"}),
        view("web", status="down", reason="nothing listens on the port"),
        view("shaky", flapping=True),
        view("old", deleting=True),
    ]
    script(answer(200, {"services": services}))
    code, printed, _ = agentctl("services", "list")
    rows = [line.split() for line in printed.splitlines()]
    assert (code, rows[1][:4]) == (0, ["redis", "127.0.0.1:80", "up", "running"])
    assert "nothing listens on the port" in printed
    assert (rows[3][2], rows[4][2]) == ("flapping", "deleting")


def test_show_and_status_say_how_it_is_in_words(script: Script, agentctl: Agentctl) -> None:
    entry = {"name": "redis", "status": "up", "flapping": False, "since": None, "public_endpoint": None}
    page = {"status": "up", "services": [{**entry, "description": "The queue"}]}
    script(answer(200, view("redis")), answer(200, page))
    code, printed, _ = agentctl("services", "show", "redis")
    assert (code, "It answers." in printed, "1.5 ms" in printed) == (0, True, True)
    code, printed, _ = agentctl("services", "status")
    assert (code, "all together: up" in printed, "The queue" in printed) == (0, True, True)


def test_history_shows_when_it_went_down_and_why(script: Script, agentctl: Agentctl) -> None:
    change = {"number": 1, "at": "2026-11-30T12:00:00+00:00", "status": "down", "reason": "it answered 500"}
    script(answer(200, {"changes": [change], "next_cursor": None}))
    code, printed, _ = agentctl("services", "history", "redis")
    assert (code, "2026-11-30 12:00:00  down    it answered 500" in printed) == (0, True), printed


def test_delete_asks_for_what_it_is_to_do(script: Script, agentctl: Agentctl) -> None:
    api = script(raw(204, b""))
    assert agentctl("services", "delete", "redis", "--force", "--yes")[0] == 0
    assert (api.requests[0].method, api.requests[0].path) == ("DELETE", "/api/nas/services/redis?force=true")


def test_the_compose_file_has_the_services_that_name_an_image() -> None:
    container = {
        "image": "redis:8",
        "command": ["sh", "-c", "echo $HOME"],
        "environment": {"A": "b$c"},
        "volumes": {"data": "/data"},
        "port": 6380,
        "memory_bytes": 1 << 30,
        "cpus": 0.5,
    }
    services = [view("redis", port=6379, container=container), view("seen"), view("gone", container={"image": None})]
    assert compose_of(services) == {
        "name": "agent-services",
        "services": {
            "redis": {
                "image": "redis:8",
                "restart": "unless-stopped",
                "command": ["sh", "-c", "echo $$HOME"],
                "environment": {"A": "b$$c"},
                "env_file": [{"path": "services/redis.env", "required": False}],
                "ports": ["127.0.0.1:6379:6380"],
                "volumes": ["redis-data:/data"],
                "mem_limit": 1 << 30,
                "cpus": 0.5,
                "pids_limit": 4096,
                "security_opt": ["no-new-privileges:true"],
            }
        },
        "volumes": {"redis-data": {"name": "agent-service-redis-data"}},
    }


def test_compose_prints_what_a_file_declares_without_an_api(agentctl: Agentctl) -> None:
    code, printed, _ = agentctl("services", "compose", str(EXAMPLE))
    assert (code, set(yaml.safe_load(printed)["services"])) == (0, {"postgresql", "redis", "vector-store"})


def test_compose_without_an_image_says_so(agentctl: Agentctl, tmp_path: Path) -> None:
    code, _, error = agentctl("services", "compose", file_of(tmp_path, {"name": "a", "port": 1}))
    assert (code, "No service names an image" in error) == (2, True)


def test_render_writes_the_file_once_and_says_when_the_tunnel_must_restart(agentctl: Agentctl, tmp_path: Path) -> None:
    public = {"name": "web", "port": 80, "public_endpoint": "web.example.org"}
    services, config = file_of(tmp_path, public), tmp_path / "config.yml"
    render = ("ingress", "render", "--file", services, "--output", str(config))
    code, printed, _ = agentctl(*render, "--tunnel", "t1", "--credentials-file", "/c.json")
    assert (code, "restart it" in printed) == (0, True)
    written = config.read_text()
    assert yaml.safe_load(written) == {
        "tunnel": "t1",
        "credentials-file": "/c.json",
        "ingress": [
            {"hostname": "web.example.org", "service": "http://127.0.0.1:80"},
            {"service": "http_status:404"},
        ],
    }
    code, printed, _ = agentctl(*render)
    assert (code, "need not restart" in printed, config.read_text()) == (0, True, written)
    assert agentctl(*render, "--check")[0] == 0
    file_of(tmp_path, public, {"name": "b", "port": 81, "public_endpoint": "b.example.org"})
    code, printed, _ = agentctl(*render, "--check")
    assert (code, "not as it should be" in printed, config.read_text()) == (1, True, written)
    code, printed, _ = agentctl(*render, "--json")
    assert json.loads(printed) == {"file": str(config), "changed": True, "written": True}
    assert yaml.safe_load(config.read_text())["tunnel"] == "t1"
    assert agentctl("ingress", "check", str(config))[0] == 0


def test_render_replaces_rules_of_somebody_else_only_by_force(agentctl: Agentctl, tmp_path: Path) -> None:
    services, config = file_of(tmp_path), tmp_path / "config.yml"
    own = "tunnel: mine\ningress: [{service: 'http_status:503'}]\n"
    config.write_text(own)
    config.chmod(0o600)
    render = ("ingress", "render", "--file", services, "--output", str(config))
    code, _, error = agentctl(*render)
    assert (code, "--force" in error, config.read_text()) == (2, True, own)
    assert agentctl(*render, "--force")[0] == 0
    assert yaml.safe_load(config.read_text()) == {"tunnel": "mine", "ingress": [{"service": "http_status:404"}]}
    assert config.stat().st_mode & 0o777 == 0o600


def test_render_takes_the_services_of_the_api_and_prints_them(script: Script, agentctl: Agentctl) -> None:
    script(answer(200, {"services": [view("web", public_endpoint="web.example.org"), view("inside")]}))
    code, printed, _ = agentctl("ingress", "render")
    assert (code, yaml.safe_load(printed)["ingress"][0]["hostname"]) == (0, "web.example.org")


def test_render_writes_nothing_that_the_tunnel_would_not_take(agentctl: Agentctl, tmp_path: Path) -> None:
    services = file_of(tmp_path, {"name": "a", "port": 1, "public_endpoint": "*.example.org"})
    code, _, error = agentctl("ingress", "render", "--file", services, "--output", str(tmp_path / "config.yml"))
    assert (code, "exact host names" in error, (tmp_path / "config.yml").exists()) == (2, True, False)


def test_check_lists_all_that_is_wrong_with_a_file(agentctl: Agentctl, tmp_path: Path) -> None:
    config = tmp_path / "config.yml"
    config.write_text("ingress: [{hostname: 'a:1', service: 'x'}]")
    code, printed, _ = agentctl("ingress", "check", str(config))
    assert (code, len(printed.splitlines())) == (1, 3)


def test_the_options_of_access_go_together(agentctl: Agentctl) -> None:
    assert agentctl("ingress", "render", "--access-team", "t")[0] == 2
    assert agentctl("ingress", "render", "--check")[0] == 2
