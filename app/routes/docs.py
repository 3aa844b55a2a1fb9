"""GET /docs: the API's description as a page, with nothing from elsewhere; /openapi.json: the same for programs.

The page is Swagger UI as the package fastapi-swagger carries it, which is read as files and not as code. FastAPI's own
page takes it from a server on the Internet, which would then run in this origin, and starts it by a script inside the
page, which a strict policy forbids.

All links are relative, and so is the server in the description. So everything works below any path of a proxy without
knowing it, and no header of a request can change what another client is sent.
"""

import asyncio
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import quote

from fastapi import HTTPException, Request
from starlette.responses import FileResponse, HTMLResponse, Response

from app.edge.operations import Operations
from app.edge.root_path import CAME_AS
from app.kept_answer import KeptAnswer
from app.schemas.description import Description
from backplane import VERSION
from backplane.errors import NotFound

router = Operations(include_in_schema=False)

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
STYLE, SCRIPT, START, ICON = "swagger-ui.css", "swagger-ui-bundle.js", "start.js", "favicon-32x32.png"
KEEP = "public, max-age=3600"
"""For what changes with a release alone. The page names the release in its links, so a new one is fetched at once."""
ASK = "public, no-cache"
"""For what the page and programs must have as it is now: asked for each time, and sent only when it has changed."""

PAGE = f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Agent platform</title>
<link rel="icon" href="docs/{ICON}?{VERSION}">
<link rel="stylesheet" href="docs/{STYLE}?{VERSION}">
</head>
<body>
<div id="swagger-ui"></div>
<script src="docs/{SCRIPT}?{VERSION}"></script>
<script src="docs/{START}?{VERSION}"></script>
</body>
</html>
"""


@router.get("/")
async def lead_to_docs(request: Request) -> Response:
    """A relative address: where the client has come in, by whatever name and path, it goes on. `/agents` without a
    slash at its end is a name in the folder above, so its last part is repeated."""
    path: str = request.scope.get(CAME_AS, "/")
    return Response(status_code=307, headers={"Location": f"{quote(path.rpartition('/')[2])}/docs".removeprefix("/")})


@router.get("/openapi.json")
async def show_description(request: Request) -> Response:
    kept: KeptAnswer[Description] = request.app.state.description
    description = await kept.get()
    headers = {"ETag": description.etag, "Cache-Control": ASK}
    if is_known(request.headers.get("if-none-match"), description.etag):
        return Response(status_code=304, headers=headers)
    return Response(description.body, media_type="application/json", headers=headers)


@router.get("/docs")
async def show_docs() -> Response:
    return HTMLResponse(PAGE, headers={"Content-Security-Policy": POLICY, "Cache-Control": ASK})


@router.get("/docs/{name}")
async def show_part_of_docs(name: str, request: Request) -> Response:
    if name == START:
        file = Path(__file__).parents[1] / "static" / "docs.js"
    elif name in (STYLE, SCRIPT, ICON):
        package = find_spec("fastapi_swagger")
        if package is None or package.origin is None:
            raise NotFound("there is no page at /docs: install the package fastapi-swagger (requirements.txt)")
        file = Path(package.origin).parent / "resources" / name
    else:
        raise HTTPException(404)
    stat = await asyncio.to_thread(file.stat)
    media_type = "text/javascript" if file.suffix == ".js" else None
    answer = FileResponse(file, media_type=media_type, stat_result=stat, headers={"Cache-Control": KEEP})
    if is_known(request.headers.get("if-none-match"), answer.headers["etag"]):
        kept = {name: answer.headers[name] for name in ("etag", "cache-control")}
        return Response(status_code=304, headers=kept)
    return answer


def is_known(if_none_match: str | None, etag: str) -> bool:
    """Whether the client has what it would be sent (RFC 9110, 13.1.2): weak and strong tags are the same here."""
    if if_none_match is None:
        return False
    tags = [tag.strip().removeprefix("W/") for tag in if_none_match.split(",")]
    return "*" in tags or etag in tags
