"""What the API takes to sign in, and what it says of a session."""

from datetime import datetime

from pydantic import BaseModel, Field, SecretStr

from app.schemas.fields import StrictRequest
from backplane.domain.users import Caller, Tier


class SignIn(StrictRequest):
    token: SecretStr = Field(min_length=1, max_length=200, description="A token of yours, as `agt_…`.")


class UserView(BaseModel):
    id: str
    name: str = Field(examples=["ada"])
    tier: Tier


class SessionView(BaseModel):
    user: UserView
    is_read_only: bool = Field(description="The session's token was made to look only.")
    expires_at: datetime = Field(description="When the session is over, if nobody uses it from now on.")

    @classmethod
    def of(cls, caller: Caller) -> "SessionView":
        """`caller` is a session's."""
        assert caller.expires_at is not None, "a session has an end"
        user = UserView(id=caller.user.id, name=caller.user.name, tier=caller.user.tier)
        return cls(user=user, is_read_only=caller.is_read_only, expires_at=caller.expires_at)
