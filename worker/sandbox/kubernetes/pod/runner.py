"""The program inside a Job: waits for a command, runs it under its caps, keeps what it wrote until it was fetched.

It is the first process of the container, and comes as text (`packed`), so that any image with Python 3.8 will do and no
image has to be built for it. A worker reaches it over `SOCKET`, through a process that the API server starts beside it
(`PIPE`). They exchange frames: a letter, the payload's length, the payload.

A connection may break and another take its place, also one of another worker: the command goes on meanwhile, its output
is numbered by the byte, and the last of it is kept. So a worker that comes back misses nothing and gets nothing twice.
Of two connections the one with the higher generation counts, then the later one.

The command runs as the same user and may forge what is sent in its name: its own output, its exit code, its files. None
of that gives it more than it has, and the worker believes nothing else. It cannot end this process (the first one of a
process namespace) nor look into it (it is not dumpable), so it cannot get around its caps.

Standard library only, and nothing newer than Python 3.8; it imports nothing of the platform.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import selectors
import signal
import socket
import tempfile
import threading
import time
from functools import partial
from typing import TYPE_CHECKING, Any, BinaryIO

from worker.sandbox.kubernetes.pod.connection import Connection
from worker.sandbox.kubernetes.pod.disk import TICK_SECONDS, Pace, deleted_bytes, measure, space_of
from worker.sandbox.kubernetes.pod.files import KINDS, Files
from worker.sandbox.kubernetes.pod.frames import (
    ACKNOWLEDGE,
    BEGIN,
    CHUNK,
    COLLECT,
    EGRESS,
    ENDED,
    FAULT,
    GO,
    HELLO,
    INPUT,
    KILL,
    OUTPUT,
    QUIT,
    SOCKET,
    STATE,
    TUNNEL_DATA,
    TUNNEL_END,
    WITH_ATTRIBUTES,
    frame,
    json_frame,
)
from worker.sandbox.kubernetes.pod.machine import (
    dumpable,
    kill_others,
    out_of_memory_kills,
    processes,
)
from worker.sandbox.kubernetes.pod.process import Process
from worker.sandbox.kubernetes.pod.spool import Spool
from worker.sandbox.kubernetes.pod.tunnels import PodTunnels

if TYPE_CHECKING:
    from collections.abc import Callable

TMP = "/tmp"  # noqa: S108 - a volume of the pod's own


class Runner:
    def __init__(self, workspace: str, idle_seconds: float, tmp_bytes: int) -> None:
        self._workspace = workspace
        self._tmp_bytes = tmp_bytes
        self._idle_seconds = idle_seconds
        self._selector = selectors.DefaultSelector()
        self._state = "idle"
        self._call: dict[str, Any] = {}
        self._given: BinaryIO | None = None
        self._process: Process | None = None
        self._reading_output = False
        self._spool = Spool()
        self._ended: dict[str, Any] = {}
        self._full: list[str] = []
        self._at_end_of_output = False
        self._files = Files(workspace)
        self._generation = -1
        self._connection: Connection | None = None
        self._alone_since = time.monotonic()
        self._exit: int | None = None
        self._tunnels: PodTunnels | None = None
        self._takers: dict[bytes, Callable[[bytes], None]] = {
            BEGIN: lambda payload: self._begin(json.loads(payload)),
            **{kind: partial(self._files.receive, kind) for kind in KINDS},
            INPUT: self._take_input,
            GO: lambda _: self._go(),
            ACKNOWLEDGE: self._acknowledge,
            TUNNEL_DATA: partial(self._take_tunnel, TUNNEL_DATA),
            TUNNEL_END: partial(self._take_tunnel, TUNNEL_END),
            KILL: lambda _: self._kill(),
            COLLECT: self._collect,
            QUIT: lambda _: self._quit(min(self._ended.get("exit_code", 0), 255)),
        }
        """What is done with a frame of the connection that counts, by its kind; HELLO makes a connection that one."""

    # --- the loop ---

    def run(self) -> int:
        wake_read, wake_write = socket.socketpair()
        for end in (wake_read, wake_write):
            end.setblocking(False)
        self._wake = wake_write
        signal.set_wakeup_fd(wake_write.fileno(), warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.signal(signal.SIGTERM, lambda *_: self._quit(143))
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(SOCKET)
        listener.listen()
        listener.setblocking(False)
        self._selector.register(listener, selectors.EVENT_READ, lambda _: self._accept(listener))
        self._selector.register(wake_read, selectors.EVENT_READ, lambda _: wake_read.recv(4096))
        while self._exit is None:
            for key, events in self._selector.select(self._pause()):
                key.data(events)
            self._reap()
            self._look_at_limits()
            self._steer_output()
            if self._tunnels:
                self._tunnels.steer()
            if self._connection:
                self._connection.update_events()
        kill_others()
        return self._exit

    def _pause(self) -> float:
        until = [time.monotonic() + 60.0]
        if self._process:
            until.append(self._process.deadline)
        elif not self._connection:
            until.append(self._alone_since + self._idle_seconds)
        return max(0.0, min(until) - time.monotonic())

    def _look_at_limits(self) -> None:
        if not self._process:
            if not self._connection and time.monotonic() - self._alone_since >= self._idle_seconds:
                self._quit(0)
        elif self._full:
            self._end(137, "disk", self._full[0])
        elif time.monotonic() >= self._process.deadline:
            self._end(137, "timeout", f"it ran longer than {self._process.limits['wall_seconds']:g} seconds")

    def _quit(self, code: int) -> None:
        self._exit = code

    # --- the command ---

    def _begin(self, call: dict[str, Any]) -> None:
        if self._process:
            raise ValueError("a command runs")
        self._state, self._call, self._ended, self._full = "receiving", call, {}, []
        self._files.begin(clear_first=call["clear"])
        self._spool = Spool()
        if self._connection:
            self._connection.sent = 0
        self._given = tempfile.TemporaryFile(dir=TMP) if call["stdin"] else None  # noqa: SIM115

    def _go(self) -> None:
        self._files.settle_folders()
        if self._given:
            self._given.flush()
            self._given.seek(0)
        if self._call.get("egress"):
            self._tunnels = PodTunnels(self._selector, EGRESS, self._send, self._unsent_bytes)
        self._process = Process(self._call, self._given, self._workspace)
        if self._given:
            self._given.close()
            self._given = None
        self._state = "running"
        number = self._process.start_error
        if number and number != errno.E2BIG:
            why = "not found" if number in (errno.ENOENT, errno.ENOTDIR) else os.strerror(number)
            self._spool.add(f"{self._call['argv'][0]}: {why}\n".encode("utf-8", "surrogateescape"))
        self._selector.register(self._process.output, selectors.EVENT_READ, lambda _: self._take_output())
        self._reading_output = True
        threading.Thread(target=self._watch_disk, args=(self._process,), daemon=True).start()

    def _take_output(self) -> bool:
        if not self._process:
            return False  # a frame that was received a moment ago ended it
        try:
            chunk = os.read(self._process.output, CHUNK)
        except BlockingIOError:
            return False
        if chunk:
            self._spool.add(chunk)
            return True
        if self._reading_output:
            self._selector.unregister(self._process.output)
            self._reading_output = False
        self._at_end_of_output = True
        return False

    def _steer_output(self) -> None:
        """A command that is too far ahead of its reader has to wait: its pipe is full."""
        if not self._process or self._at_end_of_output:
            return
        if self._reading_output and self._spool.full:
            self._selector.unregister(self._process.output)
            self._reading_output = False
        elif not self._reading_output and not self._spool.full:
            self._selector.register(self._process.output, selectors.EVENT_READ, lambda _: self._take_output())
            self._reading_output = True

    def _reap(self) -> None:
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            if self._process and pid == self._process.pid:
                code = os.WEXITSTATUS(status) if os.WIFEXITED(status) else 128 + os.WTERMSIG(status)
                self._end(code, "exited", "")

    def _end(self, code: int, ending: str, detail: str) -> None:
        process = self._process
        assert process
        kill_others()
        if self._tunnels:
            self._tunnels.close()
            self._tunnels = None
        while self._take_output():
            pass
        if self._reading_output:
            self._selector.unregister(process.output)
            self._reading_output = False
        self._at_end_of_output = False
        os.close(process.output)
        self._process = None
        if ending == "exited" and code != 0 and out_of_memory_kills() > process.kills_before:
            ending, detail = "memory", "it used all its memory (SANDBOX_MEMORY_BYTES)"
        elif code == 128 + signal.SIGXCPU:
            detail = "it used all its CPU time (SANDBOX_CPU_SECONDS)"
        elif code == 128 + signal.SIGXFSZ:
            detail = "it wrote a file that is too large (SANDBOX_FILE_BYTES)"
        elif ending == "exited" and code == 0:
            # What was written since the last look; more than this the worker would not take.
            detail, _ = self._too_full(process.limits)
            if detail:
                code, ending = 137, "disk"
        seconds = time.monotonic() - process.began
        self._ended = {"exit_code": code, "ending": ending, "detail": detail, "seconds": seconds}
        if process.start_error:
            self._ended["start_error"] = process.start_error
        self._state = "ended"

    def _too_full(self, limits: dict[str, Any]) -> tuple[str, int]:
        """What holds too much, in words, and the bytes that are left until something does."""
        room = limits["disk_bytes"]
        others = [pid for pid in processes() if pid != os.getpid()]
        for folder, most, of in (
            (self._workspace, limits["disk_bytes"], ""),
            (TMP, self._tmp_bytes, " (SANDBOX_TMP_BYTES)"),
        ):
            found = measure(folder, most, limits["files"])
            if found.over:
                return f"{'the folder' if folder == self._workspace else folder} holds {found.over}{of}", 0
            room = min(room, most - found.size)
        with contextlib.suppress(OSError):
            # Both volumes may be on one device, so for these there is one limit.
            deleted = deleted_bytes(others, os.stat(self._workspace).st_dev)
            if deleted > limits["disk_bytes"] + self._tmp_bytes:
                return "files that are deleted but open hold more than the folder and /tmp may", 0
        return "", room

    def _watch_disk(self, process: Process) -> None:
        pace = Pace(time.monotonic(), self._used(), min(process.limits["disk_bytes"], self._tmp_bytes))
        while True:
            time.sleep(TICK_SECONDS)
            if self._process is not process:
                return
            began, used = time.monotonic(), self._used()
            if not pace.is_due(began, used):
                continue
            found, room = self._too_full(process.limits)
            if found:
                if self._process is process:
                    self._full.append(found)
                    with contextlib.suppress(BlockingIOError):
                        self._wake.send(b"!")
                return
            pace.looked(began, time.monotonic(), used, room)

    def _used(self) -> int:
        with contextlib.suppress(OSError):
            return space_of(self._workspace).used
        return 0

    # --- from the worker ---

    def _accept(self, listener: socket.socket) -> None:
        with contextlib.suppress(OSError):
            accepted, _ = listener.accept()
            Connection(accepted, self, self._selector)

    def receive(self, connection: Connection, kind: bytes, payload: bytes) -> None:
        """A frame of a worker. Kinds that are not known are of a newer release, and are passed over."""
        if kind == HELLO:
            self._greet(connection, json.loads(payload))
        elif connection is not self._connection:
            connection.close()
        elif take := self._takers.get(kind):
            take(payload)

    def _greet(self, connection: Connection, greeting: dict[str, Any]) -> None:
        if greeting["generation"] < self._generation:
            connection.send(json_frame(FAULT, {"superseded": True, "message": "another worker carries out the run"}))
            connection.close_when_sent = True
            return
        if greeting.get("peek"):
            self._alone_since = time.monotonic()
            connection.send(json_frame(STATE, self._where()))
            return
        self._generation = greeting["generation"]
        if self._connection is not connection:
            if self._tunnels:
                self._tunnels.drop_all()
            if self._connection:
                self._connection.close()
        self._connection = connection
        if self._call.get("call") == greeting["call"]:
            connection.sent = max(greeting["from"], self._spool.start)
            connection.sent_end = None
        else:
            # The output and the end of another command are not for this one.
            connection.sent, connection.sent_end = self._spool.end, self._ended
        connection.send(json_frame(STATE, {**self._where(), "from": connection.sent}))
        connection.greeted = True

    def _where(self) -> dict[str, Any]:
        exit_code = self._ended.get("exit_code")
        return {"state": self._state, "call": self._call.get("call"), "exit_code": exit_code, "attributes": True}

    def _take_input(self, payload: bytes) -> None:
        assert self._given
        self._given.write(payload)

    def _acknowledge(self, payload: bytes) -> None:
        self._spool.acknowledged = max(self._spool.acknowledged, int(payload))

    def _take_tunnel(self, kind: bytes, payload: bytes) -> None:
        if self._tunnels:
            self._tunnels.receive(kind, payload)

    def _kill(self) -> None:
        if self._process:
            self._end(137, "killed", "")

    def _collect(self, payload: bytes) -> None:
        if self._connection:
            self._connection.source = self._files.collect(payload == WITH_ATTRIBUTES)

    def disconnected(self, connection: Connection) -> None:
        if self._connection is connection:
            self._connection = None
            self._alone_since = time.monotonic()
            if self._tunnels:
                self._tunnels.drop_all()

    # --- to the worker ---

    def _send(self, frames: bytes) -> None:
        if self._connection:
            self._connection.send(frames)

    def _unsent_bytes(self) -> int:
        return self._connection.unsent_bytes if self._connection else 0

    def next_frames(self, connection: Connection) -> bytes:
        """What comes next on a connection that has sent all so far; empty when there is nothing to send."""
        if not connection.greeted:
            return b""
        if connection.sent < self._spool.end:
            chunk = self._spool.read(connection.sent)
            output = frame(OUTPUT, b"%020d" % connection.sent + chunk)
            connection.sent += len(chunk)
            return output
        if self._ended and connection.sent_end is not self._ended:
            connection.sent_end = self._ended
            return json_frame(ENDED, {**self._ended, "end": self._spool.end})
        if connection.source:
            parts = bytearray()
            for part in connection.source:
                parts += part
                if len(parts) >= 4 * CHUNK:
                    return bytes(parts)
            connection.source = None
            return bytes(parts)
        return b""


def main(workspace: str, idle_seconds: str, tmp_bytes: str) -> int:
    dumpable(False)
    return Runner(workspace, float(idle_seconds), int(tmp_bytes)).run()
