"""What the API takes and gives of hooks: a secret is shown once, when it is made."""

from datetime import datetime
from typing import Annotated

from fastapi import Path
from pydantic import BaseModel, Field, SecretStr

from app.schemas.fields import StrictRequest, Text
from backplane.domain.bus import TYPE_MAX_CHARS
from backplane.domain.hooks import ADDRESS_PATTERN, NAME_PATTERN, Hook, HookKind

HookName = Annotated[
    str, Path(pattern=NAME_PATTERN, examples=["github"], description="Small letters, digits and hyphens.")
]
HookAddress = Annotated[
    str, Path(pattern=ADDRESS_PATTERN, examples=["kq3cPPyLQ1uOWkHqvJx6mVh2YbC9tRzA"], description="As PUT gave it.")
]


class NewHook(StrictRequest):
    kind: Annotated[HookKind, Field(strict=False)] = Field(
        HookKind.STANDARD,
        description="How messages are signed. standard: Standard Webhooks; github: X-Hub-Signature-256.",
    )
    type: Text | None = Field(
        None,
        max_length=TYPE_MAX_CHARS,
        description="The type of the events. Else `hook.` and the hook's name.",
        examples=["github.pushed"],
    )
    secret: SecretStr | None = Field(None, description="The sender's own secret. Else one is made for a new hook.")
    rotate: bool = Field(False, description="Make a new secret for a hook that is there; the old one counts no more.")


class HookView(BaseModel):
    name: str = Field(examples=["github"])
    path: str = Field(
        description="Where to post to, below the API's own address.",
        examples=["/api/v1/hooks/kq3cPPyLQ1uOWkHqvJx6mVh2YbC9tRzA"],
    )
    kind: HookKind
    type: str = Field(description="The type of the events.", examples=["github.pushed"])
    created_at: datetime
    updated_at: datetime

    @classmethod
    def of(cls, hook: Hook) -> "HookView":
        return cls(**_fields(hook))


class MadeHook(HookView):
    secret: str | None = Field(
        description="What messages are to be signed with, where it was made now. It is not shown again."
    )

    @classmethod
    def made(cls, hook: Hook, secret: str | None) -> "MadeHook":
        return cls(**_fields(hook), secret=secret)


class HookList(BaseModel):
    hooks: list[HookView]


class Received(BaseModel):
    id: str = Field(description="The id of the event that the message is now.")
    duplicate: bool = Field(description="The message had come before.")


def _fields(hook: Hook) -> dict[str, object]:
    return {
        "name": hook.name,
        "path": f"/api/v1/hooks/{hook.address}",
        "kind": hook.kind,
        "type": hook.type,
        "created_at": hook.created_at,
        "updated_at": hook.updated_at,
    }
