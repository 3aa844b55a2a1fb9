"""Write a whole file."""

import base64
import binascii
from collections.abc import AsyncIterator
from typing import Self

from pydantic import Field, model_validator

from backplane.workspace.quota import ensure_room
from worker.tools.arguments import WorkspacePath
from worker.tools.base import Tool, ToolArguments, ToolContext, ToolResult

MAX_CONTENT_CHARACTERS = 4 * 1024**2


class FileWriteArguments(ToolArguments):
    path: WorkspacePath
    content: str | None = Field(None, max_length=MAX_CONTENT_CHARACTERS)
    content_base64: str | None = Field(None, max_length=MAX_CONTENT_CHARACTERS)

    @model_validator(mode="after")
    def _one_content(self) -> Self:
        if (self.content is None) == (self.content_base64 is None):
            raise ValueError("give either content (text) or content_base64 (anything else)")
        try:
            self.data()
        except (binascii.Error, ValueError) as error:
            raise ValueError(f"content_base64 is not base64: {error}") from error
        return self

    def data(self) -> bytes:
        if self.content_base64 is not None:
            return base64.b64decode(self.content_base64, validate=True)
        return (self.content or "").encode()


class FileWrite(Tool):
    name = "file_write"
    description = "Write a file, replacing one that is there."
    arguments = FileWriteArguments
    repeatable = True

    async def run(self, arguments: FileWriteArguments, context: ToolContext) -> ToolResult:
        data = arguments.data()
        await ensure_room(context.workspace, context.quota, arguments.path, len(data))
        await context.about_to_change()
        await context.workspace.write(arguments.path, _chunks(data))
        context.output(f"wrote {len(data):,} bytes to {arguments.path}\n".encode())
        return ToolResult(files_changed=(arguments.path,))


async def _chunks(data: bytes) -> AsyncIterator[bytes]:
    if data:
        yield data
