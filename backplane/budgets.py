"""What may be spent, and what was: tokens, dollars, steps and seconds.

Everything is counted in whole numbers; dollars in millionths, so that sums are exact. An account is of one owner (a
run, a user, a tier) and one resource; an owner without one has no limit of that resource.
"""

from dataclasses import dataclass, fields
from enum import StrEnum
from typing import Self

from pydantic import BaseModel, ConfigDict, Field

MICRO = 1_000_000
"""Millionths of a dollar in a dollar."""


class Resource(StrEnum):
    TOKENS = "tokens"
    MICRO_USD = "micro_usd"
    STEPS = "steps"
    SECONDS = "seconds"


@dataclass(frozen=True, slots=True)
class Amounts:
    """So much of each resource. Field names are the values of `Resource`."""

    tokens: int = 0
    micro_usd: int = 0
    steps: int = 0
    seconds: int = 0

    def of(self, resource: Resource) -> int:
        amount: int = getattr(self, resource.value)
        return amount

    def __add__(self, other: Self) -> "Amounts":
        return Amounts(*(getattr(self, field.name) + getattr(other, field.name) for field in fields(self)))


class RunBudget(BaseModel):
    """The most that a run may spend in all, replans and retries included; what is left out has no limit of its own."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    tokens: int | None = Field(None, ge=0, le=10**12, description="Model tokens, prompts and answers.")
    usd: float | None = Field(None, ge=0, le=10**6, description="Dollars for model calls.")
    steps: int | None = Field(None, ge=0, le=10**6, description="Steps carried out, each try counts.")
    seconds: int | None = Field(None, ge=0, le=10**9, description="Seconds of steps and model calls.")

    def limits(self) -> dict[Resource, int]:
        given = {
            Resource.TOKENS: self.tokens,
            Resource.MICRO_USD: None if self.usd is None else round(self.usd * MICRO),
            Resource.STEPS: self.steps,
            Resource.SECONDS: self.seconds,
        }
        return {resource: limit for resource, limit in given.items() if limit is not None}


def account_id(owner: str, resource: Resource) -> str:
    """`owner` is `run:{id}`, `user:{id}` or `tier:{name}`."""
    return f"{owner}:{resource.value}"
