"""The event log: publishes a run's events to those who listen, and keeps them until the database has them.

It is not the history, which the database has. An event may reach the listeners and not yet the database, or the other
way round; a watcher that finds a number missing reads both again. Here the events are kept that would be lost with
their writer otherwise. It is bounded (`backplane.logs.room`); where there is no room an event is stored first, and
published then.
"""

from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from enum import IntEnum

from backplane.domain.events import Event
from backplane.logs.room import LogRoom


@dataclass(frozen=True, slots=True)
class Batch:
    """Events of one run, in order, by the worker with this generation. The API, which has no claim, gives the
    generation of the run's row: 0 until the run is first claimed. `user_id` is the run's user; where it is left out and
    the queue does not know the run, its events are not announced to who listens to the user. `stored_id`: the database
    has all events up to this number, so they are published and not kept, and what is kept of them is dropped. Without
    events a batch only drops."""

    run_id: str
    generation: int
    events: Sequence[Event]
    user_id: str = ""
    stored_id: int = 0


class Appended(IntEnum):
    """What became of a batch."""

    REFUSED = 0
    """The run has a newer generation, or events of one are still kept: nothing was published."""
    TAKEN = 1
    STORE_FIRST = 2
    """Events up to `stored_id` were published, later ones not: they cannot be kept, or the queue does not know the run.
    Store them, then append them again."""


@dataclass(frozen=True, slots=True)
class SubscriptionLost:
    """The listener was disconnected for a while, and may have missed events: of this run, of this user's runs and bus,
    or, where both are empty, of everything that it listens to."""

    run_id: str = ""
    user_id: str = ""


@dataclass(frozen=True, slots=True)
class Announced:
    """A run of a user has got events, up to this number."""

    user_id: str
    run_id: str
    last_id: int


@dataclass(frozen=True, slots=True)
class BusAnnounced:
    """A user has new events on the bus (`backplane.bus`)."""

    user_id: str


Received = list[Event] | Announced | BusAnnounced | SubscriptionLost


class Subscription(ABC):
    """One connection for any number of runs and users."""

    @abstractmethod
    async def add(self, run_id: str) -> None:
        """Listen to a run. When this returns, every later event of it will be received."""

    @abstractmethod
    async def remove(self, run_id: str) -> None: ...

    @abstractmethod
    async def add_user(self, user_id: str) -> None:
        """Listen to the announcements of all of a user's runs. When this returns, all later ones will be received."""

    @abstractmethod
    async def remove_user(self, user_id: str) -> None: ...

    @abstractmethod
    async def add_bus(self, user_id: str) -> None:
        """Listen to the announcements of a user's events on the bus. When this returns, all later ones will be
        received."""

    @abstractmethod
    async def remove_bus(self, user_id: str) -> None: ...

    @abstractmethod
    def listen(self) -> AsyncIterator[Received]:
        """Events as they are published: lists of events of one run. Reconnects by itself, and yields a SubscriptionLost
        then."""


class EventLog(ABC):
    """All methods raise Unavailable when Redis does not answer."""

    @abstractmethod
    async def append(self, batches: Sequence[Batch]) -> list[Appended]:
        """Publish events, and keep those that the database does not have.

        A call whose answer was lost can be repeated: an event that is kept is not published again. One that the
        database has may be; listeners pass over numbers that they have seen.
        """

    @abstractmethod
    async def show(self, events: Sequence[Event]) -> None:
        """Publish live events. Only those who are subscribed at this moment receive them."""

    @abstractmethod
    async def after(self, run_id: str, cursor: int, limit: int) -> list[Event]:
        """Up to `limit` of the events that are kept, with an id over `cursor`, in order."""

    @abstractmethod
    async def last_id(self, run_id: str) -> int | None:
        """The highest number kept; None when nothing is: the database has all that was published."""

    @abstractmethod
    async def room(self) -> LogRoom:
        """How much Redis may keep for this process at once, at present."""

    @abstractmethod
    def subscription(self) -> AbstractAsyncContextManager[Subscription]: ...
