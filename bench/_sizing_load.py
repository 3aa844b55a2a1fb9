"""Who sends messages to agents in `bench.sizing`: at a steady rate, or to each agent again as soon as it has answered.

    python -m bench._sizing_load PORT

A process of its own, so that its work is in nobody's account. Standard input has one line of JSON,
{"token", "agents": [ids]}, then a line for each phase: {"seconds", "rate": messages/s, or null: as fast as they go,
"grace": seconds for the last answers}.
All turns are watched by one stream of all the user's events, as a console does. After each phase it prints {"seconds",
"sent", "answered", "answered_in_time": within those seconds, "errors": {status: how many}, "first": [seconds from
sending to the event that the turn runs], "last": [the same to its end]}, of the messages that were sent in the phase.
Those that are not answered `grace` seconds after its end count as sent alone.
"""

import asyncio
import json
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import uvloop

from bench._neighbours import HOST, Connection

SENDERS = 32
GRACE_LOOK_SECONDS = 0.05
IDLE_SECONDS = 2.0
"""After so long a connection is made anew: the server closes those that are idle for some seconds."""


@dataclass
class Phase:
    errors: Counter[str] = field(default_factory=Counter)
    sent: dict[str, tuple[str, float]] = field(default_factory=dict)
    """By run: its agent, and when it was sent."""
    began: dict[str, float] = field(default_factory=dict)
    ended: dict[str, float] = field(default_factory=dict)

    def answered(self) -> int:
        return sum(run in self.ended for run in self.sent)

    def as_dict(self, seconds: float) -> dict[str, object]:
        def after(moments: dict[str, float]) -> list[float]:
            return [round(moments[run] - at, 4) for run, (_, at) in self.sent.items() if run in moments]

        return {
            "seconds": seconds,
            "sent": len(self.sent),
            "answered": self.answered(),
            "errors": self.errors,
            "first": after(self.began),
            "last": after(self.ended),
        }


class Load:
    def __init__(self, port: int, token: str, agents: Sequence[str]) -> None:
        self._port, self._token, self._agents = port, token, agents
        self._phase = Phase()
        self._again = False
        self._to_send: asyncio.Queue[str] = asyncio.Queue()
        self._watched = asyncio.Event()

    async def run(self, lines: asyncio.StreamReader) -> None:
        async with asyncio.TaskGroup() as tasks:
            others = [tasks.create_task(self._send()) for _ in range(SENDERS)]
            others.append(tasks.create_task(self._watch()))
            await self._watched.wait()
            while line := await lines.readline():
                asked = json.loads(line)
                print(json.dumps(await self._carry_out(asked["seconds"], asked["rate"], asked["grace"])), flush=True)
            for task in others:
                task.cancel()

    async def _carry_out(self, seconds: float, rate: float | None, grace: float) -> dict[str, object]:
        phase = self._phase = Phase()
        began = time.perf_counter()
        if rate is None:
            self._again = True
            for agent in self._agents:
                self._to_send.put_nowait(agent)
            await asyncio.sleep(seconds)
            self._again = False
        else:
            for number in range(max(round(rate * seconds), 1)):
                await asyncio.sleep(max(began + number / rate - time.perf_counter(), 0))
                self._to_send.put_nowait(self._agents[number % len(self._agents)])
            await asyncio.sleep(max(began + seconds - time.perf_counter(), 0))
        # What was answered by now is the rate; what is under way still counts for the latencies.
        found = {"answered_in_time": phase.answered()}
        for _ in range(round(grace / GRACE_LOOK_SECONDS)):
            if phase.answered() == len(phase.sent) and self._to_send.empty():
                break
            await asyncio.sleep(GRACE_LOOK_SECONDS)
        return phase.as_dict(seconds) | found

    async def _send(self) -> None:
        connection, used_at = Connection(self._port, self._token), 0.0
        while True:
            agent = await self._to_send.get()
            phase, at = self._phase, time.perf_counter()
            if at - used_at > IDLE_SECONDS:
                connection.close()
            used_at = at
            try:
                status, answer = await self._post(connection, agent)
            except Exception as error:
                connection.close()
                phase.errors[type(error).__name__] += 1
                continue
            if status >= 300:
                phase.errors[f"{status} {answer.get('code', '')}"] += 1
                continue
            run = str(answer["run_id"])
            phase.sent[run] = agent, at
            if run in phase.ended:  # its end was seen before the answer to the message
                self._next(agent)

    async def _post(self, connection: Connection, agent: str) -> tuple[int, dict[str, object]]:
        body = b'{"text":"Say something."}'
        head = f"POST /api/v1/agents/{agent}/messages HTTP/1.1\r\n{connection.head}Content-Type: application/json\r\n"
        (await connection.connect()).write(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
        return await connection.answer()

    async def _watch(self) -> None:
        reader, writer = await asyncio.open_connection(HOST, self._port, limit=2**20)
        head = f"Host: {HOST}\r\nAuthorization: Bearer {self._token}\r\n\r\n"
        writer.write(f"GET /agent/events?after=now HTTP/1.1\r\n{head}".encode())
        status = await reader.readuntil(b"\r\n\r\n")
        if b" 200 " not in status.split(b"\r\n")[0]:
            raise RuntimeError(status.decode())
        while line := await reader.readline():
            if line.startswith(b"id: "):
                self._watched.set()
            elif line.startswith(b'data: {"id"') and (b'"type":"status"' in line or b'"type":"end"' in line):
                self._seen(json.loads(line[6:]))
        raise RuntimeError("the stream of events has ended")

    def _seen(self, event: dict[str, Any]) -> None:
        run, now, phase = event["run_id"], time.perf_counter(), self._phase
        if event["type"] == "end":
            phase.ended[run] = now
            if run in phase.sent:
                self._next(phase.sent[run][0])
        elif event["data"].get("status") == "running":
            phase.began.setdefault(run, now)

    def _next(self, agent: str) -> None:
        if self._again:
            self._to_send.put_nowait(agent)


async def main(port: int) -> None:
    reader = asyncio.StreamReader(limit=2**20)
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    given = json.loads(await reader.readline())
    await Load(port, given["token"], given["agents"]).run(reader)


if __name__ == "__main__":
    uvloop.run(main(int(sys.argv[1])))
