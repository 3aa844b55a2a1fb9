"""What a controller does and how often: webhooks, retention, Kubernetes, bulk actions and exports."""

from typing import Literal

from pydantic import Field

from backplane.domain.sizes import GIB


class ControllerSettings:
    webhook_allow_private: bool = Field(
        False, description="Let webhooks reach private, loopback and other addresses that are not the Internet's."
    )
    webhook_concurrency: int = Field(
        16,
        ge=1,
        le=1000,
        description="Webhooks that a controller sends at once; a quarter of them at most of one user.",
    )
    webhook_timeout_seconds: float = Field(10.0, gt=0, description="Limit of an attempt to send a webhook, in seconds.")
    webhook_max_attempts: int = Field(8, ge=1, le=50, description="Attempts to send a webhook before it is given up.")
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
    retention_bus_days: float = Field(
        7, ge=0, description="Events on the bus that were stored so many days ago are removed; 0: never."
    )
    pod_namespace: str = Field("", description="Namespace of the platform's pods; empty: the one of this pod.")
    pod_deletion_cost: bool = Field(
        False,
        description="Mark the worker pods with the fewest runs, so that Kubernetes removes those first.",
    )
    pod_deletion_cost_selector: str = Field(
        "app.kubernetes.io/name=agent-worker", min_length=1, description="Label selector of the worker pods."
    )
    agent_launcher: Literal["none", "processes", "kubernetes"] = Field(
        "none",
        description="Who starts processes of pools: `processes`: `python -m controller.pools` on this machine, as "
        "its children; `kubernetes`: the controller sets the replicas of each pool's Deployment; `none`: an operator, "
        "by hand.",
    )
    jobs_user_max: int = Field(5, ge=1, description="Bulk actions and exports of a user that are not over.")
    bulk_max_runs: int = Field(10_000, ge=1, le=100_000, description="Runs of one bulk action.")
    export_max_bytes: int = Field(
        1 * GIB, ge=1, description="What an export may hold before it is compressed, in bytes."
    )
    export_keep_seconds: float = Field(86400.0, gt=0, description="How long an export's archive can be fetched.")
