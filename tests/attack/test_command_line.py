"""The command line with hostile arguments, environments, files and servers: a sentence and an exit code that is
documented, never a traceback, and nothing that steers the terminal."""

import itertools
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command

from agentctl import __main__
from agentctl.__main__ import app
from agentctl.api.client import Client
from agentctl.exit_codes import ExitCode
from tests.scripted_api import ScriptedApi, raw, scripted_api

ROOT = Path(__file__).parents[2]
RUN = "01936f7e-9f5c-7b3a-8c41-3d5e0f9a2b6c"
WITHOUT = {"up", "demo", "calibrate", "doctor", "migrate", "events"}
"""They start processes, measure, or follow without end."""
HOSTILE = ["\udcff", "", "-", "../..", "\x1b[2J\u202e", "x" * 5000, "{", RUN]
ANSWERS = {
    "nothing": raw(200, b""),
    "an object": raw(200, b"{}"),
    "a list": raw(200, b"[]"),
    "null": raw(200, b"null"),
    "wrong types": raw(200, b'{"runs": 3, "events": {}, "decisions": "x", "files": [[]], "next_cursor": {}}'),
    "deep": raw(200, b"[" * 200_000),
    "no UTF-8": raw(200, b'{"run_id": "\xff"}'),
    "wrong coding": b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 3\r\nConnection: close\r\n\r\nabc",
    "a page": raw(404, b"<html>\x1b[2J</html>"),
    "a list for a problem": raw(403, b"[]"),
    "a problem of wrong types": raw(409, b'{"code": [], "detail": {"a": 1}}'),
    "elsewhere": b"HTTP/1.1 302 Found\r\nLocation: http://[::1\r\nContent-Length: 0\r\nConnection: close\r\n\r\n",
    "no HTTP": b"SSH-2.0-OpenSSH\r\n",
}


def commands(group: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    context = group.make_context("agentctl", [], resilient_parsing=True)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        if hasattr(command, "list_commands"):
            yield from commands(command, (*path, name))
        elif name not in WITHOUT:
            yield (*path, name), command


COMMANDS = dict(commands(get_command(app)))


def called_with(path: tuple[str, ...], word: str) -> list[str]:
    """The command, with this word wherever it must have one."""
    arguments: list[str] = []
    for parameter in COMMANDS[path].params:
        if parameter.required:
            arguments += [word] if parameter.param_type_name == "argument" else [parameter.opts[0], word]
    return [*path, *arguments]


@pytest.fixture
def _in_an_empty_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("AGENT_TOKEN", "agt_test")
    with open(os.devnull) as nothing:
        monkeypatch.setattr(sys, "stdin", nothing)
        yield


def calls(
    monkeypatch: pytest.MonkeyPatch, capsysbinary: pytest.CaptureFixture[bytes], argv: list[str]
) -> tuple[int, str]:
    """The exit code, and all that was printed."""
    monkeypatch.setattr(sys, "argv", ["agentctl", *argv])
    with pytest.raises(SystemExit) as ending:
        __main__.main()
    said = capsysbinary.readouterr()
    return int(ending.value.code or 0), (said.out + said.err).decode(errors="replace")


@pytest.mark.slow
@pytest.mark.usefixtures("_in_an_empty_folder")
@pytest.mark.parametrize("path", COMMANDS, ids=" ".join)
def test_a_hostile_argument_ends_in_a_sentence(
    monkeypatch: pytest.MonkeyPatch, capsysbinary: pytest.CaptureFixture[bytes], path: tuple[str, ...]
) -> None:
    with scripted_api([raw(404, b'{"code": "not_found", "detail": "There is none."}')]) as api:
        monkeypatch.setenv("AGENT_URL", api.url)
        for word in HOSTILE:
            code, said = calls(monkeypatch, capsysbinary, called_with(path, word))
            assert code in set(ExitCode) - {ExitCode.FAULT}, (word, said)
            assert "Traceback" not in said
            assert "\x1b[2J" not in said


@pytest.mark.slow
@pytest.mark.usefixtures("_in_an_empty_folder")
@pytest.mark.parametrize("path", COMMANDS, ids=" ".join)
def test_a_hostile_server_ends_in_a_sentence(
    monkeypatch: pytest.MonkeyPatch, capsysbinary: pytest.CaptureFixture[bytes], path: tuple[str, ...]
) -> None:
    monkeypatch.setattr(Client.__init__, "__defaults__", (lambda _: None, (), ()))  # it is not waited between tries
    for name, answer in ANSWERS.items():
        with scripted_api([answer]) as api:
            monkeypatch.setenv("AGENT_URL", api.url)
            code, said = calls(monkeypatch, capsysbinary, called_with(path, RUN))
        assert code in set(ExitCode), (name, said)
        assert "Traceback" not in said
        assert "\x1b[2J" not in said


ENVIRONMENTS: dict[str, dict[str, str]] = {
    "a SOCKS proxy": {"ALL_PROXY": "socks5://127.0.0.1:1080"},
    "an exception that is no pattern": {"HTTP_PROXY": "http://127.0.0.1:9", "NO_PROXY": "[::1],api.invalid"},
    "a proxy of no scheme that is known": {"HTTP_PROXY": "foo://x"},
    "a broken proxy": {"HTTP_PROXY": "http://[::1"},
    "a proxy that is not UTF-8": {"HTTP_PROXY": "http://\udcff"},
    "an address that is not UTF-8": {"AGENT_URL": "http://\udcff"},
    "a broken address": {"AGENT_URL": "http://[::1"},
    "a token that is not UTF-8": {"AGENT_TOKEN": "\udcff"},
    "certificates that are not there": {"SSL_CERT_FILE": "/nowhere"},
    "no number of columns": {"COLUMNS": "x", "LINES": "-1"},
    "no column": {"COLUMNS": "0"},
    "one column": {"COLUMNS": "1"},
    "a strange terminal": {"TERM": "\udcff", "FORCE_COLOR": "1", "COLORTERM": "\udcff"},
    "a strange locale": {"LC_ALL": "xx_YY.nowhere", "LANG": "\udcff", "PYTHONIOENCODING": "ascii"},
    "a strange zone": {"TZ": "No/Where\udcff"},
    "no home": {"HOME": "/nowhere/\udcff"},
}


def run(
    argv: list[str], folder: Path, environment: dict[str, str], **more: Any
) -> "subprocess.CompletedProcess[bytes]":
    kept = {"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), "AGENT_TOKEN": "agt_test"}
    given = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **more}
    return subprocess.run(
        [sys.executable, "-m", "agentctl", *argv], cwd=folder, env={**kept, **environment}, timeout=60, **given
    )


@pytest.mark.slow
@pytest.mark.parametrize("name", ENVIRONMENTS)
def test_a_hostile_environment_ends_in_a_sentence(tmp_path: Path, name: str) -> None:
    for argv in (["runs"], ["--help"], ["settings", "--json"], ["show", RUN]):
        ended = run(argv, tmp_path, {"AGENT_URL": "http://api.invalid", **ENVIRONMENTS[name]})
        assert ended.returncode in set(ExitCode) - {ExitCode.FAULT}, ended.stderr
        assert b"Traceback" not in ended.stderr
        assert ended.stdout + ended.stderr


@pytest.mark.slow
def test_a_stream_that_is_closed_or_full_ends_in_a_sentence(tmp_path: Path) -> None:
    for argv, closed in itertools.product(
        (["version"], ["--help"], ["run", "-"], ["show", "zz"]), ("0", "1", "2", "012")
    ):
        shell = " ".join([sys.executable, "-m", "agentctl", *argv, *(f"{descriptor}>&-" for descriptor in closed)])
        ended = subprocess.run(
            ["sh", "-c", shell], cwd=tmp_path, env={"PYTHONPATH": str(ROOT)}, capture_output=True, timeout=60
        )
        assert (ended.returncode in set(ExitCode) - {ExitCode.FAULT}, b"Traceback" in ended.stderr) == (True, False)
    with open("/dev/full", "wb") as full:
        ended = run(["--help"], tmp_path, {}, stdout=full)
    assert (ended.returncode, ended.stderr.count(b"\n"), b"No space left" in ended.stderr) == (5, 1, True)


@pytest.mark.parametrize("argv", [["--help"], ["settings", "--json"]], ids=" ".join)
def test_a_reader_that_has_gone_is_the_exit_code_of_a_broken_pipe(tmp_path: Path, argv: list[str]) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    try:
        ended = run(argv, tmp_path, {}, stdout=writing)
    finally:
        os.close(writing)
    assert (ended.returncode, ended.stderr) == (141, b"")


@pytest.mark.usefixtures("_in_an_empty_folder")
def test_an_argument_that_is_not_utf_8_is_named(
    monkeypatch: pytest.MonkeyPatch, capsysbinary: pytest.CaptureFixture[bytes]
) -> None:
    with scripted_api([raw(404, b"")]) as api:
        assert isinstance(api, ScriptedApi)
        monkeypatch.setenv("AGENT_URL", api.url)
        code, said = calls(monkeypatch, capsysbinary, ["run", "caf\udce9"])
    assert (code, "b'caf\\xe9'" in said, api.requests) == (2, True, [])
