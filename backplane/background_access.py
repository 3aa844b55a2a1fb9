"""What the settings say about RQ's queue.

This is apart from `redis_access`, so that a process that asks for no job does not load RQ.
"""

from dataclasses import replace

from backplane.background.rq import RqQueue
from backplane.redis.blocking import blocking_redis
from backplane.redis.keys import Keys
from backplane.redis_access import redis_access
from backplane.settings import Settings


def connect_background_queue(settings: Settings) -> RqQueue:
    """The caller closes it; it connects when it is first used. Raises InvalidInput for a cluster."""
    own, access = settings.jobs_redis_url.get_secret_value(), redis_access(settings)
    if own:
        # JOBS_REDIS_URL names another server, whose login stands in its URL.
        access = replace(access, username="", password="", sentinel_username="", sentinel_password="")
    url = own or settings.redis_url.get_secret_value()
    return RqQueue(blocking_redis(url, access), Keys(settings.redis_key_prefix).background_queue)
