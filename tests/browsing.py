"""What tests of the browser tool share: pages that a server of the test's own gives, and a step that visits them."""

import http.server
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

from backplane.egress import OutsidePolicy
from backplane.plans import SubStep
from backplane.workspace.local import LocalWorkspaceStore
from backplane.workspace.quota import Quota
from worker.checkout import Checkout
from worker.sandbox.base import Call, Limits, Sandbox
from worker.tools.base import StepReport, ToolContext, ToolResult
from worker.tools.browser import Browser
from worker.tools.registry import ToolRegistry

CHROMIUM = Path("/usr/lib/chromium/chromium")
MIB = 1024 * 1024
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
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"127.0.0.1:{server.server_port}"
        server.shutdown()


class NoSubSteps:
    async def run(self, step: SubStep) -> StepReport:
        raise AssertionError("no tool here has steps below it")


class OneSecret:
    """`${secrets.WHO}`, noting for whom it was opened."""

    def __init__(self) -> None:
        self.hosts: list[str | None] = []

    async def fill(self, text: str, *, host: str | None = None) -> str:
        self.hosts.append(host)
        return text.replace("${secrets.WHO}", "opened")


class Bench:
    def __init__(
        self, context: ToolContext, secrets: OneSecret, said: bytearray, notices: list[str], python: str
    ) -> None:
        self.python = python
        self.context = context
        self.secrets = secrets
        self.said = said
        self.notices = notices

    async def browse(self, site: str, *actions: dict[str, Any], **more: Any) -> tuple[ToolResult, str]:
        self.said.clear()
        policy = OutsidePolicy([site], allow_private=True)
        tool = Browser(policy, python=self.python, executable=str(CHROMIUM), max_bytes=64 * MIB, timeout_seconds=10)
        arguments = {"actions": list(actions), **more}
        found, valid = ToolRegistry((tool,)).resolve("browser", arguments, field="plan.steps.0")
        result = await found.run(valid, self.context)
        return result, self.said.decode()


@asynccontextmanager
async def visiting(sandbox: Sandbox, folder: Path, python: str) -> AsyncIterator[Bench]:
    """`python` is one with Playwright inside the sandbox."""
    store = LocalWorkspaceStore(folder / "store")
    await store.prepare()
    workspace = store.workspace("user", "run")
    checkout = Checkout(workspace, QUOTA, folder / "checkout")
    said, notices, secrets = bytearray(), list[str](), OneSecret()

    async def about_to_change() -> None:
        pass

    context = ToolContext(
        call=Call("user", "run", "step", 1, 1), workspace=workspace, checkout=checkout, sandbox=sandbox, quota=QUOTA,
        limits=LIMITS, output=said.extend, notice=notices.append, about_to_change=about_to_change, agent="default",
        models=None, sub_steps=NoSubSteps(), secrets=secrets, answer=None,
    )  # fmt: skip
    yield Bench(context, secrets, said, notices, python)
    await checkout.discard()
