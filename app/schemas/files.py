"""The files of a run."""

from datetime import datetime

from pydantic import BaseModel, Field


class FileView(BaseModel):
    path: str
    size: int = Field(description="Bytes.")
    modified_at: datetime
    etag: str


class FileList(BaseModel):
    files: list[FileView]
    next_cursor: str | None = Field(
        None, description="Give it as `cursor` for the next page; null on the last one, and where no `limit` was given."
    )
