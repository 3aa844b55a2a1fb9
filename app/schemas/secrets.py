"""What the API takes and gives of secrets: a value comes in, and never goes out."""

from datetime import datetime
from typing import Annotated

from fastapi import Path
from pydantic import BaseModel, Field, SecretStr

from app.schemas.fields import StrictRequest, Text
from backplane.domain.secrets import DEFAULT_TOOLS, MAX_HOSTS, MAX_TOOLS, NAME_PATTERN, SecretInfo

SecretName = Annotated[
    str, Path(pattern=NAME_PATTERN, examples=["GITHUB_TOKEN"], description="Capital letters, digits and _.")
]


class NewSecret(StrictRequest):
    value: SecretStr = Field(description="Text of 6 characters to 32 KiB. It is not given back.")
    tools: list[Text] = Field(
        list(DEFAULT_TOOLS), max_length=MAX_TOOLS, description="Tools that may use it, by their names."
    )
    hosts: list[Text] = Field(
        [],
        max_length=MAX_HOSTS,
        description="Hosts that tools may send it to: example.org, *.example.org, example.org:8080.",
        examples=[["api.example.org"]],
    )


class SecretView(BaseModel):
    name: str = Field(examples=["GITHUB_TOKEN"])
    tools: list[str] = Field(examples=[["shell"]])
    hosts: list[str] = Field(examples=[["api.example.org"]])
    created_at: datetime
    updated_at: datetime

    @classmethod
    def of(cls, secret: SecretInfo) -> "SecretView":
        return cls(
            name=secret.name,
            tools=list(secret.tools),
            hosts=list(secret.hosts),
            created_at=secret.created_at,
            updated_at=secret.updated_at,
        )


class SecretList(BaseModel):
    secrets: list[SecretView]
