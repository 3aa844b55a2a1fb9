"""What the worker's own check says of the sandbox on this machine."""

import asyncio
import json
import sys
from collections.abc import Awaitable
from typing import Any

from agentctl.terminal.output import program

SANDBOX_CHECK_SECONDS = 60.0
"""It takes about a second, and many times that on a machine that is busy."""


async def check_sandbox(environment: dict[str, str], seconds: float = SANDBOX_CHECK_SECONDS) -> dict[str, Any] | None:
    """What `python -m worker --check` says of its sandbox: name, isolated, missing, filtered.
    None when it says nothing. Raises TimeoutError when it has not ended within `seconds`."""
    process = await asyncio.create_subprocess_exec(
        *[sys.executable, "-m", "worker", "--check"],
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
        env=environment,
    )
    try:
        async with asyncio.timeout(seconds):
            output, _ = await process.communicate()
        sandbox: dict[str, Any] = json.loads(output)["sandbox"]
        return sandbox
    except (ValueError, KeyError, TypeError):
        return None
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def sandbox_in_words(check: Awaitable[dict[str, Any] | None]) -> str:
    try:
        return _describe_sandbox(await check)
    except TimeoutError:
        return f"unknown: its check took longer than {SANDBOX_CHECK_SECONDS:.0f} s; `{program()} doctor` repeats it"


def _describe_sandbox(sandbox: dict[str, Any] | None) -> str:
    if sandbox is None:
        return f"unknown: its check gave no answer; `{program()} doctor` says why"
    if not sandbox["isolated"]:
        return f"{sandbox['name']}, NOT ISOLATED"
    return f"{sandbox['name']}, isolated" + ("" if sandbox["filtered"] else ", SYSTEM CALLS NOT FILTERED")
