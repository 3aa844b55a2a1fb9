"""GET /docs: the API's description as a page, with nothing from elsewhere.

The page is Swagger UI as the package fastapi-swagger carries it, which is read as files and not as code. FastAPI's own
page takes it from a server on the Internet, which would then run in this origin, and starts it by a script inside the
page, which a strict policy forbids.
"""

from importlib.util import find_spec
from pathlib import Path

from fastapi import APIRouter, HTTPException
from starlette.responses import FileResponse, HTMLResponse, Response

from backplane.errors import NotFound

router = APIRouter(include_in_schema=False)

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
STYLE, SCRIPT, START, ICON = "swagger-ui.css", "swagger-ui-bundle.js", "start.js", "favicon-32x32.png"

# All relative, so that it works below a path of a proxy's too.
PAGE = f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Agent platform</title>
<link rel="icon" href="docs/{ICON}">
<link rel="stylesheet" href="docs/{STYLE}">
</head>
<body>
<div id="swagger-ui"></div>
<script src="docs/{SCRIPT}"></script>
<script src="docs/{START}"></script>
</body>
</html>
"""


@router.get("/docs")
async def show_docs() -> Response:
    return HTMLResponse(PAGE, headers={"Content-Security-Policy": POLICY})


@router.get("/docs/{name}")
async def show_part_of_docs(name: str) -> Response:
    if name == START:
        return FileResponse(Path(__file__).parents[1] / "static" / "docs.js", media_type="text/javascript")
    if name not in (STYLE, SCRIPT, ICON):
        raise HTTPException(404)
    package = find_spec("fastapi_swagger")
    if package is None or package.origin is None:
        raise NotFound("there is no page at /docs: install the package fastapi-swagger (requirements.txt)")
    return FileResponse(Path(package.origin).parent / "resources" / name)
