"""What tests of the browser tool share: pages that a server of the test's own gives, and a step that visits them."""

import http.server
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from backplane.net.egress import OutsidePolicy
from backplane.workspace.quota import Quota
from tests.tool_bench import MIB, Bench, OneSecret, tool_bench
from worker.sandbox.base import Limits, Sandbox
from worker.tools.base import ToolResult
from worker.tools.browser import Browser
from worker.tools.registry import ToolRegistry

CHROMIUM = Path("/usr/lib/chromium/chromium")
QUOTA = Quota(max_bytes=64 * MIB, max_files=1000, max_depth=16)
LIMITS = Limits(120, 2048 * MIB, 2, 60, 512, 256 * MIB, QUOTA.max_bytes, QUOTA.max_files)

FORM = b"""<title>Form</title><h1>Who?</h1><form action="/greet">
<input name="who"><select name="how"><option>loud</option><option>quiet</option></select><button>Go</button></form>
<a href="/report.csv" download>the report</a> <a href="http://evil.test/">elsewhere</a>"""


class Pages(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        path, _, query = self.path.partition("?")
        body, kind = FORM, "text/html"
        if path == "/greet":
            seen = "seen before" if "visited" in (self.headers["Cookie"] or "") else "new"
            body = f"<title>Hello</title><p>{query} {seen}</p>".encode()
        elif path == "/report.csv":
            body, kind = b"a,b\n1,2\n", "text/csv"
        elif path == "/missing":
            self.send_error(404)
            return
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Set-Cookie", "visited=yes")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        pass


@contextmanager
def served_pages() -> Iterator[str]:
    """Host and port."""
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Pages) as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        yield f"127.0.0.1:{server.server_port}"
        server.shutdown()


@dataclass
class Visitor:
    """`python` is one with Playwright inside the sandbox."""

    bench: Bench
    secrets: OneSecret
    python: str

    async def browse(self, site: str, *actions: dict[str, Any], **more: Any) -> tuple[ToolResult, str]:
        policy = OutsidePolicy([site], allow_private=True)
        tool = Browser(policy, python=self.python, executable=str(CHROMIUM), max_bytes=64 * MIB, timeout_seconds=10)
        self.bench.tools = ToolRegistry((tool,))
        result = await self.bench.step("browser", actions=list(actions), **more)
        return result, self.bench.said.decode()


@asynccontextmanager
async def visiting(sandbox: Sandbox, folder: Path, python: str) -> AsyncIterator[Visitor]:
    secrets = OneSecret()
    async with tool_bench(sandbox, folder, secrets, quota=QUOTA, limits=LIMITS) as bench:
        yield Visitor(bench, secrets, python)
