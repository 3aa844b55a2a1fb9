"""scripts/ollama_setup.sh against a stand-in of systemctl that notes its calls, and a server that answers."""

import http.server
import os
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "scripts" / "ollama_setup.sh"
UNIT = "ollama.service"


class Answering(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200 if self.path == "/api/version" else 404)
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def listening() -> Iterator[str]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answering) as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        yield f"127.0.0.1:{server.server_port}"
        server.shutdown()


def setup(folder: Path, *arguments: str, **settings: str) -> "subprocess.CompletedProcess[str]":
    systemctl = folder / "systemctl"
    systemctl.write_text(f'#!/bin/sh\necho "$*" >> {folder}/calls\n[ "$1" != cat ] || [ "$2" = {UNIT} ]\n')
    systemctl.chmod(0o755)
    environment = {"PATH": os.environ["PATH"], "SYSTEMCTL": str(systemctl), "SYSTEMD_FOLDER": str(folder / "system")}
    return subprocess.run(
        ["bash", str(SCRIPT), *arguments], env={**environment, **settings}, capture_output=True, text=True, timeout=60
    )


def calls(folder: Path) -> list[str]:
    return (folder / "calls").read_text().splitlines()


def test_it_writes_the_drop_in_restarts_and_waits_for_an_answer(tmp_path: Path, listening: str) -> None:
    done = setup(tmp_path, OLLAMA_LISTEN=listening, OLLAMA_NUM_PARALLEL="8", OLLAMA_KEEP_ALIVE="1h")
    assert (done.returncode, f"OLLAMA_HOST=http://{listening}" in done.stdout) == (0, True), done.stderr
    [drop_in] = (tmp_path / "system" / f"{UNIT}.d").iterdir()
    assert "Environment=OLLAMA_NUM_PARALLEL=8\n" in drop_in.read_text()
    assert "Environment=OLLAMA_MAX_LOADED_MODELS=2\n" in drop_in.read_text()
    assert calls(tmp_path) == [f"cat {UNIT}", "daemon-reload", f"restart {UNIT}"]


def test_a_second_time_it_changes_and_restarts_nothing(tmp_path: Path, listening: str) -> None:
    setup(tmp_path, OLLAMA_LISTEN=listening)
    [drop_in] = (tmp_path / "system" / f"{UNIT}.d").iterdir()
    before = drop_in.stat()
    again = setup(tmp_path, OLLAMA_LISTEN=listening)
    assert (again.returncode, "as it should be" in again.stdout) == (0, True)
    assert (drop_in.stat().st_mtime_ns, drop_in.stat().st_ino) == (before.st_mtime_ns, before.st_ino)
    assert calls(tmp_path).count(f"restart {UNIT}") == 1


def test_another_number_replaces_the_file_and_leaves_others_alone(tmp_path: Path, listening: str) -> None:
    folder = tmp_path / "system" / f"{UNIT}.d"
    folder.mkdir(parents=True)
    (folder / "override.conf").write_text("[Service]\nEnvironment=MINE=1\n")
    setup(tmp_path, OLLAMA_LISTEN=listening)
    setup(tmp_path, OLLAMA_LISTEN=listening, OLLAMA_NUM_PARALLEL="2")
    assert (folder / "override.conf").read_text() == "[Service]\nEnvironment=MINE=1\n"
    assert "OLLAMA_NUM_PARALLEL=2" in (folder / "50-agent-platform.conf").read_text()
    assert len(list(folder.iterdir())) == 2


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("OLLAMA_NUM_PARALLEL", "0"),
        ("OLLAMA_NUM_PARALLEL", "four"),
        ("OLLAMA_MAX_LOADED_MODELS", "-1"),
        ("OLLAMA_KEEP_ALIVE", "5m\nEnvironment=LD_PRELOAD=/tmp/x"),
        ("OLLAMA_LISTEN", "localhost"),
        ("OLLAMA_UNIT", "../x.service"),
    ],
)
def test_what_is_no_such_value_is_refused_before_anything_is_written(tmp_path: Path, name: str, value: str) -> None:
    refused = setup(tmp_path, **{name: value})
    assert (refused.returncode, name in refused.stderr) == (1, True)
    assert not (tmp_path / "system").exists()


def test_without_ollama_it_says_what_to_install(tmp_path: Path) -> None:
    refused = setup(tmp_path, OLLAMA_UNIT="other.service")
    assert (refused.returncode, "install Ollama first" in refused.stderr) == (1, True)


def test_an_ollama_that_does_not_answer_is_reported_with_where_to_look(tmp_path: Path) -> None:
    silent = setup(tmp_path, OLLAMA_LISTEN="127.0.0.1:1", OLLAMA_WAIT_SECONDS="1")
    assert (silent.returncode, "journalctl -u ollama.service" in silent.stderr) == (1, True)


def test_a_dry_run_writes_nothing(tmp_path: Path) -> None:
    shown = setup(tmp_path, "--dry-run")
    assert (shown.returncode, "would write" in shown.stdout) == (0, True)
    assert not (tmp_path / "system").exists()
