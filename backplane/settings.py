"""Every setting of every process: its name in the environment, its unit, its default, and what it means.

Read once where a process starts, handed on as values. Adapters get the values that they need, never this object.
`agentctl settings` prints the list. A `.env` file in the working directory is read too; the environment wins.
Secrets are `SecretStr`, so that no repr, log or exception shows them.
"""

import re
import shlex
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, PositiveInt, SecretStr, StringConstraints, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

KIB, MIB, GIB = 1024, 1024**2, 1024**3
ENV_FILE = ".env"

ResourceName = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9._-]{0,63}$")]


class Settings(BaseSettings):
    model_config = SettingsConfigDict(env_file=ENV_FILE, env_file_encoding="utf-8-sig", extra="ignore", frozen=True)

    # --- the parts ---
    redis_url: SecretStr = Field(
        SecretStr("redis://127.0.0.1:6379/0"),
        description="Redis: redis://…, unix://…, redis+sentinel://host,host/service, redis+cluster://host,host; "
        "rediss… is with TLS.",
    )
    redis_host: str = Field("", description="Instead of REDIS_URL: host of Redis.")
    redis_port: int = Field(6379, ge=1, le=65535, description="Its port, with REDIS_HOST.")
    redis_db: int = Field(0, ge=0, description="Its database, with REDIS_HOST.")
    redis_username: str = Field("", description="ACL user of Redis; goes before the one in the URL.")
    redis_password: SecretStr = Field(SecretStr(""), description="Password of Redis; goes before the one in the URL.")
    redis_sentinel_username: str = Field("", description="ACL user of the sentinels themselves.")
    redis_sentinel_password: SecretStr = Field(SecretStr(""), description="Password of the sentinels themselves.")
    redis_tls_ca_file: str = Field("", description="PEM file: who signs Redis' certificate; empty: the system says.")
    redis_tls_cert_file: str = Field("", description="PEM file: own certificate, where Redis asks for one.")
    redis_tls_key_file: str = Field("", description="PEM file: the key of REDIS_TLS_CERT_FILE.")
    redis_key_prefix: str = Field(
        "", max_length=100, description="Before every key and channel; a cluster needs a hash tag in it: {agents}:"
    )
    database_url: SecretStr = Field(
        SecretStr("sqlite:///.data/agent.db"), description="The truth: postgresql://… or sqlite:///path (one machine)."
    )
    database_pool_size: int = Field(
        5, ge=1, le=100, description="Database connections a process keeps: so many, and as many for single statements."
    )
    database_pool_overflow: int = Field(
        0, ge=0, le=100, description="Further database connections under load; each is opened anew, which is dear."
    )
    database_prepared_statements: bool | None = Field(
        None,
        description="Let PostgreSQL keep frequent statements prepared; unset: yes, but not behind a proxy (PgBouncer).",
    )
    workspace_dir: Path = Field(
        Path(".data/workspaces"), description="Folder of the workspaces when S3_BUCKET is empty (one machine)."
    )
    workspace_refused_seconds: float = Field(
        60, ge=0, description="How long a store may refuse (no right, no room) before what needs it fails."
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
        25.0, ge=0, description="After SIGTERM: how long a running step may still take."
    )
    worker_crash_limit: int = Field(3, ge=1, description="Lost workers after which a run is failed as the cause.")
    lease_seconds: float = Field(15.0, gt=0, description="How long a claim holds without being renewed.")
    heartbeat_seconds: float = Field(5.0, gt=0, description="How often claims are renewed.")
    reconcile_seconds: float = Field(5.0, gt=0, description="How often runs that Redis forgot are looked for.")

    # --- the queue ---
    queue_max_waiting: int = Field(
        20, ge=0, description="Most runs of one user that wait at once, those that a cap holds back too; 0: no limit."
    )
    queue_max_waiting_all: int = Field(
        5000,
        ge=0,
        description="Most runs that wait at once, of all users, without those that a user's own cap holds back: tiers "
        "free, standard and beta fill 70, 80 and 90 % of it, one user half of it; 0: no limit.",
    )
    queue_max_waiting_free: int = Field(
        0, ge=0, description="The same of all users of the tier free; 0: no limit of its own."
    )
    queue_max_waiting_standard: int = Field(0, ge=0, description="The same of the tier standard.")
    queue_max_waiting_beta: int = Field(0, ge=0, description="The same of the tier beta.")
    queue_max_waiting_admin: int = Field(0, ge=0, description="The same of the tier admin.")
    queue_ageing_seconds: float = Field(
        300.0, ge=0, description="So much waiting weighs as much as one step of priority; 0: waiting does not count."
    )
    user_concurrency_free: int = Field(2, ge=0, description="Runs of one user at once, tier free; 0: any number.")
    user_concurrency_standard: int = Field(10, ge=0, description="Runs of one user at once, tier standard.")
    user_concurrency_beta: int = Field(20, ge=0, description="Runs of one user at once, tier beta.")
    user_concurrency_admin: int = Field(50, ge=0, description="Runs of one user at once, tier admin.")
    tier_concurrency_free: int = Field(0, ge=0, description="Runs of all users of tier free at once; 0: any number.")
    tier_concurrency_standard: int = Field(0, ge=0, description="Runs of all users of the tier standard at once.")
    tier_concurrency_beta: int = Field(0, ge=0, description="Runs of all users of the tier beta at once.")
    tier_concurrency_admin: int = Field(0, ge=0, description="Runs of all users of the tier admin at once.")
    resource_concurrency: dict[ResourceName, PositiveInt] = Field(
        default_factory=dict,
        description='Named resources and how many runs may use each at once, as JSON: {"model-server": 4}.',
    )

    # --- steps and sandbox ---
    sandbox: Literal["local", "container", "kubernetes"] = Field(
        "local", description="Where foreign code runs: bubblewrap, a Docker or Podman container, a Kubernetes Job."
    )
    sandbox_require_isolation: bool = Field(
        False, description="Refuse to run foreign code where the machine cannot isolate it, instead of warning."
    )
    sandbox_memory_bytes: int = Field(1 * GIB, ge=16 * MIB, description="Memory of a sandboxed process, in bytes.")
    sandbox_memory_max_bytes: int = Field(
        4 * GIB, ge=16 * MIB, description="Most memory that a step may ask for, in bytes."
    )
    sandbox_cpus: float = Field(
        1.0, gt=0, le=1024, description="Processors of a container or Job; local sandboxes share the machine's."
    )
    sandbox_cpus_max: float = Field(4.0, gt=0, le=1024, description="Most processors that a step may ask for.")
    sandbox_cpu_seconds: int = Field(600, ge=1, description="CPU time of a sandboxed process, in seconds.")
    sandbox_processes: int = Field(128, ge=1, description="Processes and threads at once in a sandbox.")
    sandbox_file_bytes: int = Field(1 * GIB, ge=1, description="Largest file that sandboxed code may write, in bytes.")
    sandbox_tmp_bytes: int = Field(256 * MIB, ge=1 * MIB, description="Size of /tmp in a container or Job, in bytes.")
    sandbox_folders: list[Path] = Field(
        default_factory=list,
        description='Folders of this machine that local sandboxes show too, read-only, as JSON: ["/opt/browser"].',
    )
    sandbox_image: str = Field(
        "docker.io/library/python:3.12-slim",
        min_length=1,
        description="Image of containers and Jobs: any with sh and python3 (3.8 or newer) in its PATH.",
    )
    sandbox_start_seconds: float = Field(
        120.0, gt=0, description="How long a container or Job may take from its creation to its first process."
    )
    sandbox_container_engine: str = Field(
        "",
        description="Program that runs containers, with its own options: podman --cgroup-manager=cgroupfs; "
        "empty: podman or docker, whichever works.",
    )
    sandbox_container_runtime: str = Field("", description="OCI runtime of containers, e.g. runsc; empty: its own.")
    sandbox_namespace: str = Field(
        "agents-tools", pattern=r"^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$", description="Kubernetes namespace of the Jobs."
    )
    sandbox_reuse: Literal["per_call", "per_run"] = Field(
        "per_call", description="A Job for each command, or one that takes all commands of a run on a worker."
    )
    sandbox_pool_size: int = Field(
        0, ge=0, le=100, description="Jobs that a worker keeps started ahead of their use; each is used by one run."
    )
    sandbox_idle_seconds: float = Field(
        600.0, gt=0, description="A Job that no worker has talked to for so long ends; with a pool, its jobs' age."
    )
    sandbox_job_ttl_seconds: int = Field(300, ge=0, description="How long a finished Job stays to be looked at.")
    sandbox_collect_seconds: float = Field(
        30.0, gt=0, description="How often a controller removes Jobs whose run is over or in newer hands."
    )
    sandbox_runtime_class: str = Field("", description="runtimeClassName of the Jobs, e.g. gvisor or kata.")
    sandbox_node_selector: dict[str, str] = Field(
        default_factory=dict, description='Labels of the nodes that the Jobs may run on, as JSON: {"pool": "tools"}.'
    )
    sandbox_tolerations: list[dict[str, str | int]] = Field(
        default_factory=list, description='Tolerations of the Jobs, as JSON: [{"key": "tools", "operator": "Exists"}].'
    )
    sandbox_pull_secrets: list[str] = Field(
        default_factory=list, description='Secrets in SANDBOX_NAMESPACE to pull SANDBOX_IMAGE with, as JSON: ["name"].'
    )
    session_max_seconds: float = Field(
        14_400.0, gt=0, description="Age at which a controller removes what a session left: folders, containers, Jobs."
    )
    session_check_seconds: float = Field(1800.0, gt=0, description="How often it looks for them.")
    step_timeout_seconds: int = Field(600, ge=1, description="Limit of a step that names none, in seconds.")
    step_output_max_bytes: int = Field(1 * MIB, ge=1, description="Output of a step that is kept as events, in bytes.")
    step_result_max_bytes: int = Field(
        16 * KIB, ge=1, description="Output of a step that is kept in its result, in bytes."
    )
    step_output_file_max_bytes: int = Field(
        64 * MIB, ge=0, description="Output of a step that is kept as a file when log lines were dropped, in bytes."
    )
    step_output_file_seconds: float = Field(
        30.0, gt=0, description="How long that file may take on its way into the workspace."
    )
    run_log_lines_per_second: int = Field(
        1000, ge=0, description="Log lines that a run's steps may tell in a second; 0: any number."
    )
    run_log_lines_burst: int = Field(10_000, ge=1, description="Log lines that they may tell at once, after a silence.")
    log_line_max_bytes: int = Field(8 * KIB, ge=80, description="Longest log line, in bytes; a longer one is split.")

    step_concurrency: int = Field(4, ge=1, le=100, description="Steps of one run that are carried out at once.")

    # --- models ---
    model: str = Field("", description="Default model, SERVER/NAME: ollama/qwen2.5:7b, openai/…; empty: no model.")
    model_fallbacks: list[str] = Field(
        default_factory=list,
        description="Models that are tried in this order when MODEL cannot answer a call that names no model of its "
        'own, as JSON: ["…"].',
    )
    model_servers: dict[str, dict[str, Any]] = Field(
        default_factory=dict,
        description='Further servers by name, as JSON: {"gpu": {"kind": "openai", "url": "http://10.0.0.10:8000/v1", '
        '"slots": 8, "api_key_env": "GPU_KEY"}}; kinds: ollama, openai, anthropic.',
    )
    ollama_host: str = Field("", description="URL of the Ollama server; makes the server `ollama`.")
    ollama_num_parallel: int = Field(4, ge=1, le=1000, description="Calls that Ollama gets at once, of all workers.")
    ollama_max_loaded_models: int = Field(2, ge=1, le=100, description="Models that Ollama is asked for at once.")
    ollama_keep_alive: str = Field("5m", description="How long Ollama keeps a model loaded after a call.")
    openai_base_url: str = Field("https://api.openai.com/v1", description="URL of the server `openai`.")
    openai_api_key: SecretStr = Field(SecretStr(""), description="Its key; makes the server `openai`.")
    anthropic_base_url: str = Field("https://api.anthropic.com", description="URL of the server `anthropic`.")
    anthropic_api_key: SecretStr = Field(SecretStr(""), description="Its key; makes the server `anthropic`.")
    model_timeout_seconds: float = Field(300.0, gt=0, description="Limit of one call of a model, its waiting left out.")
    model_silence_seconds: float = Field(120.0, gt=0, description="A server that is silent for so long is given up.")
    model_retries: int = Field(
        3, ge=0, le=20, description="Further tries of a call at the same server, where one may help."
    )
    model_retry_max_seconds: float = Field(
        60.0, gt=0, description="Longest pause between them, also when it asks for more."
    )
    model_max_output_tokens: int = Field(2048, ge=1, description="Most tokens of an answer, where a call names none.")
    model_max_output_bytes: int = Field(
        1 * MIB, ge=1, description="A server that sends more than this is cut off, in bytes."
    )
    model_max_input_bytes: int = Field(1 * MIB, ge=1, description="Longest prompt of a call, in bytes.")
    model_prices: dict[str, dict[str, float]] = Field(
        default_factory=dict,
        description='Dollars for a million tokens, as JSON: {"openai/NAME": {"input": 1.25, "output": 10}}.',
    )
    model_record_max_bytes: int = Field(
        256 * KIB, ge=0, description="Longest prompt or answer that is kept with a step; longer ones are cut, in bytes."
    )
    model_slot_lease_seconds: float = Field(
        15.0, gt=0, description="A model slot whose worker is silent so long is free."
    )
    model_turn_seconds: float = Field(
        10.0,
        ge=0,
        description="So long a model at a full server goes on before another that waits may take its place.",
    )
    embedding_model: str = Field("", description="Model for embeddings, SERVER/NAME; empty: the built-in one.")
    agent_tokens_per_second: float | None = Field(
        None,
        ge=0,
        description="Generated tokens a second of an agent, at every model server; 0: any. Unset: 10 at servers that "
        "are local (on a loopback address, or declared so), any number at others.",
    )
    agent_tokens_burst: float = Field(
        100.0, gt=0, description="Generated tokens that it may have at once, after a pause."
    )
    user_tokens_per_second: float | None = Field(None, ge=0, description="The same of all agents of a user.")
    user_tokens_burst: float = Field(100.0, gt=0, description="The same of all agents of a user.")

    # --- the planner and the agent ---
    plan_repairs: int = Field(2, ge=0, le=10, description="How often a model may mend a plan that is not valid.")
    plan_replans: int = Field(
        2, ge=0, le=20, description="How often a model may replan the rest of a run after a failure."
    )
    plan_files_listed: int = Field(200, ge=0, description="Files of the workspace that a planner is told of.")
    agent_max_turns: int = Field(20, ge=1, le=1000, description="Most turns of an agent's step, and its default.")
    agent_max_tokens: int = Field(100_000, ge=1, description="Most model tokens of an agent's step, and its default.")
    agent_max_usd: float = Field(1.0, ge=0, description="Most dollars of an agent's step, and its default.")
    agent_max_seconds: float = Field(1800.0, gt=0, description="Most seconds of an agent's step, and its default.")
    agent_result_chars: int = Field(20_000, ge=100, description="Of a tool's output, what a model is shown.")

    # --- approvals and budgets ---
    approval_tools: list[str] = Field(
        default_factory=list, description='Tools whose every step a person approves first, as JSON: ["shell"].'
    )
    approval_risk: Literal["never", "high", "medium"] = Field(
        "never", description="Steps whose tool has this risk or a higher one are approved by a person first."
    )
    approval_usd: float = Field(0.0, ge=0, description="Steps that may cost more dollars than this are too; 0: never.")
    budget_run_tokens: int = Field(
        0, ge=0, le=10**12, description="Model tokens of a run that names no budget; 0: any number."
    )
    budget_run_usd: float = Field(
        0.0, ge=0, le=10**6, description="Dollars of a run that names no budget; 0: any number."
    )
    budget_run_steps: int = Field(0, ge=0, le=10**6, description="Steps of a run that names no budget; 0: any number.")
    budget_run_seconds: int = Field(
        0, ge=0, le=10**9, description="Seconds of a run that names no budget; 0: any number."
    )

    # --- tools ---
    tools_disabled: list[str] = Field(
        default_factory=list, description='Tools that no step may use, as JSON: ["shell"].'
    )
    outside_hosts: list[str] = Field(
        default_factory=list,
        description='Hosts that tools may reach, as JSON: ["example.org", "*.example.com"]; "*": all public ones.',
    )
    outside_allow_private: bool = Field(False, description="Let tools reach private and loopback addresses among them.")
    outside_max_bytes: int = Field(
        10 * MIB, ge=1, description="Largest answer that a tool takes from outside, in bytes."
    )
    outside_timeout_seconds: float = Field(30.0, gt=0, description="Limit of one request to the outside.")
    outside_redirects: int = Field(5, ge=0, le=50, description="Redirects that are followed.")
    secrets_key: SecretStr = Field(
        SecretStr(""),
        description="Seals users' secrets in the database (`agentctl secrets new-key`); empty: none are kept.",
    )
    browser_python: str = Field("", description="Python with Playwright inside the sandbox; empty: python3.")
    browser_executable: str = Field(
        "", description="Chromium inside the sandbox. With neither of the two there is no tool `browser`."
    )
    browser_max_bytes: int = Field(
        100 * MIB, ge=1, description="All that a step's browser may send and receive, in bytes."
    )
    memory_dir: str = Field(
        ".data/memory",
        description="Folder of the agents' memory when QDRANT_URL is empty (one machine); both empty: no memory.",
    )
    qdrant_url: str = Field("", description="URL of a Qdrant server for the agents' memory.")
    qdrant_api_key: SecretStr = Field(SecretStr(""), description="Its key.")
    memory_max_items: int = Field(10_000, ge=1, description="Memories that an agent keeps.")
    memory_max_chars: int = Field(8000, ge=1, description="Longest memory, in characters.")
    memory_timeout_seconds: float = Field(
        10.0, gt=0, description="Limit of one call to Qdrant, or of the wait for others who use the folder."
    )
    artifacts_dir: str = Field(
        ".data/artifacts",
        description="Folder of the agents' artifacts, a Git repository each, shared by the API and all workers; "
        "empty: no artifacts.",
    )
    artifacts_wait_seconds: float = Field(
        10.0, gt=0, description="How long a change of an agent's artifacts waits for others at the same time."
    )
    artifacts_max_bytes: int = Field(500_000, ge=1, description="Quota of an agent's artifacts, in bytes.")
    artifacts_history_max_bytes: int = Field(
        20_000_000, ge=1, description="Quota of an agent's artifacts with all their history, in bytes on disk."
    )
    mcp_servers: dict[str, dict[str, Any]] = Field(
        default_factory=dict,
        description='MCP servers that runs may name, as JSON: {"docs": {"url": "https://…"}} or {"calc": {"command": '
        '["python3", "calc.py"]}}, which runs in the sandbox.',
    )
    mcp_timeout_seconds: float = Field(60.0, gt=0, description="Limit of one call to an MCP server.")

    # --- workspace ---
    workspace_max_bytes: int = Field(4 * GIB, ge=1, description="Quota of a run's workspace, in bytes.")
    workspace_max_files: int = Field(100_000, ge=1, description="Quota of a run's workspace, in files.")
    workspace_max_depth: int = Field(64, ge=1, description="Most folders above a file in a workspace.")

    workspace_step_attributes_max_bytes: int = Field(
        32 * 1024 * 1024,
        ge=1,
        description="Of one step, the times, modes, folders and links that the journal keeps, in bytes; and the "
        "same for the names of the files that it changed.",
    )
    workspace_run_attributes_max_bytes: int = Field(
        64 * 1024 * 1024, ge=1, description="The same of all steps of a run together, in bytes."
    )
    workspace_versions_max_bytes: int = Field(
        4 * GIB, ge=0, description="Of a run's overwritten files, what is kept so that it can be forked; 0: nothing."
    )

    # --- what a user may keep ---
    user_max_runs: int = Field(100_000, ge=0, description="Runs of one user that are kept; 0: any number.")
    user_max_events: int = Field(
        20_000_000, ge=0, description="Events of one user's runs that are kept; 0: any number."
    )
    user_max_bytes: int = Field(
        100 * GIB, ge=0, description="Files of one user's runs that are kept, in bytes; 0: any number."
    )
    usage_seconds: float = Field(
        600.0, gt=0, description="How often a controller counts users' runs and events; files: METRICS_STORAGE_SECONDS."
    )
    transfers_user_max: int = Field(
        16, ge=1, description="Files of one user that an API process sends and takes at once."
    )
    transfers_user_bytes_per_second: int = Field(
        32 * MIB, ge=0, description="Bytes of them in a second, all of one user together; 0: as fast as may be."
    )

    # --- streams ---
    stream_heartbeat_seconds: float = Field(15.0, gt=0, description="Silence after which a stream gets a comment line.")
    stream_send_timeout_seconds: float = Field(
        60.0, gt=0, description="A reader that takes nothing for so long is cut off."
    )
    stream_ring_events: int = Field(2048, ge=16, description="Events of a watched run held in the API process.")
    stream_ring_bytes: int = Field(
        4 * MIB, ge=64 * KIB, description="The same in bytes: whichever of the two is reached first."
    )
    stream_redis_events: int = Field(
        10_000, ge=16, description="Most events of a run that Redis keeps until the database has them."
    )
    stream_redis_run_bytes: int = Field(4 * MIB, ge=64 * KIB, description="The same in bytes.")
    stream_redis_user_bytes: int = Field(16 * MIB, ge=64 * KIB, description="The same of all runs of a user, in bytes.")
    stream_redis_bytes: int = Field(
        0, ge=0, description="The same of all runs, in bytes; 0: a fourth of Redis's maxmemory, 256 MiB if it has none."
    )
    stream_redis_ttl_seconds: int = Field(
        3600, ge=60, description="How much longer than RUN_TIMEOUT_MAX_SECONDS Redis keeps events that nobody stored."
    )
    stream_watchers_max: int = Field(
        10_000,
        ge=1,
        description="Streams that one API process serves at once; free, standard and beta fill 70, 80 and 90 % of it.",
    )
    stream_watchers_user_max: int = Field(
        200, ge=1, description="Of these, at most so many of one user, and never more than half."
    )
    events_gather_seconds: float = Field(
        0.005, ge=0, description="How long events that follow upon others are gathered before they are told."
    )
    feed_positions_max: int = Field(
        20, ge=0, le=1000, description="Queued runs of a user whose position the stream of all the user's runs tells."
    )
    events_flush_seconds: float = Field(
        0.02, ge=0, description="How long events are gathered before the database write."
    )

    # --- webhooks ---
    webhook_allow_private: bool = Field(
        False, description="Let webhooks reach private, loopback and other addresses that are not the Internet's."
    )
    webhook_poll_seconds: float = Field(1.0, gt=0, description="How often a controller looks for webhooks to send.")
    webhook_concurrency: int = Field(16, ge=1, le=1000, description="Webhooks that a controller sends at once.")
    webhook_user_concurrency: int = Field(4, ge=1, description="Of these, at most so many of one user.")
    webhook_timeout_seconds: float = Field(10.0, gt=0, description="Limit of an attempt to send a webhook, in seconds.")
    webhook_lease_seconds: float = Field(
        60.0, gt=0, description="After so long, what a lost controller was sending is sent by another."
    )
    webhook_max_attempts: int = Field(8, ge=1, le=50, description="Attempts to send a webhook before it is given up.")
    webhook_retry_base_seconds: float = Field(
        120.0, gt=0, description="Pause before a webhook's second attempt, in seconds; doubles each time."
    )
    webhook_retry_max_seconds: float = Field(
        14_400.0, gt=0, description="Longest pause between a webhook's attempts, also when it asks for more."
    )
    webhook_secret_overlap_seconds: float = Field(
        86_400.0, ge=0, description="How long a rotated webhook secret still signs beside the new one."
    )

    # --- retention ---
    retention_runs_days: float = Field(
        30, ge=0, description="Runs that ended so many days ago are removed, with all that belongs to them; 0: never."
    )
    retention_created_days: float = Field(
        30, ge=0, description="Runs that were created so many days ago and never started are removed; 0: never."
    )
    retention_events_days: float = Field(
        30, ge=0, description="Events of runs that ended so many days ago are removed; 0: with the run."
    )
    retention_workspace_days: float = Field(
        30, ge=0, description="Files of runs that ended so many days ago are removed; 0: with the run."
    )
    retention_batch: int = Field(200, ge=1, le=10_000, description="Events that are removed in one transaction.")
    retention_pause_seconds: float = Field(0.05, ge=0, description="Pause between two such transactions.")
    retention_seconds: float = Field(300.0, gt=0, description="How often a controller looks for what is past its time.")

    # --- Kubernetes ---
    pod_namespace: str = Field("", description="Namespace of the platform's pods; empty: the one of this pod.")
    pod_deletion_cost: bool = Field(
        False, description="Let controllers tell Kubernetes which worker pods have the fewest runs, to be taken first."
    )
    pod_deletion_cost_selector: str = Field(
        "app.kubernetes.io/name=agent-worker", min_length=1, description="Label selector of the worker pods."
    )
    pod_deletion_cost_seconds: float = Field(5.0, gt=0, description="How often controllers tell so.")

    # --- the API ---
    api_mcp: bool = Field(True, description="Serve the platform itself as an MCP server at /mcp.")
    token_cache_seconds: float = Field(
        5.0, ge=0, description="How long a checked token is trusted, so also how long a revoked one may live."
    )
    api_rate_per_second: float = Field(
        50.0, ge=0, description="Calls a second that a token may make in the long run, over all API processes; 0: any."
    )
    api_rate_burst: int = Field(100, ge=1, description="Calls that a token may make at once, after a pause.")
    api_anonymous_rate_per_second: float = Field(
        20.0,
        ge=0,
        description="Requests a second without a valid token that an address may make in the long run; 0: any number.",
    )
    api_anonymous_rate_burst: int = Field(100, ge=1, description="Such requests that it may make at once.")
    api_anonymous_connections_per_address: int = Field(
        256, ge=0, description="Connections of an address that have shown no valid token; 0: any number."
    )
    api_connections_max: int = Field(
        12_000, ge=8, description="Connections of an API process; a quarter of them at most have shown no valid token."
    )
    api_keep_alive_seconds: float = Field(
        5.0, gt=0, description="Silence between two requests after which the API closes a connection."
    )
    api_trusted_proxies: str = Field(
        "",
        description="Addresses and networks of proxies in front, with commas between them: their X-Forwarded-For names "
        "the client.",
    )
    api_root_path: str = Field(
        "",
        pattern=r"^(/[A-Za-z0-9._~-]+)*$",
        description="Path below which a proxy serves the API, as `/agents`, where the proxy does not take it away; "
        "empty: none, or the proxy takes it away.",
    )
    metrics_host: str = Field("127.0.0.1", description="Address that a worker's or controller's /metrics listens on.")
    metrics_port: int = Field(0, ge=0, le=65535, description="Its port; 0: none. The API has /metrics on its own port.")
    metrics_storage_seconds: float = Field(
        3600.0, ge=0, description="How often a controller measures what all workspaces hold; 0: never."
    )
    api_metrics: bool = Field(
        True, description="Serve /metrics on the API's port, without a token; keep it off public addresses."
    )
    log_format: Literal["console", "json"] = Field("console", description="Format of the process's own log.")
    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="Least severe line logged.")
    single_process: bool = Field(False, description="`agentctl up` runs the API and one worker in one process.")

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
        if self.webhook_lease_seconds < 2 * self.webhook_timeout_seconds:
            raise ValueError(
                f"WEBHOOK_LEASE_SECONDS ({self.webhook_lease_seconds}) must be at least twice WEBHOOK_TIMEOUT_SECONDS "
                f"({self.webhook_timeout_seconds}), or a slow receiver is sent the same webhook twice"
            )
        if self.api_root_path.split("/")[1:2] in (["agent"], ["docs"], ["health"], ["mcp"]):
            raise ValueError("API_ROOT_PATH is a path of the API itself; let the proxy take it away, and set none here")
        if self.sandbox_memory_bytes > self.sandbox_memory_max_bytes:
            raise ValueError("SANDBOX_MEMORY_BYTES must not be over SANDBOX_MEMORY_MAX_BYTES")
        try:
            shlex.split(self.sandbox_container_engine)
        except ValueError as error:
            raise ValueError(f"SANDBOX_CONTAINER_ENGINE cannot be read as a shell would: {error}") from error
        if self.sandbox_cpus > self.sandbox_cpus_max:
            raise ValueError("SANDBOX_CPUS must not be over SANDBOX_CPUS_MAX")
        if self.run_timeout_seconds > self.run_timeout_max_seconds:
            raise ValueError("RUN_TIMEOUT_SECONDS must not be over RUN_TIMEOUT_MAX_SECONDS")
        if self.run_max_retries > self.run_max_retries_limit:
            raise ValueError("RUN_MAX_RETRIES must not be over RUN_MAX_RETRIES_LIMIT")
        has_s3_keys = {bool(key.get_secret_value()) for key in (self.s3_access_key, self.s3_secret_key)}
        if self.s3_bucket and len(has_s3_keys) == 2:
            raise ValueError("S3_ACCESS_KEY and S3_SECRET_KEY go together: set both, or neither")
        return self
