"""What docker-compose.yml promises of the platform on one machine."""

import json
import os
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from backplane.credentials import CREDENTIALS
from backplane.settings import Settings

PROJECT = Path(__file__).parents[2]

Object = dict[str, Any]


@pytest.fixture(scope="module")
def compose() -> Object:
    loaded: Object = yaml.safe_load((PROJECT / "docker-compose.yml").read_text())
    return loaded


def test_containers_have_the_limits_that_are_promised(compose: Object) -> None:
    promised = {"worker": ("4g", 2), "postgres": ("2g", 1), "redis": ("1g", 1), "qdrant": ("4g", 2)}
    services = compose["services"]

    assert {name: (services[name]["mem_limit"], services[name]["cpus"]) for name in promised} == promised
    assert all("mem_limit" in service and "cpus" in service for service in services.values())


def test_all_that_stays_is_started_again_and_watched(compose: Object) -> None:
    for name, service in compose["services"].items():
        if name != "migrate":
            assert service["restart"] == "unless-stopped", name
            assert "healthcheck" in service, name


def test_only_the_api_is_published_and_only_on_loopback(compose: Object) -> None:
    published = {name: service["ports"] for name, service in compose["services"].items() if "ports" in service}

    assert list(published) == ["api"]
    assert all(port.startswith("127.0.0.1:") for port in published["api"])
    assert compose["networks"]["inside"] == {"internal": True}


def test_images_of_others_are_pinned_by_version(compose: Object) -> None:
    for service in compose["services"].values():
        if not service["image"].startswith("agent-"):
            _, _, tag = service["image"].rpartition(":")
            assert re.search(r"\d+\.\d+", tag), service["image"]


@pytest.mark.parametrize("process", ["api", "worker", "controller"])
def test_every_process_gets_the_credentials_that_it_needs_and_no_others(compose: Object, process: str) -> None:
    given = {name.lower() for name in compose["services"][process]["environment"]} & set(CREDENTIALS)
    # The password of Redis stands in its URL; there are no sentinels, and one Redis is enough. All go by PgBouncer.
    needed = {name for name, processes in CREDENTIALS.items() if process in processes}

    by_rest = {"upstash_redis_rest_url", "upstash_redis_rest_token"}
    assert given == needed - by_rest - {"redis_password", "redis_sentinel_password", "jobs_redis_url", "pgbouncer_url"}


@pytest.mark.parametrize(("key", "starts"), [("", False), ("a-key", True)])
def test_qdrant_does_not_start_without_a_key(compose: Object, tmp_path: Path, key: str, starts: bool) -> None:
    command = [part.replace("$$", "$") for part in compose["services"]["qdrant"]["command"]]
    program = tmp_path / "entrypoint.sh"
    program.write_text("#!/bin/sh\necho started\n")
    program.chmod(0o755)
    done = subprocess.run(
        command, cwd=tmp_path, env={"PATH": os.environ["PATH"], "QDRANT__SERVICE__API_KEY": key}, capture_output=True
    )

    assert (done.returncode == 0, done.stdout == b"started\n") == (starts, starts)


def test_redis_keeps_what_it_is_given_and_evicts_nothing(compose: Object) -> None:
    configuration = compose["configs"]["redis"]["content"].splitlines()

    assert "appendonly yes" in configuration
    assert "maxmemory-policy noeviction" in configuration


def test_secrets_of_the_compose_file_have_no_default_and_are_in_the_example(compose: Object) -> None:
    text = (PROJECT / "docker-compose.yml").read_text()
    example = dict(
        line.split("=", 1)
        for line in (PROJECT / "compose" / ".env.example").read_text().splitlines()
        if line and not line.startswith("#")
    )
    asked = set(re.findall(r"\$\{(\w*(?:PASSWORD|KEY))", text))

    assert asked == set(example)
    assert set(example.values()) == {""}
    assert not re.search(r"\$\{\w*(?:PASSWORD|KEY):?-[^}]", text)


def test_every_variable_that_the_compose_file_gives_is_a_setting(compose: Object) -> None:
    fields = set(Settings.model_fields) | {"tmpdir"}
    for name in ("api", "worker", "controller", "migrate"):
        assert {variable.lower() for variable in compose["services"][name]["environment"]} <= fields


def test_a_worker_in_a_container_refuses_to_run_foreign_code_without_a_sandbox(compose: Object) -> None:
    worker = compose["services"]["worker"]

    assert worker["environment"]["SANDBOX_REQUIRE_ISOLATION"] == "true"
    assert worker["cap_drop"] == ["ALL"]
    assert "no-new-privileges:true" in worker["security_opt"]
    assert not [volume for volume in worker["volumes"] if "docker.sock" in volume or "podman.sock" in volume]


def test_the_workers_filter_of_system_calls_is_there_and_forbids_what_breaks_kernels(compose: Object) -> None:
    (path,) = [
        option.partition("=")[2]
        for option in compose["services"]["worker"]["security_opt"]
        if option.startswith("seccomp=")
    ]
    filters = json.loads((PROJECT / path).read_text())["syscalls"]
    forbidden = {
        name for rule in filters if rule["action"] == "SCMP_ACT_ERRNO" and "args" not in rule for name in rule["names"]
    }

    assert {"bpf", "io_uring_setup", "userfaultfd", "keyctl", "kexec_load", "init_module", "ptrace"} <= forbidden
