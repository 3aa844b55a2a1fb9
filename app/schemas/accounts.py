"""What the API takes and gives of accounts. Amounts are decimal strings in the resource's unit (dollars for
`micro_usd`), so that no client rounds them."""

from datetime import datetime
from typing import Annotated

from pydantic import BaseModel, Field

from app.schemas.fields import NextCursor, StrictRequest, Text
from backplane.domain.budgets import Resource
from backplane.domain.ledger import EntryKind

ACCOUNT_PATTERN = r"^(run|user|tier|platform):[A-Za-z0-9._@+-]{1,200}:(tokens|micro_usd|steps|seconds)$"
OWNER_PATTERN = r"^(run|user|tier|platform):[A-Za-z0-9._@+-]{1,200}$"
EXAMPLE_ACCOUNT = "user:ada:micro_usd"
NOTE_MAX_CHARS = 400

AccountId = Annotated[
    str,
    Field(
        pattern=ACCOUNT_PATTERN,
        examples=[EXAMPLE_ACCOUNT],
        description="OWNER:RESOURCE; the owner is user:NAME (or user:ID), tier:NAME, run:ID or platform:gpus.",
    ),
]
Amount = Annotated[
    str,
    Field(
        pattern=r"^[0-9]{1,16}(\.[0-9]{1,6})?$",
        examples=["12.5"],
        description="A whole number of the resource; for micro_usd dollars, with at most six places. More than 0.",
    ),
]
GivenAmount = Annotated[str, Field(examples=["12.5"], description="In units of the resource; micro_usd in dollars.")]


class Movement(StrictRequest):
    amount: Amount
    transfer_id: str | None = Field(
        None,
        pattern=r"^[A-Za-z0-9._-]{1,64}$",
        description="A name of your choice: asked for again, the movement answers what it did. Made when left out.",
        examples=["invoice-2026-11-0042"],
    )
    note: Text = Field("", max_length=NOTE_MAX_CHARS, description="Kept with the entries.")


class Transfer(Movement):
    source: AccountId
    target: AccountId


class AccountView(BaseModel):
    account_id: str = Field(description="With ids, also where it was asked for by name.")
    owner: str = Field(examples=["user:01936f7e-9f5c-7b3a-8c41-3d5e0f9a2b6c"])
    owner_name: str | None = Field(None, description="Of a user.", examples=["ada"])
    resource: Resource
    balance: GivenAmount
    reserved: GivenAmount
    spent: GivenAmount
    created_at: datetime
    closed_at: datetime | None = Field(None, description="Since when it limits nobody.")


class EntryView(BaseModel):
    seq: int
    account_id: str
    transfer_id: str = Field(description="Name of the movement or of the reservation.")
    kind: EntryKind
    balance_change: GivenAmount
    reserved_change: GivenAmount
    spent_change: GivenAmount
    balance_after: GivenAmount
    at: datetime
    run_id: str | None
    step_id: str | None
    note: str


class AccountPage(BaseModel):
    accounts: list[AccountView]
    next_cursor: NextCursor


class AccountDetails(AccountView):
    entries: list[EntryView] = Field(description="Newest first.")
    next_cursor: str | None = Field(description="Give it as `cursor` for older entries; null on the last page.")


class Booked(BaseModel):
    """What a movement did. Asked for again by its transfer_id, the same answer comes."""

    transfer_id: str
    entries: list[EntryView] = Field(description="Of a transfer: of the source, then of the target.")


class DifferenceView(BaseModel):
    account_id: str = Field(description="`all:RESOURCE` for a sum over all accounts.")
    what: str = Field(examples=["balance"])
    expected: int = Field(description="By the entries; dollars in millionths.")
    found: int


class AuditView(BaseModel):
    accounts: int
    entries: int
    differences: list[DifferenceView] = Field(description="Empty when the books are right.")


class SpentView(BaseModel):
    tokens: int = Field(description="Of all calls of models, prompts and answers.")
    usd: str = Field(examples=["0.42"], description="Dollars for them, as far as the models have prices.")
    steps: int = Field(description="Tries of steps.")


class BudgetView(BaseModel):
    accounts: list[AccountView] = Field(
        description="What limits your runs together: yours and your tier's. A resource without one has no limit."
    )
    spent: SpentView = Field(description="By all your runs this far, whether or not there is a limit.")
