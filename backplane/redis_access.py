"""What the settings say about Redis, as the adapters take it.

This is apart from `resources`, so that a small process that needs nothing but Redis does not load databases and object
stores.
"""

from backplane.redis.client import RedisAccess
from backplane.settings import Settings


def redis_access(settings: Settings) -> RedisAccess:
    """How to be let in, and by which certificates."""
    return RedisAccess(
        username=settings.redis_username,
        password=settings.redis_password.get_secret_value(),
        sentinel_username=settings.redis_sentinel_username,
        sentinel_password=settings.redis_sentinel_password.get_secret_value(),
        tls_ca=settings.redis_tls_ca_file,
        tls_certificate=settings.redis_tls_cert_file,
        tls_key=settings.redis_tls_key_file,
    )


def rq_is_possible(settings: Settings) -> bool:
    """Whether there is a Redis that RQ can use: one server, or one that sentinels name."""
    url = settings.jobs_redis_url.get_secret_value() or settings.redis_url.get_secret_value()
    return "+cluster" not in url.partition("://")[0]


def rest_is_set(settings: Settings) -> bool:
    """Whether the API reaches Redis by REST."""
    return bool(settings.upstash_redis_rest_url.get_secret_value())


def rq_is_reached(settings: Settings) -> bool:
    """Whether the API can put anything into RQ's queue: RQ knows no REST."""
    return not rest_is_set(settings) or bool(settings.jobs_redis_url.get_secret_value())
