"""Ask a person, and go on with what they say."""

from typing import Annotated

from pydantic import Field

from backplane.domain.decisions import DecisionKind
from worker.tools.base import NeedsPerson, Tool, ToolArguments, ToolContext, ToolResult

MAX_QUESTION_CHARS = 4000


class AskPersonArguments(ToolArguments):
    question: str = Field(min_length=1, max_length=MAX_QUESTION_CHARS)
    choices: list[Annotated[str, Field(min_length=1, max_length=200)]] = Field(
        [], max_length=20, description="Answers to choose from; no other is taken."
    )


class AskPerson(Tool):
    name = "ask_person"
    description = (
        "Ask the person for whom this is done, and wait for the answer, which is printed. For what only they can know "
        "or decide; it may take hours."
    )
    arguments = AskPersonArguments
    repeatable = True

    async def run(self, arguments: AskPersonArguments, context: ToolContext) -> ToolResult:
        if context.answer is None:
            asked = {"question": arguments.question}
            raise NeedsPerson(
                DecisionKind.QUESTION, {**asked, "choices": arguments.choices} if arguments.choices else asked
            )
        text = str(context.answer.get("text", ""))
        context.output(f"{text}\n".encode("utf-8", "replace"))
        return ToolResult()
