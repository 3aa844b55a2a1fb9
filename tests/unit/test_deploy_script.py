"""deploy-phase2b.sh and verify-phase2b.sh where there is no cluster: what they ask for, refuse, and never show."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

PROJECT = Path(__file__).parents[2]
DEPLOY, VERIFY = PROJECT / "deploy-phase2b.sh", PROJECT / "verify-phase2b.sh"
IMAGE = "registry.example.org/agent-api:1.0.0"
CREDENTIALS = {
    "REDIS_URL": "redis://:redis-password@redis.example.org:6379/0",
    "DATABASE_URL": "postgresql://agent:database-password@db.example.org/agent",
    "S3_BUCKET": "workspaces",
    "S3_ENDPOINT": "https://s3.example.org",
    "S3_REGION": "region-1",
    "S3_ACCESS_KEY": "the-access-key",
    "S3_SECRET_KEY": "the-secret-key",
}
SECRETS = ("redis-password", "database-password", "the-access-key", "the-secret-key")


def run(
    script: Path, *arguments: str | Path, environment: dict[str, str] | None = None, trace: bool = False
) -> "subprocess.CompletedProcess[str]":
    bash = shutil.which("bash")
    assert bash is not None
    command = [bash, *(["-x"] if trace else []), str(script), *map(str, arguments)]
    outside = {"PATH": os.environ["PATH"], "KUBECTL": "/nowhere/kubectl", "KUBECONFIG": "/nowhere/config"}
    return subprocess.run(
        command, env=outside | (environment or {}), capture_output=True, text=True, timeout=60, check=False
    )


def written(folder: Path, lines: list[str]) -> Path:
    file = folder / "production.env"
    file.write_text("\n".join(lines))
    return file


@pytest.mark.parametrize("script", [DEPLOY, VERIFY])
def test_help_names_the_options(script: Path) -> None:
    done = run(script, "--help")

    assert done.returncode == 0
    assert "--context NAME" in done.stdout


@pytest.mark.parametrize("script", [DEPLOY, VERIFY])
@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--imagge", "x"], "unknown option --imagge"),
        (["--context"], "--context needs a value"),
        (["--timeout", "0"], "--timeout takes seconds"),
        (["--timeout", "5m"], "--timeout takes seconds"),
    ],
)
def test_a_wrong_argument_is_named(script: Path, arguments: list[str], complaint: str) -> None:
    done = run(script, *arguments)

    assert done.returncode == 2
    assert complaint in done.stderr


def test_all_that_is_missing_is_said_at_once() -> None:
    done = run(DEPLOY)

    assert done.returncode == 2
    assert done.stderr.startswith("Nothing was changed.")
    assert "image: say which one" in done.stderr
    assert f"set {' '.join(CREDENTIALS)} in the environment" in done.stderr
    assert "kubectl: there is no /nowhere/kubectl" in done.stderr


def test_credentials_come_from_the_environment() -> None:
    done = run(DEPLOY, "--image", IMAGE, environment=CREDENTIALS)

    assert "credentials" not in done.stderr
    assert "kubectl" in done.stderr


def test_credentials_come_from_a_file_that_is_not_executed(tmp_path: Path) -> None:
    made = tmp_path / "made-by-the-file"
    lines = [f'{name}="{value}"' for name, value in CREDENTIALS.items() if name != "S3_REGION"]
    file = written(tmp_path, ["# a comment", "", f"export S3_REGION=$(touch {made})", *lines])

    done = run(DEPLOY, "--image", IMAGE, "--credentials", file)

    assert "credentials" not in done.stderr
    assert not made.exists()


def test_what_is_no_credential_is_reported_and_not_used(tmp_path: Path) -> None:
    lines = [*(f"{name}={value}" for name, value in CREDENTIALS.items()), "S3_REGOIN=x", "WORKER_CONCURRENCY=4"]

    done = run(DEPLOY, "--credentials", written(tmp_path, lines))

    assert "not used: S3_REGOIN WORKER_CONCURRENCY" in done.stdout


def test_a_line_of_the_file_that_cannot_be_read_is_named_and_not_shown(tmp_path: Path) -> None:
    done = run(DEPLOY, "--credentials", written(tmp_path, ["S3_BUCKET=b", "S3_SECRET_KEY: the-secret-key"]))

    assert "line 2 of" in done.stderr
    assert "the-secret-key" not in done.stderr


def test_a_file_of_credentials_that_is_not_there_is_named(tmp_path: Path) -> None:
    done = run(DEPLOY, "--credentials", tmp_path / "no.env")

    assert f"there is no file {tmp_path / 'no.env'}" in done.stderr


@pytest.mark.parametrize(
    ("name", "value", "complaint"),
    [
        ("REDIS_URL", "redis.example.org:6379", "REDIS_URL must begin with redis://"),
        ("DATABASE_URL", "sqlite:///agent.db", "DATABASE_URL must begin with postgresql://"),
        ("S3_ENDPOINT", "s3.example.org", "S3_ENDPOINT must begin with https://"),
        ("REDIS_URL", "redis://:redis-password@127.0.0.1:6379/0", "REDIS_URL names this machine's loopback"),
        ("DATABASE_URL", "postgresql://a:database-password@localhost/a", "DATABASE_URL names this machine's loopback"),
        ("S3_ENDPOINT", "http://[::1]:9000", "S3_ENDPOINT names this machine's loopback"),
    ],
)
def test_an_address_that_pods_cannot_use_is_refused(name: str, value: str, complaint: str) -> None:
    done = run(DEPLOY, "--image", IMAGE, environment=CREDENTIALS | {name: value})

    assert complaint in done.stderr
    assert not any(secret in done.stderr for secret in SECRETS)


@pytest.mark.parametrize(
    "image", ["agent-api", "registry.example.org:5000/agent-api", "agent-api:latest", "agent-api:1;reboot"]
)
def test_an_image_without_a_version_is_refused(image: str) -> None:
    done = run(DEPLOY, "--image", image, environment=CREDENTIALS)

    assert f"image: {image}" in done.stderr or "image: latest" in done.stderr


@pytest.mark.parametrize(
    "image", [IMAGE, "agent-api:1", "registry.example.org:5000/team/agent-api:v1.2-rc1", f"agent-api@sha256:{'0' * 64}"]
)
def test_an_image_with_a_version_is_taken(image: str) -> None:
    assert "image:" not in run(DEPLOY, "--image", image, environment=CREDENTIALS).stderr


def test_a_trace_shows_no_secret() -> None:
    deploy = run(DEPLOY, "--image", IMAGE, environment=CREDENTIALS, trace=True)
    verify = run(VERIFY, environment={"AGENT_API_TOKEN": "the-token"}, trace=True)

    shown = deploy.stdout + deploy.stderr + verify.stdout + verify.stderr
    assert not any(secret in shown for secret in (*SECRETS, "the-token"))


def test_verify_says_which_programs_it_lacks() -> None:
    done = run(VERIFY, environment={"AGENT_API_TOKEN": "the-token"})

    assert done.returncode == 2
    assert "install what is missing: /nowhere/kubectl" in done.stderr


def test_verify_says_how_to_make_a_token() -> None:
    done = run(VERIFY, environment={"KUBECTL": "true"})

    assert done.returncode == 2
    assert "agentctl token create" in done.stderr


def test_verify_ends_at_the_first_thing_that_is_wrong() -> None:
    done = run(VERIFY, "--url", "http://127.0.0.1:9", environment={"KUBECTL": "false", "AGENT_API_TOKEN": "the-token"})

    assert done.returncode == 1
    assert done.stderr.startswith("FAILED")
    assert "deploy first" in done.stderr
    assert not done.stdout
