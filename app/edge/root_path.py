"""ASGI middleware that takes away the path below which a proxy serves the API, so that nothing behind it knows of one.

It is API_ROOT_PATH, or uvicorn's `--root-path`. A path without it stays as it is: the proxy has taken it away, or a
health check asks past the proxy. Answers need no such path either, since all that they link to is relative. So
X-Forwarded-Prefix, which anybody can send, is not read.
"""

from starlette.types import ASGIApp, Receive, Scope, Send

CAME_AS = "agent.path"
"""The key of a request's scope for its path with the proxy's own path before it."""


class RootPath:
    """`root_path`: "" or like "/agents"."""

    def __init__(self, app: ASGIApp, root_path: str) -> None:
        self._app = app
        self._root_path = root_path

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        root_path = self._root_path or scope.get("root_path", "")
        if root_path and scope["type"] == "http":
            scope = {
                **scope,
                CAME_AS: scope["path"],
                "path": _below(scope["path"], root_path.rstrip("/")),
                "root_path": "",
            }
        await self._app(scope, receive, send)


def _below(path: str, root_path: str) -> str:
    return path.removeprefix(root_path) or "/" if f"{path}/".startswith(f"{root_path}/") else path
