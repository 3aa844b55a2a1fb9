"""/api/v1/hooks: addresses that others post to. What they post, signed, becomes an event of the bus."""

from datetime import UTC, datetime

from fastapi import Request, Response

from app.auth import CurrentUser
from app.bus.reading import data_of
from app.context import ApiContext, ContextOf
from app.edge.json_body import JsonRoute
from app.edge.operations import Operations
from app.errors import responses
from app.schemas.hooks import HookAddress, HookList, HookName, HookView, MadeHook, NewHook, Received
from backplane.domain.bus import EVENT_MAX_BYTES, cloud_event
from backplane.domain.hooks import (
    MAX_HOOKS,
    NO_SECRET,
    Hook,
    HookKind,
    accept,
    attributes,
    check_hook_type,
    check_secret,
    sealed_name,
)
from backplane.domain.webhooks import new_secret
from backplane.errors import InvalidInput, NotFound, TooLarge, Unauthenticated
from backplane.sealing import no_key

router = Operations(route_class=JsonRoute, tags=["hooks"])


@router.put("/api/v1/hooks/{name}", responses=responses(409, 413, 422))
async def put_hook(name: HookName, new: NewHook, user: CurrentUser, context: ContextOf, response: Response) -> MadeHook:
    """Make an address that others post to, or change the one of this name. A new one gets a secret, which is shown
    once. A hook keeps its address, and its secret unless one is given or `rotate` is set."""
    seal, store = context.resources.seal, context.resources.store.hooks
    if seal is None:
        raise no_key()
    given = new.secret.get_secret_value() if new.secret is not None else None
    if given is not None and new.rotate:
        raise InvalidInput("rotate: send a secret, or rotate, not both", field="rotate")
    type = check_hook_type(new.type if new.type is not None else f"hook.{name}")
    response.headers["Cache-Control"] = "no-store"
    if given is None and not new.rotate:
        try:
            there = await store.get(user.id, name)
        except NotFound:
            pass
        else:
            check_secret(new.kind, seal.open(there.sealed, user_id=user.id, name=sealed_name(name)))
            return MadeHook.made(await store.put(user.id, name, new.kind, type, None, most=MAX_HOOKS), None)
    secret = new_secret() if given is None else check_secret(new.kind, given)
    sealed = seal.seal(secret, user_id=user.id, name=sealed_name(name))
    made = await store.put(user.id, name, new.kind, type, sealed, most=MAX_HOOKS)
    return MadeHook.made(made, secret if given is None else None)


@router.get("/api/v1/hooks", responses=responses())
async def list_hooks(user: CurrentUser, context: ContextOf) -> HookList:
    """Your hooks by name, without their secrets."""
    return HookList(hooks=[HookView.of(hook) for hook in await context.resources.store.hooks.list_of(user.id)])


@router.get("/api/v1/hooks/{name}", responses=responses(404, 422))
async def show_hook(name: HookName, user: CurrentUser, context: ContextOf) -> HookView:
    """A hook, without its secret."""
    return HookView.of(await context.resources.store.hooks.get(user.id, name))


@router.delete("/api/v1/hooks/{name}", status_code=204, responses=responses(404, 422))
async def delete_hook(name: HookName, user: CurrentUser, context: ContextOf) -> Response:
    """Delete a hook. What is posted to its address from now on is not taken. Its events stay."""
    await context.resources.store.hooks.delete(user.id, name)
    return Response(status_code=204)


@router.post(
    "/api/v1/hooks/{name}",
    status_code=202,
    responses=responses(404, 409, 413, 422),
    openapi_extra={
        "security": [],
        "requestBody": {
            "description": "JSON, text, or bytes of any other content type.",
            "required": True,
            "content": {
                "application/json": {"schema": {}, "example": {"ref": "refs/heads/main"}},
            },
        },
    },
)
async def receive_hook(name: HookAddress, request: Request, context: ContextOf) -> Received:
    """Post a message to a hook, by the address that it was given. No token is needed: the message is signed.

    The hook's kind says how: by `Webhook-Id`, `Webhook-Timestamp` and `Webhook-Signature`, or by
    `X-Hub-Signature-256`."""
    body = await _bounded_body(request)
    hook = await context.resources.store.hooks.at(name)
    kind, secret = (HookKind.STANDARD, NO_SECRET) if hook is None else (hook.kind, _secret(context, hook))
    try:
        accepted = accept(kind, secret, request.headers, body, datetime.now(UTC))
    except Unauthenticated:
        if hook is None:
            raise _unknown() from None
        raise
    if hook is None:
        raise _unknown()
    await context.publisher.count(f"hook:{hook.address}", 1)
    content_type = request.headers.get("content-type", "")
    data = {**await data_of(body, content_type)}
    data.pop("datacontenttype", None)
    event = cloud_event(attributes(hook, accepted, content_type, data))
    [published] = await context.publisher.publish(hook.user_id, [event], by="hook")
    return Received(id=published.id, duplicate=not published.is_new)


def _secret(context: ApiContext, hook: Hook) -> str:
    """Raises SecretsNotKept."""
    if context.resources.seal is None:
        raise no_key()
    return context.resources.seal.open(hook.sealed, user_id=hook.user_id, name=sealed_name(hook.name))


async def _bounded_body(request: Request) -> bytes:
    """Read no more of a stranger's body than an event may have. Raises TooLarge."""
    received = bytearray()
    async for chunk in request.stream():
        received += chunk
        if len(received) > EVENT_MAX_BYTES:
            raise TooLarge(f"the message is larger than {EVENT_MAX_BYTES:,} bytes, the limit of an event")
    return bytes(received)


def _unknown() -> NotFound:
    return NotFound("there is no hook at this address")
