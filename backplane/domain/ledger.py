"""Accounts and their entries as values; what they are counted in is in `backplane.domain.budgets`."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from backplane.domain.budgets import Resource


class EntryKind(StrEnum):
    DEPOSIT = "deposit"
    WITHDRAW = "withdraw"
    TRANSFER = "transfer"
    RESERVE = "reserve"
    SETTLE = "settle"
    RELEASE = "release"
    LOST = "lost"  # what a lost worker had reserved


@dataclass(frozen=True, slots=True)
class Account:
    """In units of `resource`. A closed one limits nobody; what its owner spends is not counted any more."""

    id: str
    owner: str
    resource: Resource
    balance: int
    reserved: int
    spent: int
    created_at: datetime
    closed_at: datetime | None


@dataclass(frozen=True, slots=True)
class Entry:
    """One change of one account. `transfer_id`: the movement's name, or the reservation's."""

    seq: int
    account_id: str
    transfer_id: str
    kind: EntryKind
    balance_change: int
    reserved_change: int
    spent_change: int
    balance_after: int
    at: datetime
    run_id: str | None
    step_id: str | None
    note: str


@dataclass(frozen=True, slots=True)
class Difference:
    """Where the books are wrong. `account_id` is `all:{resource}` for a sum over all accounts."""

    account_id: str
    what: str
    expected: int
    found: int


@dataclass(frozen=True, slots=True)
class Audit:
    accounts: int
    entries: int
    differences: Sequence[Difference]
