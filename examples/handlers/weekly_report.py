"""A weekly report as a handler: it reads numbers, draws a table, asks a person, waits, and lets another run send it.

It needs no model and no network. With `"model": true` in its input a model writes the summary (docs/models.md).

    agentctl up                                         # in one terminal
    agentctl dev examples/handlers/weekly_report.py     # in another one
    agentctl run --handler weekly-report --input '{"week": 48}'
    agentctl approve RUN                                # as the run says
"""

import json
from datetime import timedelta
from typing import Any

from pydantic import BaseModel, Field

from worker.handlers import Run, handler

DRAW = """\
import json, os
rows = json.loads(os.environ["ROWS"])
most = max(row["sold"] for row in rows)
with open("report.txt", "w") as report:
    for row in rows:
        report.write(f"{row['day']:<10} {row['sold']:>4}  {'#' * (40 * row['sold'] // most)}\\n")
print(sum(row["sold"] for row in rows))
"""


class ReportInput(BaseModel):
    week: int = Field(ge=1, le=53, description="Week of the year.")
    pause_seconds: float = Field(2.0, ge=0, description="How long to wait before it is sent.")
    model: bool = Field(False, description="Let a model write the summary.")


class Summary(BaseModel):
    sentence: str = Field(description="The week in one sentence.")


class Mail(BaseModel):
    text: str


def load_rows(week: int) -> list[dict[str, Any]]:
    """Stands for what would be read from a database."""
    days = ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday"]
    return [{"day": day, "sold": 10 + (7 * week + 13 * number) % 31} for number, day in enumerate(days)]


def send(text: str) -> str:
    """Stands for what would send a mail. It is called once, whatever happens to the worker."""
    return f"sent: {text}"


@handler("weekly-report")
async def weekly_report(run: Run, input: ReportInput) -> str:
    """The numbers of a week, drawn, approved and sent."""
    rows = await run.step("load", load_rows, input.week)
    run.progress(1, 4, "the numbers are there")
    drawn = await run.tool("python", code=DRAW, environment={"ROWS": json.dumps(rows)})
    sentence = f"{drawn.output.strip()} were sold in week {input.week}."
    if input.model:
        table = await run.tool("file_read", path="report.txt")
        summary = await run.model(f"Sum this week up in one sentence:\n\n{table.output}", schema=Summary)
        sentence = summary.sentence
    run.log(sentence)
    if not await run.approve(f"Send the report of week {input.week}? {sentence}"):
        return "not sent"
    await run.sleep(timedelta(seconds=input.pause_seconds).total_seconds())  # holds no slot and no worker
    return str(await run.start("mailer", {"text": sentence}).result())


@handler("mailer")
async def mailer(run: Run, input: Mail) -> str:
    """Sends a text."""
    return str(await run.step("send", send, input.text))
