"""What the API serves and whom it lets in."""

from pydantic import Field


class ApiSettings:
    api_mcp: bool = Field(True, description="Serve the platform itself as an MCP server at /mcp.")
    token_cache_seconds: float = Field(
        5.0, ge=0, description="How long a checked token is trusted, so also how long a revoked one may live."
    )
    api_rate_per_second: float = Field(
        50.0, ge=0, description="Calls a second that a token may make in the long run, over all API processes; 0: any."
    )
    api_rate_burst: int = Field(100, ge=1, description="Calls that a token may make at once, after a pause.")
    api_anonymous_rate_per_second: float = Field(
        20.0,
        ge=0,
        description="Requests a second without a valid token that an address may make in the long run; 0: any number.",
    )
    api_anonymous_rate_burst: int = Field(100, ge=1, description="Such requests that it may make at once.")
    api_anonymous_connections_per_address: int = Field(
        256, ge=0, description="Connections of an address that have shown no valid token; 0: any number."
    )
    api_connections_max: int = Field(
        12_000, ge=8, description="Connections of an API process; a quarter of them at most have shown no valid token."
    )
    api_keep_alive_seconds: float = Field(
        5.0, gt=0, description="Silence between two requests after which the API closes a connection."
    )
    api_trusted_proxies: str = Field(
        "",
        description="Addresses and networks of proxies in front, with commas between them: their X-Forwarded-For names "
        "the client.",
    )
    api_root_path: str = Field(
        "",
        pattern=r"^(/[A-Za-z0-9._~-]+)*$",
        description="Path below which a proxy serves the API, as `/agents`, where the proxy does not take it away; "
        "empty: none, or the proxy takes it away.",
    )
    api_metrics: bool = Field(
        True, description="Serve /metrics on the API's port, without a token; keep it off public addresses."
    )
