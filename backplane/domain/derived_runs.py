"""What a user asks for when a new run is made from an old one."""

from dataclasses import dataclass

from backplane.domain.plans import Plan
from backplane.domain.runs import Priority


@dataclass(frozen=True, slots=True)
class NewFork:
    """`step`: the last that is taken over, None for none. `prompt` and `plan`: in place of the source's. With another
    prompt and no plan, a fork that takes no step over is planned anew."""

    id: str
    priority: Priority
    step: str | None = None
    prompt: str | None = None
    plan: Plan | None = None
