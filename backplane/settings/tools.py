"""What tools may reach and keep: hosts, secrets, the browser, the memory, MCP servers; read by workers and the API."""

from typing import Any

from pydantic import Field, SecretStr

from backplane.domain.sizes import MIB


class ToolSettings:
    tools_disabled: list[str] = Field(
        default_factory=list, description='Tools that no step may use, as JSON: ["shell"].'
    )
    handlers_file: str = Field(
        "", description="A Python file whose handlers this worker has beside those of installed packages."
    )
    roles_dir: str = Field(
        "",
        description="A folder of roles of agents (*.yaml, *.py) beside those that come along and those of packages.",
    )
    outside_hosts: list[str] = Field(
        default_factory=list,
        description='Hosts that tools may reach, as JSON: ["example.org", "*.example.com"]; "*": all public ones.',
    )
    outside_allow_private: bool = Field(False, description="Let tools reach private and loopback addresses among them.")
    outside_max_bytes: int = Field(
        10 * MIB, ge=1, description="Largest answer that a tool takes from outside, in bytes."
    )
    outside_timeout_seconds: float = Field(30.0, gt=0, description="Limit of one request to the outside.")
    secrets_key: SecretStr = Field(
        SecretStr(""),
        description="Seals users' secrets in the database (`agentctl secrets new-key`); empty: none are kept.",
    )
    browser_python: str = Field("", description="Python with Playwright inside the sandbox; empty: python3.")
    browser_executable: str = Field(
        "", description="Chromium inside the sandbox. With neither of the two there is no tool `browser`."
    )
    browser_max_bytes: int = Field(
        100 * MIB, ge=1, description="All that a step's browser may send and receive, in bytes."
    )
    memory_dir: str = Field(
        ".data/memory",
        description="Folder of the agents' memory when QDRANT_URL is empty (one machine); both empty: no memory.",
    )
    qdrant_url: str = Field("", description="URL of a Qdrant server for the agents' memory.")
    qdrant_api_key: SecretStr = Field(SecretStr(""), description="Its key.")
    memory_max_items: int = Field(10_000, ge=1, description="Memories that an agent keeps.")
    mcp_servers: dict[str, dict[str, Any]] = Field(
        default_factory=dict,
        description='MCP servers that runs may name, as JSON: {"docs": {"url": "https://…"}} or {"calc": {"command": '
        '["python3", "calc.py"]}}, which runs in the sandbox.',
    )
    mcp_timeout_seconds: float = Field(60.0, gt=0, description="Limit of one call to an MCP server.")
