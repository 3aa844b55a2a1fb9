"""Rented GPU machines as values: what a machine is, what it costs, and whether another one may be started.

Money is counted in millionths of a dollar. A part of an hour costs its share, rounded up, so what is booked is never
less than what was used. A day is a day of UTC.
"""

import secrets
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import StrEnum

from backplane.domain.budgets import Resource, in_words

ID_PATTERN = r"^[0-9a-f]{12}$"
AUTOSCALER = "autoscaler"
"""Who wanted a machine that no person has asked for."""
LEDGER_OWNER = "platform:gpus"
"""The owner of the account that machines are charged to."""
RESERVE_SECONDS = 4500.0
"""A machine is stopped while the rest of the day's cap still pays for so long. It is an hour, in which the provider may
not answer, and the time that draining takes. So the cap holds through such an hour."""
LOOKS_WITHIN = timedelta(minutes=5)
"""A controller looks so often at least, also where the provider does not answer."""
USEFUL_SECONDS = 3600.0
"""A machine is started when the day's cap pays for so long in addition: most of the first minutes are its start."""


class MachineState(StrEnum):
    """wanted → creating → starting ⇄ ready → draining → terminating → ended. Each state but `wanted` may end early."""

    WANTED = "wanted"
    CREATING = "creating"  # the provider is asked, or was asked and the answer is not known
    STARTING = "starting"  # the provider has it, and its model server does not answer yet, or not any more
    READY = "ready"
    DRAINING = "draining"  # it gets no new calls
    TERMINATING = "terminating"  # the provider was asked to destroy it, and a complete list still has it
    ENDED = "ended"


PAID = frozenset({*MachineState} - {MachineState.WANTED, MachineState.ENDED})
"""States in which the machine costs money, or may."""
COMING = frozenset({MachineState.WANTED, MachineState.CREATING, MachineState.STARTING})
LEAVING = frozenset({MachineState.DRAINING, MachineState.TERMINATING})


@dataclass(frozen=True, slots=True)
class MachineSpec:
    """`gpu_type` as this platform writes it (RTX_4090); `models`: what its model server is to offer."""

    gpu_type: str
    gpu_count: int
    image: str
    disk_gb: int
    models: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Machine:
    """A row. `attempt`: which try to make it; each has a label of its own. `micro_usd_per_hour`: what is reserved for
    it, and from its first sight on its real price. `contract`: the provider's id. `paid_since`: when the provider was
    asked for it; what it cost until `charged_until` is booked. `stop_reason`: it is to end, and why. `version`: rises
    with each change."""

    id: str
    provider: str
    spec: MachineSpec
    state: MachineState
    wanted_by: str
    created_at: datetime
    state_since: datetime
    attempt: int = 1
    micro_usd_per_hour: int = 0
    offer: str | None = None
    contract: str | None = None
    url: str | None = None
    reason: str = ""
    paid_since: datetime | None = None
    charged_until: datetime | None = None
    charged_micro_usd: int = 0
    health_tries: int = 0
    checked_at: datetime | None = None
    missing_since: datetime | None = None
    ready_at: datetime | None = None
    stop_reason: str | None = None
    ended_at: datetime | None = None
    version: int = 1

    @property
    def is_leaving(self) -> bool:
        return self.stop_reason is not None or self.state in LEAVING


def new_machine_id() -> str:
    return secrets.token_hex(6)


def server_name(machine_id: str) -> str:
    """The model server on a machine."""
    return f"gpu-{machine_id}"


def label_prefix(platform_id: str) -> str:
    """What the labels of all machines of this platform begin with, and of no other platform's."""
    return f"agents:{platform_id[:12]}:"


def label_of(platform_id: str, machine: Machine) -> str:
    return f"{label_prefix(platform_id)}{machine.id}:{machine.attempt}"


def machine_id_of(platform_id: str, label: str) -> str | None:
    """The machine that a label names; None: it is not one of this platform."""
    prefix = label_prefix(platform_id)
    return label.removeprefix(prefix).partition(":")[0] if label.startswith(prefix) else None


def cost(micro_usd_per_hour: int, time: timedelta) -> int:
    """In millionths of a dollar, rounded up."""
    microseconds = time // timedelta(microseconds=1)
    return -(-micro_usd_per_hour * microseconds // 3_600_000_000)


@dataclass(frozen=True, slots=True)
class Charge:
    """What a machine cost between two moments of one hour."""

    since: datetime
    until: datetime
    micro_usd: int


def hour_of(moment: datetime) -> datetime:
    return moment.astimezone(UTC).replace(minute=0, second=0, microsecond=0)


def day_of(moment: datetime) -> datetime:
    return hour_of(moment).replace(hour=0)


def due_charges(machine: Machine, until: datetime) -> list[Charge]:
    """What the machine cost since it was charged last, one charge for each hour of the clock."""
    charges: list[Charge] = []
    if (since := machine.charged_until) is None:
        return charges
    while since < until:
        end = min(hour_of(since) + timedelta(hours=1), until)
        charges.append(Charge(since, end, cost(machine.micro_usd_per_hour, end - since)))
        since = end
    return charges


@dataclass(frozen=True, slots=True)
class SpendingCaps:
    """The most that all machines may cost, in millionths of a dollar."""

    hour: int
    day: int


@dataclass(frozen=True, slots=True)
class Spending:
    """`per_hour`: what all machines that are paid for cost in an hour. `today`: what was spent since midnight.
    `day_left`: until the next midnight."""

    per_hour: int
    today: int
    day_left: timedelta

    def with_more(self, micro_usd_per_hour: int, seconds: float) -> int:
        """What the day will have cost, if all machines and another one go on for so long, or until it is over."""
        time = min(timedelta(seconds=seconds), self.day_left)
        return self.today + cost(self.per_hour + micro_usd_per_hour, time)


def spending_of(machines: Iterable[Machine], charged_today: int, now: datetime) -> Spending:
    """`charged_today`: the charges that began today, of all machines."""
    day, per_hour, today = day_of(now), 0, charged_today
    for machine in machines:
        if machine.state in PAID:
            per_hour += machine.micro_usd_per_hour
            today += sum(charge.micro_usd for charge in due_charges(machine, now) if charge.since >= day)
    return Spending(per_hour, today, day + timedelta(days=1) - now)


def why_not(spending: Spending, price: int, caps: SpendingCaps) -> str | None:
    """Why a machine of this price an hour may not be started; None: it may."""
    if spending.per_hour + price > caps.hour:
        return (
            f"with {_usd(price)} an hour more all machines would cost {_usd(spending.per_hour + price)}, and "
            f"GPU_USD_PER_HOUR_MAX is {_usd(caps.hour)}"
        )
    day = spending.with_more(price, RESERVE_SECONDS + USEFUL_SECONDS)
    if day > caps.day:
        return (
            f"{_usd(spending.today)} were spent today, and GPU_USD_PER_DAY_MAX of {_usd(caps.day)} does not pay for "
            "another machine and the time that stopping all takes"
        )
    return None


def why_stop(spending: Spending, caps: SpendingCaps) -> str | None:
    """Why a machine has to stop now because of the caps; None: none has to."""
    if spending.per_hour > caps.hour:
        return f"all machines cost {_usd(spending.per_hour)} an hour; GPU_USD_PER_HOUR_MAX is {_usd(caps.hour)}"
    if spending.per_hour and spending.with_more(0, RESERVE_SECONDS) > caps.day:
        return f"{_usd(spending.today)} were spent today; GPU_USD_PER_DAY_MAX is {_usd(caps.day)}"
    return None


def _usd(micro_usd: int) -> str:
    return in_words(Resource.MICRO_USD, micro_usd)


@dataclass(frozen=True, slots=True)
class Offer:
    """A machine that can be had. `gpu_ram_gb`: of one GPU."""

    id: str
    gpu_type: str
    gpu_count: int
    micro_usd_per_hour: int
    gpu_ram_gb: float | None = None
    reliability: float | None = None


@dataclass(frozen=True, slots=True)
class RegisteredServer:
    """A model server that came while workers run: a member of `pool`, the server that runs name. `draining`: it gets no
    new calls."""

    name: str
    pool: str
    kind: str
    url: str
    slots: int
    machine_id: str
    provider: str
    models: tuple[str, ...]
    gpu_type: str
    micro_usd_per_hour: int
    draining: bool = False


@dataclass(frozen=True, slots=True)
class FleetStatus:
    """What the controller last saw and decided, for those who ask why. `waiting`: calls, or runs, that the autoscaler
    went by; None: they could not be counted. `error`: why the provider could not be asked; empty: it was."""

    at: datetime
    waiting: int | None
    decision: str
    error: str
    offers: Sequence[Offer] = ()


def decision_in_words(status: FleetStatus | None, now: datetime) -> str:
    """What was decided, or that no controller decides."""
    if status is None:
        return "no controller has looked yet; start one with GPU_PROVIDER"
    if now - status.at > LOOKS_WITHIN:
        return (
            f"no controller has looked since {status.at:%Y-%m-%d %H:%M:%S} UTC, and nothing is started or stopped; "
            f"start one with GPU_PROVIDER. It decided then: {status.decision}"
        )
    return status.decision
