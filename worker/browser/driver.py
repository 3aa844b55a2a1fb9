"""The program that drives a browser inside a sandbox; it is passed in as text and needs Playwright there.

    stdin   {"actions": [...], "executable": path or "", "session": path or "", "seconds": n, "text_bytes": n, ...}
    stdout  what each action gave, for people and models; an exit code other than 0 when one failed

It runs next to hostile pages, so it knows nothing that they may not have but the values that it is to type, and it
types those only on pages of the host that they are meant for. The browser reaches the network through the sandbox's one
socket, which leads to the worker's proxy; to everything else there is no way.
"""

from __future__ import annotations

import json
import os
import socket
import sys
import tempfile
import threading
import time
from typing import Any
from urllib.parse import urlsplit

from playwright.sync_api import BrowserContext, Error, Page, sync_playwright

WIDTH, HEIGHT = 1280, 800


class Failed(Exception):
    """An action did not work; the message is for people."""


def main() -> int:
    asked = json.load(sys.stdin)
    # What the browser keeps for itself is not the run's.
    os.environ["HOME"] = tempfile.mkdtemp()
    proxy = f"http://127.0.0.1:{_listen(os.environ['SANDBOX_EGRESS'])}"
    deadline = time.monotonic() + asked["seconds"]
    with sync_playwright() as playwright:
        try:
            browser = playwright.chromium.launch(
                executable_path=asked["executable"] or None,
                # The walls are the sandbox's; a second one inside would need rights that it does not give.
                chromium_sandbox=False,
                proxy={"server": proxy, "bypass": "<-loopback>"},
                args=["--disable-dev-shm-usage", "--disable-gpu", "--disable-quic", "--no-first-run"],
            )
        except Error as error:
            print(f"failed: the browser cannot start: {_shortened(str(error), 2000)}")
            return 2
        state = asked["session"] if asked["session"] and os.path.exists(asked["session"]) else None
        context = browser.new_context(
            viewport={"width": WIDTH, "height": HEIGHT}, accept_downloads=True, storage_state=state
        )
        page = context.new_page()
        try:
            for number, action in enumerate(asked["actions"], 1):
                left = deadline - time.monotonic()
                if left <= 0:
                    raise Failed(f"action {number}: the time is up")
                context.set_default_timeout(min(asked["action_seconds"], left) * 1000)
                _carry_out(number, action, page, context, asked)
            if asked["session"]:
                os.makedirs(os.path.dirname(asked["session"]) or ".", exist_ok=True)
                context.storage_state(path=asked["session"])
        except (Error, Failed, OSError) as error:
            print(f"failed: {_shortened(str(error).splitlines()[0], 500)}")
            return 1
        finally:
            browser.close()
    return 0


def _shortened(text: str, most: int) -> str:
    """With a mark where it was cut, by which redaction knows the beginning of a secret."""
    return text if len(text) <= most else f"{text[:most]}…"


def _carry_out(number: int, action: dict[str, Any], page: Page, context: BrowserContext, asked: dict[str, Any]) -> None:
    kind = action["do"]
    try:
        result = _ACTIONS[kind](action, page, asked)
    except Error as error:
        words = str(error).splitlines()[0]
        raise Failed(f"action {number} ({kind}): {_shortened(words, 400)}") from None
    except Failed as error:
        raise Failed(f"action {number} ({kind}): {error}") from None
    print(f"{number}. {kind}: {result}", flush=True)


def _open(action: dict[str, Any], page: Page, asked: dict[str, Any]) -> str:
    response = page.goto(action["url"], wait_until="domcontentloaded")
    status = response.status if response else "no answer"
    if response and response.status >= 400:
        raise Failed(f"{page.url} answered {response.status}: {_cut(page.inner_text('body'), 300)}")
    return f"{page.url} ({status}) {page.title()!r}"


def _click(action: dict[str, Any], page: Page, asked: dict[str, Any]) -> str:
    page.locator(action["selector"]).first.click()
    page.wait_for_load_state("domcontentloaded")
    return f"{action['selector']}; now at {page.url}"


def _fill(action: dict[str, Any], page: Page, asked: dict[str, Any]) -> str:
    host = action.get("only_host")
    here = urlsplit(page.url)
    if host and ((here.scheme != "https" and not host.startswith("127.")) or here.netloc.lower() != host):
        raise Failed(f"the page is at {here.scheme}://{here.netloc}, and the secret may only be typed at {host}")
    page.locator(action["selector"]).first.fill(action["value"])
    return str(action["selector"])


def _press(action: dict[str, Any], page: Page, asked: dict[str, Any]) -> str:
    page.locator(action["selector"]).first.press(action["key"])
    page.wait_for_load_state("domcontentloaded")
    return f"{action['key']} in {action['selector']}; now at {page.url}"


def _select(action: dict[str, Any], page: Page, asked: dict[str, Any]) -> str:
    page.locator(action["selector"]).first.select_option(action["value"])
    return f"{action['value']!r} in {action['selector']}"


def _wait_for(action: dict[str, Any], page: Page, asked: dict[str, Any]) -> str:
    page.locator(action["selector"]).first.wait_for()
    return str(action["selector"])


def _text(action: dict[str, Any], page: Page, asked: dict[str, Any]) -> str:
    return "\n" + _cut(page.locator(action.get("selector") or "body").first.inner_text(), asked["text_bytes"])


def _links(action: dict[str, Any], page: Page, asked: dict[str, Any]) -> str:
    script = "all => all.slice(0, 500).map(a => [a.innerText.trim().slice(0, 200), a.href.slice(0, 2000)])"
    found = page.locator("a[href]").evaluate_all(script)
    return "\n" + _cut("\n".join(f"{words}  {target}" for words, target in found), asked["text_bytes"])


def _screenshot(action: dict[str, Any], page: Page, asked: dict[str, Any]) -> str:
    path = _ready(action["path"])
    page.screenshot(path=path, full_page=action.get("full_page", False), type="png")
    return f"{path} ({os.path.getsize(path):,} bytes)"


def _download(action: dict[str, Any], page: Page, asked: dict[str, Any]) -> str:
    path = _ready(action["path"])
    with page.expect_download() as waiting:
        page.locator(action["selector"]).first.click()
    waiting.value.save_as(path)
    return f"{path} ({os.path.getsize(path):,} bytes) from {_shortened(waiting.value.url, 500)}"


def _back(action: dict[str, Any], page: Page, asked: dict[str, Any]) -> str:
    page.go_back(wait_until="domcontentloaded")
    return page.url


_ACTIONS = {
    "open": _open,
    "click": _click,
    "fill": _fill,
    "press": _press,
    "select": _select,
    "wait_for": _wait_for,
    "text": _text,
    "links": _links,
    "screenshot": _screenshot,
    "download": _download,
    "back": _back,
}


def _ready(path: str) -> str:
    os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
    return path


def _cut(text: str, max_bytes: int) -> str:
    data = text.encode("utf-8", "replace")
    if len(data) <= max_bytes:
        return text
    left = len(data) - max_bytes
    return data[:max_bytes].decode("utf-8", "ignore") + f"\n… {left:,} more bytes left out"


def _listen(socket_path: str) -> int:
    """A port of the sandbox's own loopback that leads to its socket: browsers know no other kind of proxy."""
    listening = socket.create_server(("127.0.0.1", 0), backlog=128)
    threading.Thread(target=_accept, args=(listening, socket_path), daemon=True).start()
    port: int = listening.getsockname()[1]
    return port


def _accept(listening: socket.socket, socket_path: str) -> None:
    while True:
        ours, _ = listening.accept()
        threading.Thread(target=_lead, args=(ours, socket_path), daemon=True).start()


def _lead(ours: socket.socket, socket_path: str) -> None:
    theirs = socket.socket(socket.AF_UNIX)
    try:
        theirs.connect(socket_path)
    except OSError:
        ours.close()
        return
    back = threading.Thread(target=_move, args=(theirs, ours), daemon=True)
    back.start()
    _move(ours, theirs)
    back.join()
    ours.close()
    theirs.close()


def _move(source: socket.socket, sink: socket.socket) -> None:
    try:
        while True:
            data = source.recv(65536)
            if not data:
                break
            sink.sendall(data)
        sink.shutdown(socket.SHUT_WR)
    except OSError:
        pass


if __name__ == "__main__":
    sys.exit(main())
