"""What the API says of handlers."""

from typing import Any

from pydantic import BaseModel, Field

from backplane.tool_catalogue.base import PublishedHandler


class HandlerView(BaseModel):
    name: str = Field(examples=["weekly-report"])
    description: str = Field(description="The documentation of its function.")
    input: dict[str, Any] = Field(description="JSON schema of a run's `input`.")
    result: dict[str, Any] | None = Field(description="JSON schema of what it returns; null: it is not known.")
    package: str = Field(description="The installed package, or the file, that it is from.")

    @classmethod
    def of(cls, handler: PublishedHandler) -> "HandlerView":
        return cls(
            name=handler.name,
            description=handler.description,
            input=handler.input,
            result=handler.result,
            package=handler.package,
        )


class HandlerList(BaseModel):
    handlers: list[HandlerView] = Field(description="Of all live workers, by name.")
    complete: bool = Field(
        description="A handler that is not listed is none. False while no worker is alive, or one has published none."
    )
