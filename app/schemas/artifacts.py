"""What the API takes and gives of agents' artifacts."""

from datetime import datetime
from typing import Annotated

from fastapi import Path, Query
from pydantic import BaseModel, Field

from app.schemas.fields import StrictRequest
from backplane.artifacts.base import Artifact, HistoryEntry
from backplane.domain.runs import AGENT_PATTERN

COMMIT_PATTERN = r"^[0-9a-f]{7,40}$"
EXAMPLE_COMMIT = "3b18e512dba79e4c8300dd08aeb37f8e728b8dad"

AgentName = Annotated[
    str,
    Path(
        pattern=AGENT_PATTERN,
        description="Name of an agent, as its runs give it.",
        examples=["default"],
    ),
]
UserRef = Annotated[str, Path(min_length=1, max_length=200, description="A user's name or id.", examples=["ada"])]
ArtifactPath = Annotated[
    str, Query(max_length=900, description="Path of the artifact, with `/` between folders.", examples=["notes.md"])
]
CommitId = Annotated[
    str,
    Query(pattern=COMMIT_PATTERN, description="Id of a commit, or how it begins.", examples=[EXAMPLE_COMMIT]),
]


class ArtifactView(BaseModel):
    path: str
    size: int = Field(description="In bytes.")


class ArtifactFiles(BaseModel):
    artifacts: list[ArtifactView]

    @classmethod
    def of(cls, files: list[Artifact]) -> "ArtifactFiles":
        return cls(artifacts=[ArtifactView(path=file.path, size=file.size) for file in files])


class ArtifactChange(BaseModel):
    commit: str = Field(examples=[EXAMPLE_COMMIT])
    at: datetime
    summary: str = Field(description="What was done.", examples=["write notes.md"])
    run_id: str | None = Field(description="The run whose step did it.")
    step_id: str | None
    administrator: str | None = Field(description="Who did it, where it was no run.")

    @classmethod
    def of(cls, change: HistoryEntry) -> "ArtifactChange":
        author = change.author
        return cls(
            commit=change.commit,
            at=change.at,
            summary=change.summary,
            run_id=author.run_id or None,
            step_id=author.step_id or None,
            administrator=author.administrator or None,
        )


class ArtifactLog(BaseModel):
    changes: list[ArtifactChange] = Field(description="Newest first.")
    next_cursor: str | None = Field(description="For the next page; null on the last.")


class RollBack(StrictRequest):
    commit: str = Field(
        pattern=COMMIT_PATTERN,
        description="After which commit the files were as they are to be.",
        examples=[EXAMPLE_COMMIT],
    )


class RolledBack(BaseModel):
    commit: str | None = Field(description="Of the rollback itself; null when the files were so already.")
