"""What programs that speak MCP do on their standard output, against the driver that calls them; without a sandbox,
which changes nothing of it."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import textwrap
import time
from dataclasses import dataclass
from typing import Any

import pytest

from worker.mcp.driver import MARK
from worker.mcp.in_sandbox import DRIVER

BEGIN = """
import json, os, subprocess, sys, time
def say(**message):
    print(json.dumps({"jsonrpc": "2.0", **message}), flush=True)
def hello(message):
    version = message["params"]["protocolVersion"]
    say(id=message["id"], result={"protocolVersion": version, "capabilities": {}, "serverInfo": {"name": "s"}})
def hear():
    return json.loads(sys.stdin.readline())
"""
GREET = BEGIN + "hello(hear()); hear(); asked = hear()\n"
RESULT = "say(id=asked['id'], result={'content': [{'type': 'text', 'text': 'yes'}]})\n"


@dataclass
class Driven:
    answers: list[Any]
    failure: str | None
    noise: int
    beside: str

    @property
    def text(self) -> str:
        assert self.failure is None, self.failure
        text: str = self.answers[0]["result"]["content"][0]["text"]
        return text


def drive(program: str, method: str = "tools/call", **more: Any) -> Driven:
    command = [sys.executable, "-I", "-S", "-c", textwrap.dedent(program)]
    asked = {"command": command, "method": method, "params": {"name": "t"}, "seconds": 10, "max_bytes": 100_000}
    asked |= {"most_pages": 5, **more}
    # A file, as what a server leaves behind may hold a pipe open. A sandbox ends it.
    with tempfile.TemporaryFile() as said:
        driver = subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", DRIVER],
            stdin=subprocess.PIPE,
            stdout=said,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            driver.communicate(json.dumps(asked).encode(), timeout=30)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(driver.pid, signal.SIGKILL)
        said.seek(0)
        beside, _, line = said.read().decode("utf-8", "replace").rpartition(MARK)
    return Driven(**json.loads(line), beside=beside)


NOISE = {
    "a banner": "print('Starting the server...')",
    "an empty line": "print()",
    "a log line in JSON": "print(json.dumps({'level': 'info', 'msg': 'listening'}))",
    "a list": "print('[1, 2]')",
    "a number": "print('42')",
    "no UTF-8": "sys.stdout.buffer.write(b'\\xff\\xfe\\n'); sys.stdout.buffer.flush()",
    "a deep value": "print('[' * 50000)",
    "a progress bar": "print('10%\\r20%\\r')",
    "a forged answer": "print('\\x1emcp {}')",
}


def test_lines_that_are_no_messages_are_passed_over_and_shown() -> None:
    lines = "".join(f"{line}\nsys.stdout.flush()\n" for line in NOISE.values())
    found = drive(BEGIN + f"{lines}hello(hear())\nhear()\nasked = hear()\n{lines}" + RESULT)
    assert (found.text, found.noise) == ("yes", 2 * (len(NOISE) - 1))  # an empty line is none
    assert found.beside.count("Starting the server...") == 2
    assert MARK[0] not in found.beside


def test_lines_that_are_no_messages_are_bounded_in_number() -> None:
    assert drive(GREET + "for _ in range(1000): print('x')\n" + RESULT).noise == 1000
    found = drive(GREET + "for _ in range(1001): print('x')\n" + RESULT)
    assert "writes too much to its standard output" in (found.failure or "")


def test_lines_that_are_no_messages_are_bounded_in_bytes() -> None:
    found = drive(GREET + "for _ in range(10): print('x' * 50_000)\n" + RESULT)
    assert "writes too much to its standard output" in (found.failure or "")


def test_a_line_without_end_is_cut_off() -> None:
    found = drive(GREET + "sys.stdout.write('x' * 200_000)\nsys.stdout.flush()\ntime.sleep(30)\n")
    assert "more than 100,000 bytes in a line" in (found.failure or "")


BETWEEN = {
    "a notification": "say(method='notifications/message', params={'level': 'info', 'data': 'x'})",
    "an answer to nobody": "say(id=99, result={})",
    "a request of its own": "say(id=1, method='roots/list'); assert hear()['error']['code'] == -32601",
    "a ping": "say(id='p', method='ping'); assert hear() == {'jsonrpc': '2.0', 'id': 'p', 'result': {}}",
    "several in one line": "print(json.dumps([{'jsonrpc': '2.0', 'method': 'notifications/x'}] * 2), flush=True)",
}


def test_what_comes_between_is_no_answer() -> None:
    found = drive(GREET + "".join(f"{line}\n" for line in BETWEEN.values()) + RESULT)
    assert (found.text, found.noise) == ("yes", 0)


ANSWERS = {
    "an id as a text": RESULT.replace("asked['id']", "str(asked['id'])"),
    "in a batch": "print(json.dumps([{'jsonrpc': '2.0', 'id': asked['id'], 'result': "
    "{'content': [{'type': 'text', 'text': 'yes'}]}}]), flush=True)",
    "without a line break at the end": "sys.stdout.write(json.dumps({'jsonrpc': '2.0', 'id': asked['id'], 'result': "
    "{'content': [{'type': 'text', 'text': 'yes'}]}}))",
    "with the breaks of Windows": RESULT.replace("say(", "sys.stdout.reconfigure(newline='\\r\\n'); say("),
    "by a server that takes 0 for no id": "assert asked['id']\n" + RESULT,
}


@pytest.mark.parametrize("program", ANSWERS.values(), ids=ANSWERS)
def test_an_answer_is_known_however_it_is_written(program: str) -> None:
    assert drive(GREET + program).text == "yes"


def test_a_server_may_speak_another_version() -> None:
    older = "m = hear(); m['params']['protocolVersion'] = '2024-11-05'; hello(m); hear(); asked = hear()\n"
    assert drive(BEGIN + older + RESULT).text == "yes"


def test_a_server_that_refuses_our_version_is_asked_for_one_that_it_names() -> None:
    refuses = (
        "m = hear()\n"
        "say(id=m['id'], error={'code': -32602, 'message': 'no', 'data': {'supported': ['2024-11-05']}})\n"
        "m = hear()\nassert m['params']['protocolVersion'] == '2024-11-05'\nhello(m); hear(); asked = hear()\n"
    )
    assert drive(BEGIN + refuses + RESULT).text == "yes"


def test_a_server_that_refuses_every_version_is_reported_in_its_words() -> None:
    found = drive(BEGIN + "m = hear()\nsay(id=None, error={'code': -32700, 'message': 'too new'})\n")
    assert (found.failure, found.answers[0]["error"]["message"]) == (None, "too new")


PAGES = """
hello(hear()); hear()
for line in sys.stdin:
    asked = json.loads(line)
    number = int(asked["params"].get("cursor", 0))
    say(id=asked["id"], result={"tools": [{"name": f"t{number}"}], "nextCursor": NEXT})
"""


@pytest.mark.parametrize(
    ("next_cursor", "names"),
    [
        ("str(number + 1) if number < 2 else None", ["t0", "t1", "t2"]),
        ("str(number + 1) if number < 2 else ''", ["t0", "t1", "t2"]),
        ("7 if number < 2 else None", ["t0"]),
        ("str(1 - number)", ["t0", "t1", "t0"]),
        ("str(number + 1)", ["t0", "t1", "t2", "t3", "t4"]),
    ],
    ids=["three", "an empty cursor ends it", "a cursor that is none", "a loop", "no end"],
)
def test_pages_are_followed_as_far_as_they_lead(next_cursor: str, names: list[str]) -> None:
    found = drive(BEGIN + PAGES.replace("NEXT", next_cursor), "tools/list", params={})
    assert [page["result"]["tools"][0]["name"] for page in found.answers] == names


def test_a_server_that_ends_is_named_with_its_code_and_its_words() -> None:
    found = drive("import sys\nsys.exit('no module named x')")
    assert found.failure == "it ended before it answered; the server ended with 1"
    assert found.beside == "no module named x\n"


def test_a_command_that_is_not_there_is_named() -> None:
    found = drive("", command=["no-such-program"])
    assert found.failure == "it cannot be started: No such file or directory: no-such-program"


CHILD = "subprocess.run([sys.executable, '-S', '-c', 'import time; time.sleep(60)'], stdin=0)\n"
SLOW = {
    "it": GREET + "time.sleep(60)\n",
    "what it has started": GREET + CHILD,
    "a line that goes on": GREET + "while True: sys.stdout.write('x'); sys.stdout.flush(); time.sleep(0.1)\n",
    "messages that go on": GREET + "while True: say(method='notifications/x'); time.sleep(0.1)\n",
}


@pytest.mark.parametrize("program", SLOW.values(), ids=SLOW)
def test_a_server_that_takes_too_long_is_given_up(program: str) -> None:
    found = drive(program, seconds=0.5)
    assert "took too long: no answer within 0.5 s (MCP_TIMEOUT_SECONDS)" in (found.failure or "")


def test_a_server_may_finish_its_work_when_its_input_is_closed() -> None:
    found = drive(GREET + RESULT + "sys.stdin.read()\nprint('written', file=sys.stderr)\n")
    assert (found.text, found.beside) == ("yes", "written\n")


@pytest.mark.slow
def test_a_server_that_does_not_end_is_ended() -> None:
    found = drive(
        "import signal\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\n" + GREET + RESULT + "time.sleep(60)\n"
    )
    assert found.text == "yes"


ANSWER_MARK = "{'jsonrpc': '2.0', 'id': asked['id'], 'result': {}}"
UNREADABLE = {
    "broken JSON": ('print(\'{"jsonrpc": "2.0", "id": 2, "resu\')', '{"jsonrpc": "2.0", "id": 2, "resu'),
    "printed over several lines": (f"print(json.dumps({ANSWER_MARK}, indent=2))", '"jsonrpc": "2.0",'),
    "neither result nor error": ('print(\'{"jsonrpc": "2.0", "id": 2}\')', '{"jsonrpc": "2.0", "id": 2}'),
    "without the word of the protocol": ('print(\'{"id": 2, "content": []}\')', '{"id": 2, "content": []}'),
    "a batch of no messages": ('print(\'[{"jsonrpc": "2.0"}]\')', '[{"jsonrpc": "2.0"}]'),
    "a page": (
        "print('<!DOCTYPE html><title>502 Bad Gateway</title>')",
        "<!DOCTYPE html><title>502 Bad Gateway</title>",
    ),
    "a long line": ("print('{\"jsonrpc\": \"' + 'x' * 5000)", '{"jsonrpc": "' + "x" * 187 + "…"),
}


@pytest.mark.parametrize(("program", "shown"), UNREADABLE.values(), ids=UNREADABLE)
def test_an_answer_that_cannot_be_read_ends_the_call_at_once_and_is_shown(program: str, shown: str) -> None:
    begun = time.monotonic()
    found = drive(GREET + program + "; sys.stdout.flush(); time.sleep(60)\n")
    assert f"it sent what is no answer: {shown}; the server ended" in (found.failure or "")
    assert time.monotonic() - begun < 30.0, "it waited for the program, which ends after 60 s"


def test_an_answer_to_another_request_is_shown_when_no_other_comes() -> None:
    found = drive(GREET + "say(id=99, result={}); time.sleep(60)\n", seconds=0.5)
    assert 'it sent an answer to a request that was not made: {"jsonrpc": "2.0", "id": 99,' in (found.failure or "")
