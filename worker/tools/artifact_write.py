"""Write a file that the agent keeps."""

import base64
import binascii
from typing import Self

from pydantic import Field, model_validator

from backplane.artifacts.base import AgentId, Artifacts, Author
from backplane.errors import TooLarge
from worker.tools.arguments import WorkspacePath
from worker.tools.base import Risk, Tool, ToolArguments, ToolContext, ToolResult

MAX_CONTENT_CHARACTERS = 4 * 1024**2


class ArtifactWriteArguments(ToolArguments):
    path: WorkspacePath
    content: str | None = Field(None, max_length=MAX_CONTENT_CHARACTERS)
    content_base64: str | None = Field(None, max_length=MAX_CONTENT_CHARACTERS)
    from_file: WorkspacePath | None = Field(None, description="A file of the run, which is copied.")

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if [self.content, self.content_base64, self.from_file].count(None) != 2:
            raise ValueError("give one of content (text), content_base64 (anything else) and from_file (a run's file)")
        try:
            self.given()
        except (binascii.Error, ValueError) as error:
            raise ValueError(f"content_base64 is not base64: {error}") from error
        return self

    def given(self) -> bytes:
        if self.content_base64 is not None:
            return base64.b64decode(self.content_base64, validate=True)
        return (self.content or "").encode()


class ArtifactWrite(Tool):
    name = "artifact_write"
    description = "Write a file that this agent keeps from run to run, replacing one that is there."
    arguments = ArtifactWriteArguments
    repeatable = True
    risk = Risk.MEDIUM

    def __init__(self, artifacts: Artifacts) -> None:
        self._artifacts = artifacts

    async def run(self, arguments: ArtifactWriteArguments, context: ToolContext) -> ToolResult:
        data = arguments.given()
        if arguments.from_file is not None:
            data = await self._read(arguments.from_file, context)
        await context.about_to_change()
        agent = AgentId(context.call.user_id, context.agent)
        author = Author(run_id=context.call.run_id, step_id=context.call.step_id)
        changed = await self._artifacts.write(agent, arguments.path, data, author)
        done = "wrote" if changed else "there are already"
        context.output(f"{done} {len(data):,} bytes {'to' if changed else 'in'} {arguments.path}\n".encode())
        return ToolResult()

    async def _read(self, path: str, context: ToolContext) -> bytes:
        most = self._artifacts.max_bytes
        size = (await context.workspace.stat(path)).size
        if size > most:
            raise TooLarge(f"{path} has {size} bytes; an agent's artifacts may have {most} (ARTIFACTS_MAX_BYTES).")
        return b"".join([chunk async for chunk in context.workspace.read(path, start=0, end=size)])
