"""Which process needs which credential: each process gets those and no others."""

import os
from collections.abc import Mapping

from dotenv import dotenv_values

from backplane.settings import ENV_FILE, Settings

_EVERY_PROCESS = frozenset({"api", "worker", "controller"})
CREDENTIALS: Mapping[str, frozenset[str]] = {
    "redis_url": _EVERY_PROCESS,
    "redis_password": _EVERY_PROCESS,
    "jobs_redis_url": frozenset({"api", "controller"}),
    "redis_sentinel_password": _EVERY_PROCESS,
    "upstash_redis_rest_url": frozenset({"api"}),
    "upstash_redis_rest_token": frozenset({"api"}),
    "database_url": _EVERY_PROCESS,
    "pgbouncer_url": frozenset({"worker"}),
    "s3_access_key": _EVERY_PROCESS,
    "s3_secret_key": _EVERY_PROCESS,
    "secrets_key": frozenset({"api", "worker"}),
    "openai_api_key": frozenset({"worker"}),
    "anthropic_api_key": frozenset({"worker"}),
    "qdrant_api_key": frozenset({"worker"}),
    "vastai_api_key": frozenset({"controller"}),
    "gpu_token_secret": frozenset({"worker", "controller"}),
    "gpu_static_key": frozenset({"worker", "controller"}),
    "gpu_router_token": frozenset({"controller"}),
}
"""Each setting that is a secret, and the processes that need it. Whoever starts a process gives it no others."""


def credentials_withheld_from(process: str, settings: Settings) -> frozenset[str]:
    """The names in the environment of the credentials that a process of this kind (api, worker, controller) does not
    need, also those that MODEL_SERVERS refers to."""
    withheld = {name.upper() for name, processes in CREDENTIALS.items() if process not in processes}
    if process != "worker":
        withheld |= {entry["api_key_env"] for entry in settings.model_servers.values() if entry.get("api_key_env")}
    return frozenset(withheld)


def variables() -> dict[str, str]:
    """The variables in which a credential is looked for that a setting names (`api_key_env`): the environment, and
    before it `.env`, of which the settings keep only what is a setting. A variable of the environment that is empty is
    empty, so that whoever starts a process can withhold what stands in the file."""
    file = dotenv_values(ENV_FILE, encoding="utf-8-sig")
    return {**{name: value for name, value in file.items() if value is not None}, **os.environ}
