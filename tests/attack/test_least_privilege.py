"""Each process has the credentials that it needs, and no others."""

import sys
from pathlib import Path

import pytest
from pydantic import SecretStr

from backplane.credentials import CREDENTIALS, credentials_withheld_from
from backplane.settings import Settings
from tests.e2e.test_agentctl_up import descendants, up
from tests.ports import own_port

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


def test_every_secret_among_the_settings_says_which_processes_need_it() -> None:
    assert set(CREDENTIALS) == {name for name, field in Settings.model_fields.items() if field.annotation is SecretStr}


@pytest.mark.parametrize("process", NEEDED)
def test_a_process_is_refused_what_it_does_not_need(process: str) -> None:
    settings = Settings(model_servers={"groq": {"kind": "openai", "url": "http://x", "api_key_env": "GROQ_KEY"}})
    of_others = {"JOBS_REDIS_URL"} if process == "worker" else {"PGBOUNCER_URL"}
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
