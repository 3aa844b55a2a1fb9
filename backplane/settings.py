"""Every setting of every process: its name in the environment, its unit, its default, and what it means.

Read once where a process starts, handed on as values. Adapters get the values that they need, never this object.
`agentctl settings` prints the list. A `.env` file in the working directory is read too; the environment wins.
Secrets are `SecretStr`, so that no repr, log or exception shows them.
"""

from pathlib import Path
from typing import Literal, Self

from pydantic import Field, SecretStr, ValidationError, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

KIB, MIB, GIB = 1024, 1024**2, 1024**3


class Settings(BaseSettings):
    model_config = SettingsConfigDict(env_file=".env", env_file_encoding="utf-8", extra="ignore", frozen=True)

    # --- the parts ---
    redis_url: SecretStr = Field(
        SecretStr("redis://127.0.0.1:6379/0"), description="Redis: redis://, rediss:// or unix://, password inside."
    )
    database_url: SecretStr = Field(
        SecretStr("sqlite:///.data/agent.db"), description="The truth: postgresql://… or sqlite:///path (one machine)."
    )
    database_pool_size: int = Field(5, ge=1, le=100, description="Database connections a process keeps open.")
    database_pool_overflow: int = Field(5, ge=0, le=100, description="Further database connections under load.")
    workspace_dir: Path = Field(
        Path(".data/workspaces"), description="Folder of the workspaces when S3_BUCKET is empty (one machine)."
    )
    s3_bucket: str = Field("", description="Bucket of the workspaces; empty: WORKSPACE_DIR is used.")
    s3_endpoint: str = Field("", description="URL of the S3-compatible server; empty: the region's own.")
    s3_region: str = Field("us-east-1", description="Region that requests are signed for.")
    s3_access_key: SecretStr = Field(SecretStr(""), description="Access key id; empty: from the machine's own role.")
    s3_secret_key: SecretStr = Field(SecretStr(""), description="Secret access key.")
    s3_virtual_host: bool = Field(False, description="Address the bucket as a host name, not as the path's first part.")
    s3_create_bucket: bool = Field(False, description="Make the bucket at start-up when it is missing.")

    # --- runs ---
    prompt_max_chars: int = Field(100_000, ge=1, description="Longest prompt, in characters.")
    metadata_max_bytes: int = Field(16 * KIB, ge=2, description="Largest metadata of a run, in bytes of JSON.")
    request_max_bytes: int = Field(
        4 * MIB, ge=KIB, description="Largest body of an API call other than a file, in bytes."
    )
    run_timeout_seconds: int = Field(
        3600, ge=1, description="Limit of one attempt of a run when it names none, in seconds."
    )
    run_timeout_max_seconds: int = Field(86_400, ge=1, description="Longest limit a run may ask for, in seconds.")
    run_max_retries: int = Field(
        3, ge=0, description="Further attempts after a failure that may pass, when the run names none."
    )
    run_max_retries_limit: int = Field(20, ge=0, description="Most further attempts a run may ask for.")
    retry_base_seconds: float = Field(
        2.0, gt=0, description="Pause before the second attempt, in seconds; doubles each time."
    )
    retry_max_seconds: float = Field(300.0, gt=0, description="Longest pause between attempts, in seconds.")
    estimate_initial_seconds: float = Field(
        120.0, gt=0, description="How long a run is taken to last before any was measured."
    )

    # --- workers ---
    worker_concurrency: int = Field(10, ge=1, le=1000, description="Runs that a worker process holds at once.")
    worker_grace_seconds: float = Field(
        25.0, ge=0, description="After SIGTERM: how long a step in hand may still take."
    )
    worker_crash_limit: int = Field(3, ge=1, description="Lost workers after which a run is failed as the cause.")
    lease_seconds: float = Field(15.0, gt=0, description="How long a claim holds without being renewed.")
    heartbeat_seconds: float = Field(5.0, gt=0, description="How often claims are renewed.")
    reconcile_seconds: float = Field(5.0, gt=0, description="How often runs that Redis forgot are looked for.")

    # --- steps and sandbox ---
    sandbox: Literal["local"] = Field("local", description="Where foreign code runs.")
    sandbox_require_isolation: bool = Field(
        False, description="Refuse to run foreign code where the machine cannot isolate it, instead of warning."
    )
    sandbox_memory_bytes: int = Field(1 * GIB, ge=16 * MIB, description="Memory of a sandboxed process, in bytes.")
    sandbox_cpu_seconds: int = Field(600, ge=1, description="CPU time of a sandboxed process, in seconds.")
    sandbox_processes: int = Field(128, ge=1, description="Processes and threads at once in a sandbox.")
    sandbox_file_bytes: int = Field(1 * GIB, ge=1, description="Largest file that sandboxed code may write, in bytes.")
    step_timeout_seconds: int = Field(600, ge=1, description="Limit of a step that names none, in seconds.")
    step_output_max_bytes: int = Field(1 * MIB, ge=1, description="Output of a step that is kept as events, in bytes.")
    step_result_max_bytes: int = Field(
        16 * KIB, ge=1, description="Output of a step that is kept in its result, in bytes."
    )
    log_line_max_bytes: int = Field(8 * KIB, ge=80, description="Longest log line, in bytes; a longer one is split.")

    # --- workspace ---
    workspace_max_bytes: int = Field(4 * GIB, ge=1, description="Quota of a run's workspace, in bytes.")
    workspace_max_files: int = Field(100_000, ge=1, description="Quota of a run's workspace, in files.")
    workspace_max_depth: int = Field(64, ge=1, description="Most folders above a file in a workspace.")

    # --- streams ---
    stream_heartbeat_seconds: float = Field(15.0, gt=0, description="Silence after which a stream gets a comment line.")
    stream_send_timeout_seconds: float = Field(
        60.0, gt=0, description="A reader that takes nothing for so long is cut off."
    )
    stream_ring_events: int = Field(2048, ge=16, description="Events of a watched run held in the API process.")
    stream_redis_events: int = Field(10_000, ge=16, description="Events of a run kept in its Redis stream, at least.")
    stream_redis_ttl_seconds: int = Field(3600, ge=60, description="How long a run's Redis stream stays after its end.")
    stream_watchers_max: int = Field(10_000, ge=1, description="Streams that one API process serves at once.")
    events_flush_seconds: float = Field(
        0.05, ge=0, description="How long events are gathered before the database write."
    )

    # --- the API ---
    token_cache_seconds: float = Field(
        5.0, ge=0, description="How long a checked token is trusted, so also how long a revoked one may live."
    )
    log_format: Literal["console", "json"] = Field("console", description="Format of the process's own log.")
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        "info", description="Least severe line that is logged."
    )
    single_process: bool = Field(False, description="`agentctl up` runs the API and one worker in one process.")

    @model_validator(mode="after")
    def _fit_together(self) -> Self:
        if self.lease_seconds < 2 * self.heartbeat_seconds:
            raise ValueError(
                f"LEASE_SECONDS ({self.lease_seconds}) must be at least twice HEARTBEAT_SECONDS "
                f"({self.heartbeat_seconds}), or one late heartbeat costs a healthy worker its run"
            )
        if self.run_timeout_seconds > self.run_timeout_max_seconds:
            raise ValueError("RUN_TIMEOUT_SECONDS must not be over RUN_TIMEOUT_MAX_SECONDS")
        if self.run_max_retries > self.run_max_retries_limit:
            raise ValueError("RUN_MAX_RETRIES must not be over RUN_MAX_RETRIES_LIMIT")
        if self.s3_bucket and bool(self.s3_access_key.get_secret_value()) != bool(
            self.s3_secret_key.get_secret_value()
        ):
            raise ValueError("S3_ACCESS_KEY and S3_SECRET_KEY go together: set both, or neither")
        return self


def complaint(error: ValidationError) -> str:
    """What is wrong with the environment, a line each, by the names that stand there. Values are not shown."""
    lines = []
    for fault in error.errors(include_url=False, include_input=False, include_context=False):
        name = ".".join(str(part) for part in fault["loc"]).upper() or "settings"
        lines.append(f"{name}: {fault['msg'].removeprefix('Value error, ')}")
    return "\n".join(["the settings cannot be used:", *lines])
