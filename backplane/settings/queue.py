"""How many runs may wait and run, and in which order: read by the API and by workers."""

from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, Field, PositiveInt, StringConstraints
from pydantic_settings import NoDecode

from backplane.domain.runs import QUEUE_PATTERN

QUEUES_MAX = 200


def _between_commas(value: Any) -> Any:
    return [name.strip() for name in value.split(",") if name.strip()] if isinstance(value, str) else value


def _not_too_many(names: list[str]) -> list[str]:
    if len(names) > QUEUES_MAX:
        raise ValueError(f"{len(names)} queues; at most {QUEUES_MAX}")
    return list(dict.fromkeys(names))


QueueNames = Annotated[
    list[Annotated[str, StringConstraints(pattern=QUEUE_PATTERN)]],
    NoDecode,
    BeforeValidator(_between_commas),
    AfterValidator(_not_too_many),
]

ResourceName = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9._-]{0,63}$")]


class QueueSettings:
    queues: QueueNames = Field(
        [],
        description="Queues that runs may name while no live worker serves them, with commas between them; the default "
        "one and those that are served need not be named.",
    )
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
