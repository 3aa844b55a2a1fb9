"""GET /console/…: the console, an application in the browser that speaks to the API as any other client does.

It is served as it was built and committed (`app/static/console`, from the source in `console/`), so nothing but Python
is needed to have it. An address below `/console/` that is no file of the build is a page of the application, which
finds out by itself what to show, so each of them answers with the same document. Its links to scripts and styles are
relative to the address that was asked for: everything works below any path of a proxy without knowing it.

What it does not do: it knows no user and reads no data; signing in is `app.routes.sessions`.
"""

import asyncio
import gzip
from dataclasses import dataclass
from functools import lru_cache
from hashlib import sha256
from pathlib import Path
from urllib.parse import quote

from fastapi import Request
from starlette.responses import Response

from app.edge.operations import Operations
from app.edge.root_path import CAME_AS
from app.routes.docs import is_known
from backplane.errors import NotFound

router = Operations(include_in_schema=False)

BUILT = Path(__file__).parents[1] / "static" / "console"
DOCUMENT = "index.html"
ASSETS = "assets/"
"""Their names have a digest of what is in them, so they never change."""
FOREVER = "public, max-age=31536000, immutable"
ASK = "no-cache"
PAGE_PREFIX = "./"
"""How the build's document begins each link; the way up from the page that was asked for is written in its place."""

POLICY = (
    "default-src 'self'; connect-src 'self'; img-src 'self' data: blob:; style-src 'self'; object-src 'none'; "
    "frame-ancestors 'none'; base-uri 'none'; form-action 'self'"
)
GUARDS = {"Content-Security-Policy": POLICY, "Referrer-Policy": "same-origin"}
"""A page of no referrer at all would send `Origin: null` with what changes something, and a session is taken only from
its own origin."""

_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".svg": "image/svg+xml",
}


@dataclass(frozen=True, slots=True)
class BuiltFile:
    body: bytes
    pressed: bytes
    """The same by gzip."""
    etag: str
    media_type: str


@router.get("/console")
async def lead_to_console(request: Request) -> Response:
    """A relative address, as `app.routes.docs` has it for `/`."""
    path: str = request.scope.get(CAME_AS, "/console")
    return Response(status_code=307, headers={"Location": f"{quote(path.rpartition('/')[2])}/"})


@router.get("/console/{path:path}")
async def show_console(path: str, request: Request) -> Response:
    is_asset = path.startswith(ASSETS)
    if is_asset or path in _names():
        file = await asyncio.to_thread(_read, path)
        return _answer(request, file, FOREVER if is_asset else ASK)
    # A slash that was sent as %2F is a part of a name for the browser.
    depth = path.count("/") - request.scope.get("raw_path", b"").lower().count(b"%2f")
    return _answer(request, await asyncio.to_thread(_document, max(depth, 0)), ASK)


def _answer(request: Request, file: BuiltFile, cache_control: str) -> Response:
    headers = {**GUARDS, "ETag": file.etag, "Cache-Control": cache_control, "Vary": "Accept-Encoding"}
    if is_known(request.headers.get("if-none-match"), file.etag.removeprefix("W/")):
        return Response(status_code=304, headers=headers)
    if takes_gzip(request.headers.get("accept-encoding", "")):
        headers["Content-Encoding"] = "gzip"
        return Response(file.pressed, media_type=file.media_type, headers=headers)
    return Response(file.body, media_type=file.media_type, headers=headers)


def takes_gzip(accept_encoding: str) -> bool:
    """Whether the header names gzip and does not refuse it by `q=0`."""
    for part in accept_encoding.lower().split(","):
        name, _, weight = part.partition(";")
        if name.strip() == "gzip":
            return weight.replace(" ", "") not in ("q=0", "q=0.0", "q=0.00", "q=0.000")
    return False


@lru_cache(maxsize=1)
def _names() -> frozenset[str]:
    """Paths of all files of the build but its document. Nothing that a client names is looked for on the disk."""
    found = (file.relative_to(BUILT).as_posix() for file in BUILT.rglob("*") if file.is_file())
    return frozenset(found) - {DOCUMENT}


@lru_cache(maxsize=256)
def _read(path: str) -> BuiltFile:
    """Raises NotFound for an asset that this build does not have, such as one of an older release."""
    if path not in _names():
        raise NotFound("the console has no such file; load the page again, since the release may be another one now")
    return _built((BUILT / path).read_bytes(), Path(path).suffix)


@lru_cache(maxsize=16)
def _document(depth: int) -> BuiltFile:
    """The document for a page `depth` folders below /console/. Raises NotFound where no build is."""
    try:
        text = (BUILT / DOCUMENT).read_text(encoding="utf-8")
    except FileNotFoundError:
        raise NotFound("this copy of the platform has no console: build it by `make console`") from None
    up = "../" * depth or PAGE_PREFIX
    return _built(text.replace(f'"{PAGE_PREFIX}', f'"{up}').encode(), ".html")


def _built(body: bytes, suffix: str) -> BuiltFile:
    etag = f'W/"{sha256(body).hexdigest()[:32]}"'  # weak: the same for both encodings
    return BuiltFile(body, gzip.compress(body, mtime=0), etag, _TYPES.get(suffix, "application/octet-stream"))
