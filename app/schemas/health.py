"""Whether the API and the parts that it needs are well."""

from pydantic import BaseModel


class PartHealth(BaseModel):
    ok: bool
    latency_ms: float
    error: str | None = None


class Readiness(BaseModel):
    ok: bool
    parts: dict[str, PartHealth]
