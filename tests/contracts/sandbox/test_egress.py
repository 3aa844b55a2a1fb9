"""The one way out that a command may be given: a socket whose other end a tool answers. Without it there is none."""

import asyncio
from pathlib import Path

from tests.contracts.sandbox.conftest import Run
from tests.contracts.sandbox.sandboxes import MIB, Running
from tests.waiting import wait_until
from worker.sandbox.base import EgressWriter, Sandbox

ASK = """
import os, socket, sys
joined = socket.socket(socket.AF_UNIX)
joined.connect(os.environ["SANDBOX_EGRESS"])
joined.sendall(sys.argv[1].encode() * int(sys.argv[2]))
joined.shutdown(socket.SHUT_WR)
size, last = 0, b""
while True:
    said = joined.recv(65536)
    if not said:
        break
    size, last = size + len(said), said[-1:]
print(size, last.decode())
"""


async def twice(reader: asyncio.StreamReader, writer: EgressWriter) -> None:
    """Says everything again, twice as long."""
    writer.write(2 * await reader.read())
    writer.write_eof()
    await writer.drain()
    writer.close()


async def test_what_a_command_sends_is_answered_by_the_tool(sandbox: Sandbox, run: Run) -> None:
    outcome, said = await run(sandbox, "python3", "-c", ASK, "x", str(3 * MIB), egress=twice)
    assert (outcome.exit_code, said) == (0, f"{6 * MIB} x\n")


async def test_several_connections_are_apart(sandbox: Sandbox, run: Run) -> None:
    script = 'for n in 1 2 3 4 5; do python3 -c "$1" $n 100000 > $n.txt & done; wait; cat 1.txt 2.txt 3.txt 4.txt 5.txt'
    outcome, said = await run(sandbox, "sh", "-c", script, "sh", ASK, egress=twice)
    assert (outcome.exit_code, said) == (0, "".join(f"200000 {number}\n" for number in range(1, 6)))


async def test_a_command_without_a_way_out_has_no_socket(sandbox: Sandbox, run: Run) -> None:
    _, said = await run(sandbox, "sh", "-c", "echo ${SANDBOX_EGRESS-none}")
    assert said == "none\n"


async def test_a_tool_that_hangs_up_is_noticed_by_the_command(sandbox: Sandbox, run: Run) -> None:
    async def hang_up(reader: asyncio.StreamReader, writer: EgressWriter) -> None:
        await reader.read(10)
        writer.close()

    outcome, said = await run(sandbox, "python3", "-c", ASK, "x", "10", egress=hang_up)
    assert (outcome.exit_code, said) == (0, "0 \n")


async def test_connections_end_with_the_command(sandbox: Sandbox, folder: Path) -> None:
    open_now: list[int] = []

    async def hold(reader: asyncio.StreamReader, writer: EgressWriter) -> None:
        open_now.append(1)
        try:
            await reader.read()
            await asyncio.Event().wait()
        finally:
            open_now.pop()
            writer.close()

    running = Running(sandbox, folder, "python3", "-c", ASK, "x", "10", egress=hold)
    await wait_until(lambda: bool(open_now), what="the tool is asked")
    await running.cancel()
    await wait_until(lambda: not open_now, what="its answer is ended")
