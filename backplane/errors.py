"""Every error that one package raises for another, in one small tree.

    PlatformError
    ├── Refused             asked for something that cannot be; asking again gives the same answer
    │   ├── InvalidInput        a value is outside what is accepted; `field` names it
    │   │   ├── InvalidPlan         a plan that cannot be carried out
    │   │   ├── InvalidPath         a file name that the workspace cannot hold
    │   │   └── PromptNotUnderstood no planner can turn the prompt into a plan
    │   ├── Unauthenticated     no token, or one that is not known
    │   ├── Forbidden           the tier does not allow it
    │   │   ├── ReadOnly            the token was made to look only
    │   │   └── ForeignOrigin       a page of another origin asked, with the cookie of a session
    │   ├── NotFound            it does not exist, or belongs to someone else
    │   ├── BudgetExhausted     what it would cost is more than is left
    │   ├── Conflict            it exists, in a state that does not allow this
    │   └── TooLarge            over a limit; the message names the limit and its setting
    ├── Unavailable         a part of the platform does not answer; the same call may succeed later
    │   └── QueueFull           as many runs wait as may; there is room again after `retry_after` seconds
    ├── PartRefuses         a part answers, and has refused for too long; only an operator can mend that
    ├── RateLimited         called too often; the same call is taken after `retry_after` seconds
    │   ├── TooManyStreams      as many streams of the user are open as may be
    │   ├── TooManyTransfers    as many files of the user are on their way as may be
    │   └── TooManyJobs         as many bulk actions and exports of the user are not over as may be
    ├── ModelError          a model gave no answer that can be used (`worker.llm.base` has its kinds)
    └── Superseded          another worker has the run now; whoever sees this stops writing

The tree says what may be tried again; `app.errors` says which HTTP status that is. `code` is stable: clients match on
it. Messages are for people, say what to do next, and never contain a secret.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import ClassVar, Self

FAULTS_SHOWN = 100
"""The most faults that are reported of one input."""


FIELD_CHARS = 200
"""The longest dotted path of a value that is shown, in characters: names in it may be of any length, and a person reads
only so much."""


def dotted(field: str, place: Iterable[str | int]) -> str:
    """The path of a value below `field`. Each name is cut at FIELD_CHARS: a long one may stand in every fault."""
    return ".".join([field, *(str(part)[:FIELD_CHARS] for part in place)])


def printable(text: str) -> str:
    """The text with each lone surrogate, which no encoding takes, as its escape: `\\ud800`."""
    return text if text.isascii() else text.encode("utf-8", "backslashreplace").decode()


class PlatformError(Exception):
    """Root of the tree. `code` is the stable name; `retryable` says whether the same call may succeed later."""

    code: ClassVar[str] = "internal_error"
    retryable: ClassVar[bool] = False

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message


class Refused(PlatformError):
    code = "refused"


@dataclass(frozen=True, slots=True)
class Fault:
    """One thing that is wrong with an input. `message` is a whole sentence; `line` counts from 1, in texts."""

    field: str | None
    message: str
    line: int | None = None


class InvalidInput(Refused):
    """`field` is the dotted path of the value at fault, e.g. `plan.steps.3.arguments.path`. `faults` are all that were
    found, at most FAULTS_SHOWN; the first of them is the error's own."""

    code = "invalid_input"

    def __init__(self, message: str, *, field: str | None = None, line: int | None = None) -> None:
        super().__init__(message)
        self.field = field
        self.faults: tuple[Fault, ...] = (Fault(field, message, line),)

    @classmethod
    def of(cls, faults: Sequence[Fault]) -> Self:
        """One error for all faults. The message has each of them, for some readers see nothing else (a model that is to
        mend its plan)."""
        first = faults[0]
        error = cls(first.message if len(faults) == 1 else _all_of(faults), field=first.field, line=first.line)
        error.faults = tuple(faults[:FAULTS_SHOWN])
        return error


def _all_of(faults: Sequence[Fault]) -> str:
    others = " | ".join(fault.message for fault in faults[1:FAULTS_SHOWN])
    more = "" if len(faults) <= FAULTS_SHOWN else " | and more"
    return f"{faults[0].message} | also: {others}{more}"


class InvalidPlan(InvalidInput):
    code = "invalid_plan"


class InvalidPath(InvalidInput):
    code = "invalid_path"


class PromptNotUnderstood(InvalidInput):
    code = "prompt_not_understood"


class Unauthenticated(Refused):
    code = "unauthenticated"


class Forbidden(Refused):
    code = "forbidden"


class ReadOnly(Forbidden):
    """The token, or the session's, was made to look only."""

    code = "read_only"

    def __init__(self) -> None:
        super().__init__("this token is read-only; use one that was made without --read-only")


class ForeignOrigin(Forbidden):
    """A page of another origin asked, with the cookie of a session."""

    code = "foreign_origin"


class NotFound(Refused):
    code = "not_found"


class Conflict(Refused):
    code = "conflict"


class QueueOfAnother(Conflict):
    """Redis holds the queue of another platform, or of a newer release of this one."""

    code = "queue_of_another"


class FilesGone(Conflict):
    """Files as they were at some time before cannot be had any more."""

    code = "files_gone"


class TransitionNotAllowed(Conflict):
    code = "transition_not_allowed"


class IdempotencyKeyReused(Conflict):
    code = "idempotency_key_reused"


class AgentBusy(Conflict):
    """The agent has a message open, which may change the same."""

    code = "agent_busy"


class AgentTerminated(Conflict):
    code = "agent_terminated"


class AskCircle(Conflict):
    """An agent asks one that waits for it."""

    code = "ask_circle"


class DeploymentsOff(Conflict):
    """No controller of this platform deploys anything."""

    code = "deployments_off"


class NamespaceTaken(Conflict):
    """It is another user's, or the cluster's."""

    code = "namespace_taken"


class DeploymentExists(Conflict):
    code = "deployment_exists"


class DeploymentAutoscaled(Conflict):
    """An autoscaler sets the number of its replicas."""

    code = "deployment_autoscaled"


class TooLarge(Refused):
    code = "too_large"


class QuotaExceeded(TooLarge):
    code = "workspace_quota_exceeded"


class StorageExceeded(TooLarge):
    code = "storage_quota_exceeded"


class BudgetExhausted(Refused):
    """`account` cannot pay `needed` units of its resource; it has `left`. The run can wait for a person to raise it."""

    code = "budget_exhausted"

    def __init__(self, message: str, *, account: str, needed: int, left: int) -> None:
        super().__init__(message)
        self.account = account
        self.needed = needed
        self.left = left


PLATFORM_PARTS = frozenset({"redis", "database", "workspace", "sandbox", "memory", "artifacts", "queue"})
"""A step waits for these until the run's time is up, and uses up no retry meanwhile."""


class Unavailable(PlatformError):
    """`part` is one of PLATFORM_PARTS, or the word for something outside (`mcp`, a plug-in's own), which ends the try
    of a step like any other failure; `retry_after` is in seconds. `refuses`: it answered, with a refusal (no right, no
    room, no such bucket) that lasts until an operator has mended something."""

    code = "part_unavailable"
    retryable = True

    def __init__(self, message: str, *, part: str, retry_after: int = 5, refuses: bool = False) -> None:
        super().__init__(message)
        self.part = part
        self.retry_after = retry_after
        self.refuses = refuses


class NoTables(Unavailable):
    """The database is there, and no process has made its tables yet."""


class PartRefuses(PlatformError):
    """A part answers, and has refused for too long. The message says what to do; after that the same may be tried
    again."""

    code = "part_refuses"


class QueueFull(Unavailable):
    """`limit` says which one is reached, as `backplane.queue.base.Limit` names it."""

    code = "queue_full"

    def __init__(self, message: str, limit: str, retry_after: int) -> None:
        super().__init__(message, part="queue", retry_after=retry_after)
        self.limit = limit


class TooManyWaiting(QueueFull):
    """As many of the caller's own runs wait as may: it is for the caller to let some end, and the platform is well."""

    code = "too_many_waiting"


class RateLimited(PlatformError):
    """`retry_after` is in seconds."""

    code = "rate_limited"
    retryable = True

    def __init__(self, message: str, *, retry_after: int) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class MailboxFull(RateLimited):
    """As many messages wait for the agent as may."""

    code = "mailbox_full"


class TooManyStreams(RateLimited):
    code = "too_many_streams"


class TooManyTransfers(RateLimited):
    code = "too_many_transfers"


class TooManyJobs(RateLimited):
    code = "too_many_jobs"


class ModelError(PlatformError):
    code = "model_error"


class Superseded(PlatformError):
    code = "superseded"
