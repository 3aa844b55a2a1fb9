"""A role: what an agent does with a message. A message is a run, and the role's code carries it out as a handler does
(`worker.handlers.driver`): from its start each time, with effects that happen once."""

import re
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any, Literal, Self

from backplane.domain.runs import Run

if TYPE_CHECKING:
    from worker.roles.turn import AgentTurn

SenderKind = Literal["person", "agent", "event", "schedule"]

_WORD = re.compile(r"(?<=[a-z0-9])(?=[A-Z])")


@dataclass(frozen=True, slots=True)
class MessageSender:
    """`agent_id` and `name` of an agent; `name` of an event is its type, of a schedule its own. A person has
    written what a schedule sends."""

    kind: SenderKind
    name: str = ""
    agent_id: str | None = None

    @classmethod
    def of(cls, run: Run) -> Self:
        origin = run.origin or {}
        kind: SenderKind = "person"
        if origin.get("kind") in ("agent", "event", "schedule"):
            kind = origin["kind"]
        return cls(kind, str(origin.get("name", "")), origin.get("agent_id"))

    def __str__(self) -> str:
        return f"{self.kind} {self.name}" if self.name else f"a {self.kind}"


@dataclass(frozen=True, slots=True)
class AgentMessage:
    """`data`: any JSON value. `turn`: its number in the agent's mailbox, from 1. `run_id`: the run that it is."""

    text: str
    data: Any
    sender: MessageSender
    turn: int
    run_id: str
    sent_at: datetime

    @classmethod
    def of(cls, run: Run) -> Self:
        return cls(run.prompt, run.input, MessageSender.of(run), run.turn or 0, run.id, run.created_at)


class Role:
    """Subclass it and write `on_message`. It is made once in a worker, without arguments, and serves all agents of its
    role at once: what an agent is to remember belongs into `agent.state`, not into the object.

    `name`: by default the class's, with small letters and hyphens. `model`: SERVER/NAME for `agent.model`, where
    neither the message nor the agent names one. `listens_to`: types of events, or patterns of them (docs/events.md);
    each such event of a user becomes a message to each of the user's agents of this role."""

    name: str = ""
    description: str = ""
    model: str | None = None
    listens_to: tuple[str, ...] = ()

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        if "name" not in vars(cls):
            cls.name = _WORD.sub("-", cls.__name__).lower()

    async def on_message(self, message: AgentMessage, agent: "AgentTurn") -> Any:
        """What it returns is the answer: a text, or any value that JSON can hold. What it raises fails the turn, and
        leaves the agent's state as it was."""
        raise NotImplementedError
