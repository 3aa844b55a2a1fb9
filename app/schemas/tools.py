"""What the API says of tools."""

from typing import Annotated, Any

from pydantic import BaseModel, Field

from app.schemas.described import DescribedAs
from app.schemas.outcomes import RiskName
from backplane.tool_catalogue.base import PublishedTool


class ToolView(BaseModel):
    name: str = Field(examples=["shell"])
    description: str
    parameters: dict[str, Any] = Field(description="JSON schema of the arguments.")
    risk: Annotated[str, DescribedAs(RiskName)] = Field(description="The worst that it can do.")
    repeatable: bool = Field(description="Carried out twice it is as good as once.")
    package: str | None = Field(description="The plug-in that it is from; null: the platform's own.")

    @classmethod
    def of(cls, tool: PublishedTool) -> "ToolView":
        return cls(
            name=tool.name,
            description=tool.description,
            parameters=tool.parameters,
            risk=tool.risk,
            repeatable=tool.repeatable,
            package=tool.package or None,
        )


class McpServerView(BaseModel):
    """A run that names it in `mcp_servers` may use its tools, as {name}__{tool}."""

    name: str
    tools: list[str] | None = Field(description="Those that may be used; null: all that it offers.")


class ToolList(BaseModel):
    tools: list[ToolView] = Field(description="Of all live workers, by name.")
    mcp_servers: list[McpServerView]
    complete: bool = Field(
        description="A tool that is not listed is none. False while no worker is alive, or one has published none, or "
        "has too many to publish."
    )
