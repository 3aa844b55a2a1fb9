"""What may be spent, and what was: tokens, dollars, steps and seconds.

Everything is counted in whole numbers; dollars in millionths, so that sums are exact. An account is of one owner (a
run, a user, a tier) and one resource; an owner without one has no limit of that resource.
"""

import re
from dataclasses import dataclass, fields
from enum import StrEnum
from typing import Self

from pydantic import BaseModel, ConfigDict, Field

from backplane.errors import InvalidInput

MICRO = 1_000_000
"""Millionths of a dollar in a dollar."""
AMOUNT_MAX = 10**15
"""The most that one movement may bring into an account or take from it, and the most that an account may hold."""


class Resource(StrEnum):
    TOKENS = "tokens"
    MICRO_USD = "micro_usd"
    STEPS = "steps"
    SECONDS = "seconds"


@dataclass(frozen=True, slots=True)
class Amounts:
    """An amount of each resource. The field names are the values of `Resource`."""

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


def run_owner(run_id: str) -> str:
    return f"run:{run_id}"


def user_owner(user_id: str) -> str:
    return f"user:{user_id}"


def tier_owner(tier: str) -> str:
    return f"tier:{tier}"


def amount_text(resource: Resource, amount: int) -> str:
    """As people and the API write it: a whole number, or dollars with at most six places (`12.5`)."""
    if resource is not Resource.MICRO_USD:
        return str(amount)
    whole, millionths = divmod(abs(amount), MICRO)
    text = f"{whole}.{millionths:06}".rstrip("0").rstrip(".")
    return f"-{text}" if amount < 0 else text


def amount_of(resource: Resource, text: str) -> int:
    """What `amount_text` wrote, in units of the resource. Raises InvalidInput unless it is in 1…AMOUNT_MAX."""
    found = re.fullmatch(r"([0-9]{1,16})(?:\.([0-9]{1,6}))?", text, re.ASCII)
    if found is None:
        raise InvalidInput("amount: send digits, for dollars with at most six places: 12.5", field="amount")
    whole, places = found.groups()
    if places is not None and resource is not Resource.MICRO_USD:
        raise InvalidInput(f"amount: {resource} are counted in whole numbers", field="amount")
    amount = (
        int(whole) if resource is not Resource.MICRO_USD else int(whole) * MICRO + int((places or "").ljust(6, "0"))
    )
    if not 0 < amount <= AMOUNT_MAX:
        most = amount_text(resource, AMOUNT_MAX)
        raise InvalidInput(f"amount: it must be more than 0 and at most {most}", field="amount")
    return amount


def in_words(resource: Resource, amount: int) -> str:
    """`120 tokens`, `$0.05`."""
    text = amount_text(resource, amount)
    return f"${text}" if resource is Resource.MICRO_USD else f"{text} {resource}"


@dataclass(frozen=True, slots=True)
class Spender:
    """A running run with its generation, its user and its user's tier."""

    run_id: str
    user_id: str
    tier: str
    generation: int

    @property
    def owners(self) -> tuple[str, str, str]:
        """The owners, in the order in which empty accounts are reported: those whose accounts the user can raise come
        first."""
        return run_owner(self.run_id), user_owner(self.user_id), tier_owner(self.tier)

    def key(self, reservation_id: str) -> str:
        """The reservation's key. Another generation's reservation of the same name is another one, settled as lost."""
        return f"{self.run_id}/{self.generation}/{reservation_id}"
