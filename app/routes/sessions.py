"""/console/session: a person signs in with a token, and the browser keeps a cookie that its pages cannot read.

The cookie counts for pages of the API's own origin alone (`app.edge.own_origin`). Signing in always makes a new
session, so that nobody can have somebody else work in a session whose value is known already; the one that the browser
had ends.
"""

from fastapi import Request, Response

from app.auth import Authenticator, CurrentSession
from app.context import ContextOf
from app.edge.gate import SCOPE_OWN_ORIGIN
from app.edge.json_body import JsonRoute
from app.edge.operations import Operations
from app.edge.own_origin import cookie_name, cookie_path, session_value
from app.errors import responses
from app.schemas.sessions import SessionView, SignIn
from backplane.domain.users import SESSION_LONGEST, Credential, CredentialKind

router = Operations(route_class=JsonRoute, tags=["sessions"])


@router.post("/console/session", responses=responses(413, 422), openapi_extra={"security": []})
async def sign_in(new: SignIn, request: Request, context: ContextOf, response: Response) -> SessionView:
    """Sign in with a token.

    A cookie of this browser stands for it from now on, for a week, or for twelve hours without use. It ends with the
    token."""
    authenticator: Authenticator = request.app.state.authenticator
    owner = await authenticator.caller_of(Credential.of_token(new.token.get_secret_value()))
    before = session_value(request.scope, request.scope[SCOPE_OWN_ORIGIN])
    caller, value = await context.resources.store.sessions.begin(owner.token_id, ending=before)
    if before is not None:
        authenticator.forget(Credential.of_session(before))
    _set_cookie(request, response, value, int(SESSION_LONGEST.total_seconds()))
    return SessionView.of(caller)


@router.get("/console/session", responses=responses())
async def show_session(caller: CurrentSession, response: Response) -> SessionView:
    """Whose this session is. 401 without one."""
    response.headers["Cache-Control"] = "no-store"
    return SessionView.of(caller)


@router.delete("/console/session", status_code=204, responses=responses())
async def sign_out(caller: CurrentSession, request: Request, context: ContextOf) -> Response:
    """Sign out: this session ends, and its streams with it."""
    await context.resources.store.sessions.end(caller)
    authenticator: Authenticator = request.app.state.authenticator
    authenticator.forget(Credential(CredentialKind.SESSION, caller.digest))
    response = Response(status_code=204)
    _set_cookie(request, response, "", 0)
    return response


def _set_cookie(request: Request, response: Response, value: str, seconds: int) -> None:
    own: str = request.scope[SCOPE_OWN_ORIGIN]
    # A proxy may take TLS away without a word; the browser says what it sees.
    is_https = own.startswith("https:") or request.headers.get("origin", "").startswith("https:")
    path = cookie_path(request.scope)
    response.headers["Cache-Control"] = "no-store"
    response.set_cookie(
        cookie_name(is_https=is_https, path=path),
        value,
        max_age=seconds,
        path=path,
        secure=is_https,
        httponly=True,
        samesite="strict",
    )
