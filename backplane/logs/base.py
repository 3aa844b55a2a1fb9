"""The live wire of a run's events: kept for a while, numbered, and told to whoever listens.

Not the history: that is the database's. An event may reach the listeners and not yet the database, or the other way
round; a watcher that finds a number missing reads both again.
"""

from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass

from backplane.events import Event


@dataclass(frozen=True, slots=True)
class Batch:
    """Events of one run, in order, by the holder of this generation. Who holds nothing (the API) gives that of the
    run's row: 0 until it is first taken. `user_id` is the run's user; where it is left out and the queue does not know
    the run, its events are not announced to who listens to the user."""

    run_id: str
    generation: int
    events: Sequence[Event]
    user_id: str = ""


@dataclass(frozen=True, slots=True)
class Interrupted:
    """The listener was cut off for a while: whatever it listened to may have gone on without it."""


@dataclass(frozen=True, slots=True)
class Announced:
    """A run of a user has got events, up to this number."""

    user_id: str
    run_id: str
    last_id: int


class Subscription(ABC):
    """One connection for any number of runs and users."""

    @abstractmethod
    async def add(self, run_id: str) -> None:
        """Listen to a run. When this returns, every later event of it will be heard."""

    @abstractmethod
    async def remove(self, run_id: str) -> None: ...

    @abstractmethod
    async def add_user(self, user_id: str) -> None:
        """Listen to what is announced of all of a user's runs. When this returns, all later ones will be heard."""

    @abstractmethod
    async def remove_user(self, user_id: str) -> None: ...

    @abstractmethod
    def listen(self) -> AsyncIterator[list[Event] | Announced | Interrupted]:
        """Events as they are told: lists of events of one run. Reconnects by itself and says so by Interrupted."""


class EventLog(ABC):
    """All methods raise Unavailable when the wire is down."""

    @abstractmethod
    async def append(self, batches: Sequence[Batch]) -> list[bool]:
        """Keep and tell events. False for a batch whose generation is not the newest that holds the run or has written
        events of it that are still kept: none of it was taken.

        An event whose number is known already is not told again, so a call whose answer was lost can be repeated.
        """

    @abstractmethod
    async def after(self, run_id: str, cursor: int, limit: int) -> list[Event]:
        """Up to `limit` of the events that are still kept, with an id over `cursor`, in order."""

    @abstractmethod
    async def last_id(self, run_id: str) -> int | None:
        """The highest number kept; None when nothing is."""

    @abstractmethod
    def subscription(self) -> AbstractAsyncContextManager[Subscription]: ...
