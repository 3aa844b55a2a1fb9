"""What a run may be and take: read by the API, which accepts runs, and by workers, which carry them out."""

from typing import Literal

from pydantic import Field

from backplane.domain.sizes import KIB, MIB


class RunSettings:
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
