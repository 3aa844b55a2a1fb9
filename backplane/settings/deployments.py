"""Where deployments run: agents that users bring as images."""

from typing import Literal

from pydantic import Field


class DeploymentSettings:
    deploy_target: Literal["", "kubernetes", "container"] = Field(
        "",
        description="Where deployments run: `kubernetes`: the cluster of the controller's credentials; `container`: "
        "containers on the controller's machine; empty: nobody can deploy.",
    )
    deploy_container_engine: str = Field(
        "docker", min_length=1, description="Program that runs them as containers: docker or podman, with options."
    )
    deploy_bind: str = Field("127.0.0.1", min_length=1, description="Address on which their ports are published.")
    deploy_env_dir: str = Field(
        "", description="Folder with NAMESPACE/NAME.env for each secret that a manifest names, for containers."
    )
    deployments_user_max: int = Field(100, ge=0, le=10_000, description="Deployments of a user.")
    deployments_replicas_user_max: int = Field(
        200,
        ge=0,
        le=100_000,
        description="Replicas of all deployments of a user; of an autoscaled one its maximum.",
    )
