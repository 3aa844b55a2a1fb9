"""/agent/accounts: who may spend how much, for admins. GET /agent/budget: what is left to oneself."""

import uuid
from typing import Annotated

from fastapi import Query, Request

from app.auth import Admin, CurrentUser
from app.context import ContextOf
from app.edge.audit import note
from app.edge.json_body import JsonRoute
from app.edge.operations import Operations
from app.errors import responses
from app.schemas.accounts import (
    ACCOUNT_PATTERN,
    OWNER_PATTERN,
    AccountDetails,
    AccountId,
    AccountPage,
    AccountView,
    AuditView,
    Booked,
    BudgetView,
    DifferenceView,
    EntryView,
    Movement,
    SpentView,
    Transfer,
)
from app.schemas.fields import Limit
from backplane.domain.budgets import Resource, account_id, amount_of, amount_text, tier_owner, user_owner
from backplane.domain.ledger import Account, Entry
from backplane.store import Ledger

router = Operations(route_class=JsonRoute, tags=["accounts"])


@router.get("/agent/accounts", responses=responses(403, 404, 422))
async def list_accounts(
    _: Admin,
    context: ContextOf,
    owner: Annotated[
        str | None, Query(pattern=OWNER_PATTERN, description="Only of user:NAME (or user:ID), tier:NAME or run:ID.")
    ] = None,
    resource: Annotated[Resource | None, Query(description="Only of this resource.")] = None,
    cursor: Annotated[
        str | None, Query(pattern=ACCOUNT_PATTERN, description="`next_cursor` of the page before.")
    ] = None,
    limit: Limit = 50,
) -> AccountPage:
    """Everybody's accounts, by their ids; closed ones too."""
    ledger = context.resources.store.ledger
    of = await ledger.owner(owner) if owner is not None else None
    found = await ledger.page(owner=of, resource=resource, after=cursor or "", limit=limit + 1)
    listed = found[:limit]
    return AccountPage(accounts=await _views(ledger, listed), next_cursor=listed[-1].id if len(found) > limit else None)


@router.get("/agent/accounts/{account_id}", responses=responses(403, 404, 422))
async def show_account(
    account_id: AccountId,
    _: Admin,
    context: ContextOf,
    cursor: Annotated[
        str | None, Query(pattern=r"^[0-9]{1,18}$", description="`next_cursor` of the page before.")
    ] = None,
    limit: Limit = 50,
) -> AccountDetails:
    """An account, with what changed it."""
    ledger = context.resources.store.ledger
    account = await ledger.get(await _by_id(ledger, account_id))
    before = int(cursor) if cursor is not None else None
    found = await ledger.entries(account.id, before=before, limit=limit + 1)
    listed = found[:limit]
    [view] = await _views(ledger, [account])
    return AccountDetails(
        **view.model_dump(),
        entries=[_entry(entry) for entry in listed],
        next_cursor=str(listed[-1].seq) if len(found) > limit else None,
    )


@router.post("/agent/accounts/{account_id}/top-up", responses=responses(403, 404, 409, 413, 422))
async def top_up_account(
    account_id: AccountId, movement: Movement, _: Admin, request: Request, context: ContextOf
) -> Booked:
    """Put something into an account. An owner without an account gets one, and with it a limit: of what is put in. A
    closed account is opened."""
    ledger = context.resources.store.ledger
    owner, resource = await _owner_and_resource(ledger, account_id)
    note(request.scope, amount=movement.amount, note=movement.note)
    amount = amount_of(resource, movement.amount)
    return _booked(await ledger.deposit(owner, resource, amount, _name(movement), movement.note))


@router.post("/agent/accounts/{account_id}/withdraw", responses=responses(403, 404, 409, 413, 422))
async def withdraw_from_account(
    account_id: AccountId, movement: Movement, _: Admin, request: Request, context: ContextOf
) -> Booked:
    """Take something out of an account that is neither reserved nor spent. 409 when there is less."""
    ledger = context.resources.store.ledger
    account = await _by_id(ledger, account_id)
    note(request.scope, amount=movement.amount, note=movement.note)
    amount = amount_of(_resource(account), movement.amount)
    return _booked(await ledger.withdraw(account, amount, _name(movement), movement.note))


@router.post("/agent/accounts/transfer", responses=responses(403, 404, 409, 413, 422))
async def transfer_between_accounts(transfer: Transfer, _: Admin, request: Request, context: ContextOf) -> Booked:
    """Move something from one account to another of the same resource. Both change, or neither. 409 when the source
    has less."""
    ledger = context.resources.store.ledger
    source, target = await _by_id(ledger, transfer.source), await _by_id(ledger, transfer.target)
    note(request.scope, source=source, target=target, amount=transfer.amount, note=transfer.note)
    amount = amount_of(_resource(source), transfer.amount)
    return _booked(await ledger.transfer(source, target, amount, _name(transfer), transfer.note))


@router.delete("/agent/accounts/{account_id}", responses=responses(403, 404, 422))
async def close_account(account_id: AccountId, _: Admin, context: ContextOf) -> AccountView:
    """Close an account. From now on its owner has no limit of its resource. What is left is withdrawn, the
    entries stay, and what runs have reserved is settled as ever."""
    ledger = context.resources.store.ledger
    [view] = await _views(ledger, [await ledger.close(await _by_id(ledger, account_id))])
    return view


@router.get("/agent/ledger/audit", responses=responses(403))
async def audit_ledger(_: Admin, context: ContextOf) -> AuditView:
    """Add the ledger's entries up, and say where an account is not what they make. It reads the whole ledger."""
    audit = await context.resources.store.ledger.audit()
    differences = [
        DifferenceView(account_id=one.account_id, what=one.what, expected=one.expected, found=one.found)
        for one in audit.differences
    ]
    return AuditView(accounts=audit.accounts, entries=audit.entries, differences=differences)


@router.get("/agent/budget", responses=responses())
async def show_budget(user: CurrentUser, context: ContextOf) -> BudgetView:
    """What is left to you, and what your runs took so far."""
    ledger = context.resources.store.ledger
    accounts = await ledger.of_owners([user_owner(user.id), tier_owner(user.tier)])
    spent = await ledger.spent_by(user.id)
    return BudgetView(
        accounts=await _views(ledger, accounts),
        spent=SpentView(tokens=spent.tokens, usd=amount_text(Resource.MICRO_USD, spent.micro_usd), steps=spent.steps),
    )


def _resource(account: str) -> Resource:
    return Resource(account.rpartition(":")[2])


async def _owner_and_resource(ledger: Ledger, account: str) -> tuple[str, Resource]:
    """Raises NotFound when there is no such owner."""
    return await ledger.owner(account.rpartition(":")[0]), _resource(account)


async def _by_id(ledger: Ledger, account: str) -> str:
    """The account's id, where it may be given by its owner's name."""
    return account_id(*await _owner_and_resource(ledger, account))


def _name(movement: Movement) -> str:
    return movement.transfer_id or str(uuid.uuid4())


def _booked(entries: list[Entry]) -> Booked:
    return Booked(transfer_id=entries[0].transfer_id, entries=[_entry(entry) for entry in entries])


async def _views(ledger: Ledger, accounts: list[Account]) -> list[AccountView]:
    names = await ledger.names({account.owner for account in accounts})
    return [
        AccountView(
            account_id=account.id,
            owner=account.owner,
            owner_name=names.get(account.owner),
            resource=account.resource,
            balance=amount_text(account.resource, account.balance),
            reserved=amount_text(account.resource, account.reserved),
            spent=amount_text(account.resource, account.spent),
            created_at=account.created_at,
            closed_at=account.closed_at,
        )
        for account in accounts
    ]


def _entry(entry: Entry) -> EntryView:
    resource = _resource(entry.account_id)
    return EntryView(
        seq=entry.seq,
        account_id=entry.account_id,
        transfer_id=entry.transfer_id,
        kind=entry.kind,
        balance_change=amount_text(resource, entry.balance_change),
        reserved_change=amount_text(resource, entry.reserved_change),
        spent_change=amount_text(resource, entry.spent_change),
        balance_after=amount_text(resource, entry.balance_after),
        at=entry.at,
        run_id=entry.run_id,
        step_id=entry.step_id,
        note=entry.note,
    )
