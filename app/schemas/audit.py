"""What the API says of what people did, and what it takes and gives of preferences."""

from datetime import datetime
from typing import Any

from pydantic import BaseModel, Field

from app.schemas.fields import NextNumber
from backplane.domain.audit import AuditEntry, AuditOutcome


class AuditEntryView(BaseModel):
    seq: int
    at: datetime
    user_id: str = Field(description="Empty: whoever worked on the database directly.")
    user: str = Field(description="The name at that time.", examples=["ada"])
    token_id: str | None = Field(description="Through which token.")
    session_id: str | None = Field(description="Through which session, where it was one.")
    action: str = Field(description="Id of the API's operation, or `token.create` and its like.", examples=["decide"])
    target: str = Field(description="The path of the request, or the id of what it was about.")
    details: dict[str, Any] = Field(description="What was chosen. Never a secret.")
    outcome: AuditOutcome = Field(description="`begun`: under way, or nobody knows how it ended.")
    status: int | None = Field(description="Of the HTTP answer, where there was one.", examples=[200])

    @classmethod
    def of(cls, entry: AuditEntry) -> "AuditEntryView":
        deed = entry.deed
        return cls(
            seq=entry.seq,
            at=entry.at,
            user_id=deed.user_id,
            user=deed.user_name,
            token_id=deed.token_id,
            session_id=deed.session_id,
            action=deed.action,
            target=deed.target,
            details=dict(deed.details),
            outcome=entry.outcome,
            status=entry.status,
        )


class AuditPage(BaseModel):
    entries: list[AuditEntryView]
    next_cursor: NextNumber
    next_after: int | None = Field(description="The highest number on this page, for `after`; null: it is empty.")
