"""Every setting of every process: its name in the environment, its unit, its default, and what it means.

Read once where a process starts, handed on as values. Adapters get the values that they need, never this object. The
settings stand in groups, by who reads them: one file and one class a group. `Settings` has all of them, and checks
those that have to fit together. `agentctl settings` prints the list. A `.env` file in the working directory is read
too; the environment wins. Secrets are `SecretStr`, so that no repr, log or exception shows them.
"""

import re
import shlex
from pathlib import Path
from typing import Any, Self

from pydantic import model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from backplane.domain.sizes import GIB, KIB, MIB
from backplane.settings.api import ApiSettings
from backplane.settings.controller import ControllerSettings
from backplane.settings.deployments import DeploymentSettings
from backplane.settings.gpus import GpuSettings
from backplane.settings.models import ModelSettings
from backplane.settings.process import ProcessSettings
from backplane.settings.queue import QueueSettings
from backplane.settings.redis import RedisSettings
from backplane.settings.runs import RunSettings
from backplane.settings.sandbox import SandboxSettings
from backplane.settings.services import ServiceSettings
from backplane.settings.storage import StorageSettings
from backplane.settings.streams import StreamSettings
from backplane.settings.tools import ToolSettings
from backplane.settings.worker import WorkerSettings

__all__ = ["ENV_FILE", "GIB", "KIB", "MIB", "Settings"]

ENV_FILE = ".env"


class Settings(
    ProcessSettings,
    ApiSettings,
    ServiceSettings,
    DeploymentSettings,
    GpuSettings,
    ControllerSettings,
    StreamSettings,
    ToolSettings,
    ModelSettings,
    SandboxSettings,
    QueueSettings,
    WorkerSettings,
    RunSettings,
    StorageSettings,
    RedisSettings,
    BaseSettings,
):
    """The groups stand in the reverse of the order in which `agentctl settings` prints them: pydantic takes the fields
    of the last one first."""

    model_config = SettingsConfigDict(env_file=ENV_FILE, env_file_encoding="utf-8-sig", extra="ignore", frozen=True)

    @model_validator(mode="before")
    @classmethod
    def _redis_url_of_host(cls, values: dict[str, Any]) -> dict[str, Any]:
        port = str(values.get("redis_port") or "")
        if port.startswith("tcp://"):
            # Kubernetes says so to every pod beside a service that is named redis.
            values = {name: value for name, value in values.items() if name != "redis_port"}
            port = ""
        if (host := values.get("redis_host")) and not values.get("redis_url"):
            host = f"[{host}]" if ":" in host else host
            url = f"redis://{host}:{port or 6379}/{values.get('redis_db') or 0}"
            values = values | {"redis_url": url}
        return values

    @model_validator(mode="after")
    def _redis_fits_together(self) -> Self:
        self.check_rest()
        scheme = self.redis_url.get_secret_value().partition("://")[0]
        tags = re.findall(r"\{([^{}]+)\}", self.redis_key_prefix)
        if scheme.endswith("+cluster") and (len(tags) != 1 or self.redis_key_prefix.count("{") != 1):
            raise ValueError(
                "REDIS_KEY_PREFIX must hold one hash tag on a Redis Cluster, so that all keys lie on one node; "
                "set REDIS_KEY_PREFIX={agents}:"
            )
        for name in ("REDIS_TLS_CA_FILE", "REDIS_TLS_CERT_FILE", "REDIS_TLS_KEY_FILE"):
            file: str = getattr(self, name.lower())
            if file and not scheme.startswith("rediss"):
                raise ValueError(f"{name} is set, but REDIS_URL is without TLS; let it begin with rediss")
            if file and not Path(file).is_file():
                raise ValueError(f"{name} names no file that can be read; mount it, or set another path")
        if bool(self.redis_tls_cert_file) != bool(self.redis_tls_key_file):
            raise ValueError("REDIS_TLS_CERT_FILE and REDIS_TLS_KEY_FILE go together: set both, or neither")
        return self

    @model_validator(mode="after")
    def _fit_together(self) -> Self:
        if self.lease_seconds < 2 * self.heartbeat_seconds:
            raise ValueError(
                f"LEASE_SECONDS ({self.lease_seconds}) must be at least twice HEARTBEAT_SECONDS "
                f"({self.heartbeat_seconds}), or one late heartbeat costs a healthy worker its run"
            )
        if self.api_root_path.split("/")[1:2] in (["agent"], ["console"], ["docs"], ["health"], ["mcp"]):
            raise ValueError("API_ROOT_PATH is a path of the API itself; let the proxy take it away, and set none here")
        if self.sandbox_memory_bytes > self.sandbox_memory_max_bytes:
            raise ValueError("SANDBOX_MEMORY_BYTES must not be over SANDBOX_MEMORY_MAX_BYTES")
        for name in ("SANDBOX_CONTAINER_ENGINE", "SERVICES_CONTAINER_ENGINE", "DEPLOY_CONTAINER_ENGINE"):
            try:
                shlex.split(getattr(self, name.lower()))
            except ValueError as error:
                raise ValueError(f"{name} cannot be read as a shell would: {error}") from error
        if self.sandbox_cpus > self.sandbox_cpus_max:
            raise ValueError("SANDBOX_CPUS must not be over SANDBOX_CPUS_MAX")
        if self.run_timeout_seconds > self.run_timeout_max_seconds:
            raise ValueError("RUN_TIMEOUT_SECONDS must not be over RUN_TIMEOUT_MAX_SECONDS")
        if self.run_max_retries > self.run_max_retries_limit:
            raise ValueError("RUN_MAX_RETRIES must not be over RUN_MAX_RETRIES_LIMIT")
        self._gpus_fit_together()
        has_s3_keys = {bool(key.get_secret_value()) for key in (self.s3_access_key, self.s3_secret_key)}
        if self.s3_bucket and len(has_s3_keys) == 2:
            raise ValueError("S3_ACCESS_KEY and S3_SECRET_KEY go together: set both, or neither")
        return self

    def _gpus_fit_together(self) -> None:
        if not self.gpu_provider:
            return
        if self.gpu_min_machines > self.gpu_max_machines:
            raise ValueError("GPU_MIN_MACHINES must not be over GPU_MAX_MACHINES")
        if self.gpu_scale_in_below > self.gpu_scale_out_above:
            raise ValueError("GPU_SCALE_IN_BELOW must not be over GPU_SCALE_OUT_ABOVE")
        if self.gpu_model_server in self.model_servers:
            raise ValueError("GPU_MODEL_SERVER is a server of MODEL_SERVERS; give one of them another name")
        if self.gpu_provider == "static" and not self.gpu_static_machines:
            raise ValueError("GPU_PROVIDER is static; name the machines in GPU_STATIC_MACHINES")
