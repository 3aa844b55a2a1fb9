"""What every process has: its metrics and its log."""

from typing import Literal

from pydantic import Field


class ProcessSettings:
    metrics_host: str = Field("127.0.0.1", description="Address that a worker's or controller's /metrics listens on.")
    metrics_port: int = Field(0, ge=0, le=65535, description="Its port; 0: none. The API has /metrics on its own port.")
    metrics_storage_seconds: float = Field(
        3600.0, ge=0, description="How often a controller measures what all workspaces hold; 0: never."
    )
    log_format: Literal["console", "json"] = Field("console", description="Format of the process's own log.")
    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="Least severe line logged.")
    single_process: bool = Field(False, description="`agentctl up` runs the API and one worker in one process.")
