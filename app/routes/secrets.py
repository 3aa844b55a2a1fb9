"""/agent/secrets: named values that steps may use without anybody seeing them."""

from fastapi import Response

from app.auth import CurrentUser
from app.context import ContextOf
from app.edge.json_body import JsonRoute
from app.edge.operations import Operations
from app.errors import responses
from app.schemas.secrets import NewSecret, SecretList, SecretName, SecretView
from backplane.domain.secrets import MAX_SECRETS, Secret, check_hosts, check_tools, check_value
from backplane.sealing import no_key

router = Operations(route_class=JsonRoute, tags=["secrets"])


@router.put("/agent/secrets/{name}", responses=responses(409, 413, 422))
async def put_secret(name: SecretName, new: NewSecret, user: CurrentUser, context: ContextOf) -> SecretView:
    """Keep a secret, in place of one of the same name. Steps use it as `${secrets.NAME}`: in the environment of `shell`
    and `python`, and in headers of what reaches the hosts that it names."""
    tools, hosts = check_tools(new.tools), check_hosts(new.hosts)
    value = check_value(new.value.get_secret_value())
    if context.resources.seal is None:
        raise no_key()
    sealed = context.resources.seal.seal(value, user_id=user.id, name=name)
    kept = await context.resources.store.secrets.put(user.id, Secret(name, sealed, tools, hosts), most=MAX_SECRETS)
    return SecretView.of(kept)


@router.get("/agent/secrets", responses=responses())
async def list_secrets(user: CurrentUser, context: ContextOf) -> SecretList:
    """One's secrets by name, without their values."""
    found = await context.resources.store.secrets.list_of(user.id)
    return SecretList(secrets=[SecretView.of(secret) for secret in found])


@router.delete("/agent/secrets/{name}", status_code=204, responses=responses(404, 422))
async def delete_secret(name: SecretName, user: CurrentUser, context: ContextOf) -> Response:
    """Forget a secret. Steps that are carried out from now on do not get it any more."""
    await context.resources.store.secrets.delete(user.id, name)
    return Response(status_code=204)
