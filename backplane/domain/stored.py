"""How much a user has stored, how much one may have, and what is reserved for files on their way."""

from dataclasses import dataclass, field

from backplane.errors import StorageExceeded


@dataclass(frozen=True, slots=True)
class Stored:
    """Of one user. `bytes` are those of files. None: not counted yet. `rows_at`, `files_at`: when runs and events, and
    files, were counted last, in seconds since the epoch."""

    runs: int | None = None
    events: int | None = None
    bytes: int | None = None
    rows_at: int | None = field(default=None, compare=False)
    files_at: int | None = field(default=None, compare=False)


@dataclass(frozen=True, slots=True)
class StorageQuota:
    """Most that a user may have; 0: any number."""

    runs: int = 0
    events: int = 0
    bytes: int = 0

    def check_new_run(self, stored: Stored) -> None:
        """Whether one more run may be made. Raises StorageExceeded."""
        if self.runs and (stored.runs or 0) >= self.runs:
            raise StorageExceeded(
                f"you have {stored.runs} runs, and {self.runs} may be kept (USER_MAX_RUNS): delete runs that are over, "
                "by DELETE /agent/runs/RUN"
            )
        self.check_start(stored)

    def check_start(self, stored: Stored) -> None:
        """Whether a run may go on to write events and files. Raises StorageExceeded."""
        if self.events and (stored.events or 0) >= self.events:
            raise StorageExceeded(
                f"your runs have {stored.events} events, and {self.events} may be kept (USER_MAX_EVENTS): delete runs "
                "that are over, by DELETE /agent/runs/RUN"
            )
        if self.bytes and (stored.bytes or 0) >= self.bytes:
            raise self.too_many_bytes(stored.bytes or 0, 0)

    def too_many_bytes(self, used: int, more: int) -> StorageExceeded:
        return StorageExceeded(
            f"the files of your runs have {used} bytes, {more} more were to be written, and {self.bytes} may be kept "
            "(USER_MAX_BYTES): delete runs that are over, by DELETE /agent/runs/RUN, or "
            "single files, by DELETE /agent/runs/RUN/files/PATH"
        )


@dataclass(frozen=True, slots=True)
class Reserved:
    """What other uploads of the same run have reserved."""

    files: int = 0
    bytes: int = 0
