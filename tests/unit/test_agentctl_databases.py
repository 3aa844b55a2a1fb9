"""On which data an operator's command works: it says which, makes none unasked, and looks at what the API uses."""

import asyncio
import json
import os
import shutil
import sqlite3
from pathlib import Path

import pytest

from agentctl.commands import doctor
from agentctl.local.configuration import load_settings
from backplane.domain.users import Tier
from backplane.resources import connect_store
from tests.scripted_api import answer, problem
from tests.unit.conftest import Agentctl, Script
from tests.waiting import wait_until

READY = answer(200, {"ok": True, "parts": {"redis": {"ok": True}, "database": {"ok": True}, "workspace": {"ok": True}}})
QUEUE = answer(200, {"queued": 0})


@pytest.fixture
def no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("DATABASE_URL", "REDIS_URL", "AGENT_TOKEN", "WORKSPACE_DIR", "S3_BUCKET"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def folder(sqlite_tables: Path, tmp_path: Path) -> Path:
    """As `agentctl up --data` leaves one."""
    data = tmp_path / "elsewhere"
    data.mkdir()
    shutil.copyfile(sqlite_tables, data / "agent.db")
    return data


def users_of(database: Path) -> list[str]:
    with sqlite3.connect(database) as connection:
        return [name for (name,) in connection.execute("SELECT name FROM users ORDER BY name")]


# --- tokens ---


@pytest.mark.usefixtures("no_settings")
@pytest.mark.parametrize(
    "command", [("create", "--user", "ada"), ("list",), ("revoke", "01936f7e")], ids=lambda command: command[0]
)
def test_no_database_is_made_unasked(agentctl: Agentctl, tmp_path: Path, command: tuple[str, ...]) -> None:
    code, printed, notes = agentctl("token", *command)
    assert (code, printed) == (2, "")
    assert str(tmp_path / ".data" / "agent.db") in notes
    assert "--data" in notes
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("no_settings")
def test_a_file_without_tables_is_no_platforms_database(
    agentctl: Agentctl, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "empty.db").touch()
    monkeypatch.setenv("DATABASE_URL", f"sqlite:///{tmp_path / 'empty.db'}")
    assert agentctl("token", "create", "--user", "ada")[0] == 2


@pytest.mark.usefixtures("no_settings")
def test_a_token_is_put_into_the_database_of_a_data_folder_and_says_which(agentctl: Agentctl, folder: Path) -> None:
    code, printed, notes = agentctl("token", "create", "--user", "ada", "--data", str(folder))
    assert (code, printed.startswith("agt_")) == (0, True)
    assert str(folder / "agent.db") in notes
    assert users_of(folder / "agent.db") == ["ada"]
    assert str(folder / "agent.db") in agentctl("token", "list", "--data", str(folder))[2]


@pytest.mark.usefixtures("no_settings")
def test_a_folder_that_is_no_data_folder_is_refused(agentctl: Agentctl, tmp_path: Path) -> None:
    assert agentctl("token", "list", "--data", str(tmp_path))[0] == 2
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("no_settings")
def test_a_token_is_revoked_by_how_its_id_begins(agentctl: Agentctl, folder: Path) -> None:
    for user in ("ada", "bob"):
        agentctl("token", "create", "--user", user, "--data", str(folder))
    listed = json.loads(agentctl("token", "list", "--json", "--data", str(folder))[1])
    first = listed[0]["id"]
    assert agentctl("token", "revoke", first[:8], "--data", str(folder))[0] == 0
    again = json.loads(agentctl("token", "list", "--json", "--data", str(folder))[1])
    assert [(one["id"], one["revoked_at"] is not None) for one in again] == [(first, True), (listed[1]["id"], False)]


@pytest.mark.usefixtures("no_settings")
def test_the_tables_of_a_newer_release_stay_and_that_is_said(
    agentctl: Agentctl, monkeypatch: pytest.MonkeyPatch, folder: Path
) -> None:
    monkeypatch.setenv("DATABASE_URL", f"sqlite:///{folder / 'agent.db'}")
    with sqlite3.connect(folder / "agent.db") as connection:
        connection.execute("UPDATE alembic_version SET version_num = '9999'")
    code, printed, notes = agentctl("migrate")
    assert (code, printed, "9999" in notes, "Traceback" in notes) == (0, "", True, False)


# --- doctor ---


@pytest.fixture
def token(folder: Path) -> str:
    """Of a user in the folder's database."""

    async def make() -> str:
        async with connect_store(load_settings(database_url=f"sqlite:///{folder / 'agent.db'}")) as store:
            return (await store.users.create_token("ada", Tier.ADMIN))[1]

    return asyncio.run(make())


def data_as_seen(folder: Path) -> doctor.Finding:
    settings, _ = doctor._with_folder(load_settings(), folder)
    return asyncio.run(doctor._api(settings, folder))[-1]


@pytest.mark.usefixtures("no_settings")
def test_the_doctor_says_that_the_api_uses_what_it_looks_at(
    script: Script, monkeypatch: pytest.MonkeyPatch, folder: Path, token: str
) -> None:
    script(READY, QUEUE)
    monkeypatch.setenv("AGENT_TOKEN", token)
    found = data_as_seen(folder)
    assert (found.part, found.state, str(folder / "agent.db") in found.found) == ("data", "ok", True)


@pytest.mark.usefixtures("no_settings")
def test_the_doctor_says_that_the_api_uses_other_data(
    script: Script, monkeypatch: pytest.MonkeyPatch, folder: Path, token: str
) -> None:
    script(READY, problem(401, "unauthenticated", "no"))
    monkeypatch.setenv("AGENT_TOKEN", token)
    refused = data_as_seen(folder)
    script(READY, QUEUE)
    monkeypatch.setenv("AGENT_TOKEN", "agt_of_the_other_one")
    known = data_as_seen(folder)
    for found in (refused, known):
        assert (found.part, found.state, "another database" in found.found) == ("data", "warning", True)
        assert "--data" in found.hint


@pytest.mark.usefixtures("no_settings")
def test_the_doctor_looks_at_the_database_of_the_folder(folder: Path) -> None:
    settings, shown = doctor._with_folder(load_settings(), folder)
    findings = asyncio.run(doctor._parts(settings, shown))
    assert {one.part: one.state for one in findings}["database"] == "ok"
    assert str(folder / "agent.db") in shown["database"]
    (folder / "agent.db").write_bytes(b"no database " * 100)
    findings = asyncio.run(doctor._parts(settings, shown))
    assert {one.part: one.state for one in findings}["database"] == "missing"


def test_a_bwrap_that_hangs_is_reported_and_ended_with_what_it_started(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    program = tmp_path / "bwrap"
    program.write_text(f"#!/bin/sh\nsleep 1000 & echo $! > {tmp_path}/pid\nwait\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setattr(doctor, "BWRAP_SECONDS", 0.5)
    monkeypatch.setattr(doctor, "find_spec", lambda _: None)
    found = doctor._bubblewrap()
    assert (found.state, "0.5 s" in found.found) == ("warning", True)
    child = Path(f"/proc/{(tmp_path / 'pid').read_text().strip()}/cmdline")
    is_gone = lambda: not child.exists() or not child.read_bytes()  # noqa: E731 - one that is not waited for is empty
    asyncio.run(wait_until(is_gone, what="what bwrap has started to be gone"))
