"""The budgets of one running run, as the supervisor and the model calls use them.

An amount is reserved in the transaction that writes down the intent, and settled in the one that writes down the
result; so the methods return writes for `RunEvents.record`. Where nobody has an account the writes do nothing, and a
run costs no statement more than without budgets. An account that an administrator makes binds the runs that are taken
from then on.
"""

from backplane.domain.budgets import Amounts, Resource, RunBudget, Spender
from backplane.domain.runs import Run
from backplane.process.retrying import until_available
from backplane.settings import Settings
from backplane.store import RunTransaction, Store
from worker.run.events import Write


def default_budget(settings: Settings) -> RunBudget:
    """The budget of runs that name none."""
    return RunBudget(
        tokens=settings.budget_run_tokens or None,
        usd=settings.budget_run_usd or None,
        steps=settings.budget_run_steps or None,
        seconds=settings.budget_run_seconds or None,
    )


def _nothing(_transaction: RunTransaction) -> None:
    pass


class Budget:
    """The accounts of one running run. `active`: False when nobody has an account."""

    def __init__(self, store: Store, run: Run, tier: str, *, active: bool) -> None:
        self.active = active
        self._store = store
        self._run_id = run.id
        self._tier = tier
        self._owners = Spender(run.id, run.user_id, tier, run.generation).owners

    @classmethod
    async def open(
        cls, store: Store, run: Run, tier: str, defaults: RunBudget, *, has_accounts: bool = True
    ) -> "Budget":
        """Open the accounts of the run's own limits, and settle what an older generation left reserved. `run` as it was
        claimed, `tier` and `has_accounts` as in `Taken`. Waits while the database is away. Raises Superseded."""
        given = RunBudget.model_validate(run.budget) if run.budget is not None else defaults
        limits = given.limits()
        budget = cls(store, run, tier, active=bool(limits) or has_accounts)
        if limits or (has_accounts and run.generation > 1):

            def write(transaction: RunTransaction) -> None:
                transaction.open_budget(tier, limits)
                transaction.settle_lost_budget(tier)

            await until_available(lambda: store.running_runs.write(run.id, run.generation, write))
        return budget

    def reserve(self, reservation_id: str, step_id: str, amounts: Amounts) -> Write:
        """A write that reserves the amounts. It raises BudgetExhausted in the transaction, which then writes nothing.
        `reservation_id` is of this run and this generation; once settled or released, it may be used again."""
        if not self.active:
            return _nothing
        return lambda transaction: transaction.reserve_budget(self._tier, reservation_id, step_id, amounts)

    def settle(self, reservation_id: str, spent: Amounts) -> Write:
        """A write that settles a reservation. `spent` may be more than was reserved, also of resources of which nothing
        was reserved."""
        if not self.active:
            return _nothing
        return lambda transaction: transaction.settle_budget(self._tier, reservation_id, spent)

    def release(self, reservation_id: str) -> Write:
        if not self.active:
            return _nothing
        return lambda transaction: transaction.release_budget(self._tier, reservation_id)

    def settle_lost(self) -> Write:
        """A write that settles what older generations left reserved: tokens and dollars count as spent, steps and
        seconds are given back."""
        if not self.active:
            return _nothing
        return lambda transaction: transaction.settle_lost_budget(self._tier)

    async def left(self, resource: Resource) -> int | None:
        """The least of what run, user and tier have left; None: there is no limit. Waits while the database is away."""
        if not self.active:
            return None
        accounts = await until_available(lambda: self._store.ledger.of_owners(self._owners))
        return min((account.balance for account in accounts if account.resource is resource), default=None)
