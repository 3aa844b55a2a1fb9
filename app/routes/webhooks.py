"""GET /agent/webhook-secret and its rotation: what a user's webhooks are signed with."""

from fastapi import Request, Response

from app.auth import CurrentUser, check_may_change
from app.context import ContextOf
from app.edge.operations import Operations
from app.errors import responses
from app.schemas.runs import WebhookSecretView
from backplane.domain.webhooks import WebhookSecret
from backplane.settings import fixed

router = Operations(tags=["webhooks"])


@router.get("/agent/webhook-secret", responses=responses())
async def show_webhook_secret(
    user: CurrentUser, request: Request, context: ContextOf, response: Response
) -> WebhookSecretView:
    """The secret that one's webhooks are signed with. After the Standard Webhooks specification. Made when there is
    none yet. Not for a read-only token: whoever has the secret can sign."""
    check_may_change(request.scope)
    return _view(await context.resources.store.webhooks.secret(user.id), response)


@router.post("/agent/webhook-secret/rotate", responses=responses(409, 413))
async def rotate_webhook_secret(user: CurrentUser, context: ContextOf, response: Response) -> WebhookSecretView:
    """Replace the secret that one's webhooks are signed with. The one before signs too for a while, so
    that receivers can get the new one meanwhile."""
    overlap = fixed.WEBHOOK_SECRET_OVERLAP_SECONDS
    return _view(await context.resources.store.webhooks.rotate_secret(user.id, overlap_seconds=overlap), response)


def _view(secret: WebhookSecret, response: Response) -> WebhookSecretView:
    response.headers["Cache-Control"] = "no-store"
    return WebhookSecretView(secret=secret.secret, previous_signs_until=secret.previous_until)
