"""A blocking Redis client, for a library that does not use asyncio: RQ."""

from typing import Any, cast

from redis import Redis
from redis.backoff import NoBackoff
from redis.maint_notifications import MaintNotificationsConfig
from redis.retry import Retry
from redis.sentinel import Sentinel

from backplane.errors import InvalidInput
from backplane.redis.client import COMMAND_SECONDS, KEEP_ALIVE, RedisAccess
from backplane.redis.servers import LOCATE_SECONDS, target_of

BlockingRedis = Redis


def blocking_redis(url: str, access: RedisAccess) -> BlockingRedis:
    """A client of the server that is named, or of the master that sentinels name; it connects when it is first used.

    Raises InvalidInput for a cluster: what such a library does lies on many nodes.
    """
    target = target_of(url)
    options: dict[str, Any] = {
        **target.options,
        **{name: text for name in ("username", "password") if (text := getattr(access, name))},
        "socket_connect_timeout": COMMAND_SECONDS,
        "retry": Retry(NoBackoff(), 1),
        "maint_notifications_config": MaintNotificationsConfig(enabled=False),
    }
    if path := options.pop("path", None):
        return Redis(unix_socket_path=path, **options)
    options |= {"socket_keepalive": True, "socket_keepalive_options": KEEP_ALIVE}
    if target.encrypted:
        options |= {"ssl": True, **access.tls()}
    match target.kind:
        case "cluster":
            raise InvalidInput(
                "RQ cannot work on a Redis Cluster; name one server, or sentinels, in JOBS_REDIS_URL",
                field="JOBS_REDIS_URL",
            )
        case "sentinel":
            of_sentinels = {name: value for name, value in options.items() if name.startswith("ssl")}
            of_sentinels |= {
                "username": access.sentinel_username or None,
                "password": access.sentinel_password or None,
                "socket_timeout": LOCATE_SECONDS,
                "socket_connect_timeout": LOCATE_SECONDS,
            }
            sentinels = cast(Any, Sentinel)(list(target.hosts), sentinel_kwargs=of_sentinels, **options)
            return cast(BlockingRedis, sentinels.master_for(target.service))
        case _:
            host, port = target.hosts[0]
            return Redis(host=host, port=port, **options)
