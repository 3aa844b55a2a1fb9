"""Where foreign code runs and what it may use: read by workers, and by controllers, which clean up behind them."""

from pathlib import Path
from typing import Literal

from pydantic import Field

from backplane.domain.sizes import GIB, MIB


class SandboxSettings:
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
    sandbox_job_ttl_seconds: int = Field(300, ge=0, description="How long a finished Job stays to be looked at.")
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
