"""What the runner in a pod makes of frames, before any command runs: no process is started here, and none is ended."""

import json
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from worker.sandbox.kubernetes.pod.connection import Connection
from worker.sandbox.kubernetes.pod.frames import (
    ACKNOWLEDGE,
    BEGIN,
    COLLECT,
    DATA,
    DELETE,
    DONE,
    FAULT,
    FILE,
    FOLDERS,
    GO,
    HEADER,
    HELLO,
    INPUT,
    KILL,
    LINK,
    QUIT,
    STATE,
    TUNNEL_DATA,
    TUNNEL_END,
    WITH_ATTRIBUTES,
    frame,
    json_frame,
)
from worker.sandbox.kubernetes.pod.runner import Runner

Frames = list[tuple[bytes, Any]]


@pytest.fixture
def runner(tmp_path: Path) -> Iterator[Runner]:
    folder = tmp_path / "workspace"
    folder.mkdir()
    made = Runner(str(folder), idle_seconds=60, tmp_bytes=1024)
    yield made
    made._selector.close()


class Peer:
    """A worker's end of a connection to the runner."""

    def __init__(self, runner: Runner) -> None:
        self._runner = runner
        self._socket, joined = socket.socketpair()
        self._socket.setblocking(False)
        self._connection = Connection(joined, runner, runner._selector)

    def send(self, *frames: bytes) -> Frames:
        """What the runner answers to these."""
        for each in frames:
            self._socket.sendall(each)
        for _ in range(len(frames) + 2):
            for key, events in self._runner._selector.select(0):
                key.data(events)
            if self._runner._connection:
                self._runner._connection.update_events()
        return self._received()

    def greet(self, generation: int = 1, call: str = "a", **more: Any) -> Frames:
        return self.send(json_frame(HELLO, {"generation": generation, "call": call, "from": 0, **more}))

    def is_closed(self) -> bool:
        try:
            return self._socket.recv(1) == b""
        except BlockingIOError:
            return False

    def close(self) -> None:
        self._connection.close()
        self._socket.close()

    def _received(self) -> Frames:
        try:
            data = self._socket.recv(1_000_000)
        except BlockingIOError:
            return []
        found: Frames = []
        while data:
            kind, length = HEADER.unpack_from(data)
            payload = data[HEADER.size : HEADER.size + length]
            found.append((kind, json.loads(payload) if payload.startswith(b"{") else payload))
            data = data[HEADER.size + length :]
        return found


@pytest.fixture
def peer(runner: Runner) -> Iterator[Peer]:
    made = Peer(runner)
    yield made
    made.close()


@pytest.fixture
def other(runner: Runner) -> Iterator[Peer]:
    made = Peer(runner)
    yield made
    made.close()


def test_a_greeting_is_answered_with_the_state(peer: Peer) -> None:
    state = {"state": "idle", "call": None, "exit_code": None, "attributes": True, "from": 0}
    assert peer.greet() == [(STATE, state)]


def test_a_frame_before_the_greeting_ends_the_connection(peer: Peer, runner: Runner) -> None:
    assert peer.send(frame(QUIT)) == []
    assert peer.is_closed()
    assert runner._exit is None


def test_a_worker_of_an_older_generation_is_refused_and_the_newer_one_stays(peer: Peer, other: Peer) -> None:
    peer.greet(generation=2)
    [(kind, fault)] = other.greet(generation=1)
    assert (kind, fault["superseded"]) == (FAULT, True)
    assert other.is_closed()
    assert not peer.is_closed()


def test_a_newer_connection_takes_the_place_of_the_older_one(peer: Peer, other: Peer) -> None:
    peer.greet(generation=1)
    other.greet(generation=1)
    assert peer.is_closed()
    assert not other.is_closed()


def test_a_look_leaves_the_connection_in_use(peer: Peer, other: Peer) -> None:
    peer.greet()
    [(kind, _)] = other.greet(generation=5, peek=True)
    assert kind == STATE
    assert not peer.is_closed()


def test_a_kind_that_is_not_known_is_passed_over(peer: Peer) -> None:
    peer.greet()
    assert peer.send(frame(b"?", b"of a newer release")) == []
    assert not peer.is_closed()


def test_a_frame_that_makes_no_sense_is_answered_by_a_fault_and_ends_the_connection(peer: Peer) -> None:
    peer.greet()
    [(kind, fault)] = peer.send(frame(BEGIN, b"no json"))
    assert kind == FAULT
    assert "superseded" not in fault
    assert peer.is_closed()


def test_a_frame_that_is_too_long_ends_the_connection(peer: Peer) -> None:
    peer.greet()
    [(kind, _)] = peer.send(HEADER.pack(DATA, 2**31))
    assert kind == FAULT
    assert peer.is_closed()


def test_files_come_in_and_go_out_again(peer: Peer, runner: Runner, tmp_path: Path) -> None:
    begin = {"call": "a", "clear": False, "stdin": 0}
    peer.greet()
    answers = peer.send(
        json_frame(BEGIN, begin), json_frame(FILE, {"path": "new", "size": 3}), frame(DATA, b"abc"), frame(COLLECT)
    )
    assert (tmp_path / "workspace/new").read_bytes() == b"abc"
    assert answers[-1][0] == DONE


def test_bytecode_stays_in_the_pod_and_what_else_lies_beside_it_is_named(peer: Peer, tmp_path: Path) -> None:
    peer.greet()
    cache = tmp_path / "workspace/pkg/__pycache__"
    (cache / "folder").mkdir(parents=True)
    for name in ("a.cpython-311.pyc", "a.cpython-311.opt-1.pyc", "a.cpython-311.pyc.139872", "notes.txt", "pyc"):
        (cache / name).write_bytes(b"x")
    cache.chmod(0)
    answers = peer.send(frame(COLLECT, WITH_ATTRIBUTES))
    (_, whole), (_, beside), done = answers
    assert ([name for name, _, _ in whole["folders"]], done) == (["pkg"], (DONE, b""))
    named = [f"pkg/__pycache__/{name}" for name in ("folder", "notes.txt", "pyc")]
    assert sorted(beside["beside_bytecode"]) == named
    assert peer.send(frame(COLLECT)) == [(DONE, b"")]  # a worker of an older release


def test_what_is_acknowledged_never_becomes_less(peer: Peer, runner: Runner) -> None:
    peer.greet()
    peer.send(frame(ACKNOWLEDGE, b"7"), frame(ACKNOWLEDGE, b"3"))
    assert runner._spool.acknowledged == 7


@pytest.mark.parametrize("nothing", [KILL, TUNNEL_DATA, TUNNEL_END])
def test_what_is_about_a_command_does_nothing_without_one(peer: Peer, nothing: bytes) -> None:
    peer.greet()
    assert peer.send(frame(nothing, bytes(4))) == []
    assert not peer.is_closed()


def test_the_end_of_the_runner_has_the_code_of_its_last_command(peer: Peer, runner: Runner) -> None:
    peer.greet()
    peer.send(frame(QUIT))
    assert runner._exit == 0


def test_every_kind_that_a_worker_sends_has_its_place_in_the_table(runner: Runner) -> None:
    sent = {BEGIN, DELETE, INPUT, GO, ACKNOWLEDGE, KILL, COLLECT, QUIT, FILE, DATA, FOLDERS, LINK}
    assert set(runner._takers) == sent | {TUNNEL_DATA, TUNNEL_END}
