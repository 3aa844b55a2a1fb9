"""Each process has the credentials and the open files that it needs, and no others."""

import os
import sys
from pathlib import Path

import pytest
from pydantic import SecretStr

from backplane.credentials import CREDENTIALS, credentials_withheld_from
from backplane.process.supervisor import keep_descriptors_from_children
from backplane.settings import Settings
from tests.e2e.test_agentctl_up import descendants, up
from tests.integration.worker.conftest import isolated
from tests.platform.workers import Platform, WorkerProcess
from tests.ports import own_port
from tests.submitted import shell

__all__ = ["isolated"]

KEYS = {
    "SECRETS_KEY": "c2VjcmV0cy1rZXktc2VjcmV0cy1rZXktc2VjcmV0cy0=",
    "OPENAI_API_KEY": "sk-openai",
    "ANTHROPIC_API_KEY": "sk-anthropic",
    "QDRANT_API_KEY": "qdrant",
    "GROQ_KEY": "gsk",
    "MODEL_SERVERS": '{"groq": {"kind": "openai", "url": "http://127.0.0.1:9", "api_key_env": "GROQ_KEY"}}',
}
NEEDED = {
    "api": {"SECRETS_KEY"},
    "worker": {"SECRETS_KEY", "OPENAI_API_KEY", "ANTHROPIC_API_KEY", "QDRANT_API_KEY", "GROQ_KEY"},
    "controller": set[str](),
}

REST = {"UPSTASH_REDIS_REST_URL", "UPSTASH_REDIS_REST_TOKEN"}


def test_every_secret_among_the_settings_says_which_processes_need_it() -> None:
    assert set(CREDENTIALS) == {name for name, field in Settings.model_fields.items() if field.annotation is SecretStr}


@pytest.mark.parametrize("process", NEEDED)
def test_a_process_is_refused_what_it_does_not_need(process: str) -> None:
    settings = Settings(model_servers={"groq": {"kind": "openai", "url": "http://x", "api_key_env": "GROQ_KEY"}})
    of_others = {
        "api": {"PGBOUNCER_URL", "VASTAI_API_KEY", "GPU_ROUTER_TOKEN", "GPU_TOKEN_SECRET", "GPU_STATIC_KEY"},
        "worker": {"JOBS_REDIS_URL", "VASTAI_API_KEY", "GPU_ROUTER_TOKEN", *REST},
        "controller": {"PGBOUNCER_URL", *REST},
    }[process]
    assert credentials_withheld_from(process, settings) == (set(KEYS) - {"MODEL_SERVERS"} - NEEDED[process]) | of_others


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
@pytest.mark.parametrize("source", ["environment", ".env"])
def test_the_processes_of_agentctl_up_have_what_they_need(tmp_path: Path, source: str) -> None:
    if source == ".env":
        (tmp_path / ".env").write_text("".join(f"{name}='{value}'\n" for name, value in KEYS.items()))
    given = KEYS if source == "environment" else {}
    with up(tmp_path, own_port(), **given) as running:
        found = {process: environments_of(running.process.pid, process) for process in (*NEEDED, "pools")}
        assert running.stop() == 0
    for process, environments in found.items():
        assert environments, process
        needed = NEEDED.get(process, NEEDED["worker"])  # what starts processes of pools is as they are
        for environment in environments:
            kept = {name for name in KEYS if environment.get(name)} - {"MODEL_SERVERS"}
            # A key that only `.env` names may stand nowhere in the environment; an empty one goes before it.
            may = needed if source == "environment" else kept & needed
            assert kept == may
            withheld = set(KEYS) - {"MODEL_SERVERS"} - needed
            assert withheld <= set(environment)


def environments_of(pid: int, process: str) -> list[dict[str, str]]:
    marks = {"api": "app.main", "worker": "-m worker", "controller": "-m controller", "pools": "-m controller.pools"}
    others = marks["pools"] if process == "controller" else "backplane.input.parsing"
    return [
        dict(entry.split("=", 1) for entry in Path(f"/proc/{child}/environ").read_text().split("\0") if "=" in entry)
        for child, command in descendants(pid).items()
        if marks[process] in command and others not in command and "backplane.input.parsing" not in command
    ]


def test_what_a_process_was_left_open_is_none_of_its_childrens(tmp_path: Path) -> None:
    with (tmp_path / "lock").open("w") as left_open:
        os.set_inheritable(left_open.fileno(), True)
        keep_descriptors_from_children()
        assert not os.get_inheritable(left_open.fileno())


@pytest.mark.slow
async def test_a_command_in_a_sandbox_cannot_write_to_a_file_that_its_worker_was_left_open(
    isolated: None, platform: Platform, tmp_path: Path
) -> None:
    with (tmp_path / "lock").open("w") as left_open:
        process = WorkerProcess(platform.settings, platform.scratch, left_open=[left_open.fileno()])
        try:
            await process.start()
            script = f"(echo hacked >&{left_open.fileno()}) || true"
            await platform.completed(await platform.submit(shell("a", script)))
        finally:
            await process.kill()
    assert (tmp_path / "lock").read_text() == ""
